"""Photometric transforms against Pillow, colorsys and loops; RandAugment's list; erasing."""

import colorsys
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from opticus.structures import Instances, Sample, UsageError
from opticus.transforms.chain import described
from opticus.transforms.colour import (
    Blur,
    ColourJitter,
    Equalise,
    Erase,
    Grayscale,
    Posterise,
    Solarise,
    autocontrasted,
    blurred,
    colour_matrix,
    equalised,
    hue_shifted,
    jittered,
    jittered_stepwise,
    sharpened,
)
from opticus.transforms.draw import draw_for
from opticus.transforms.policy import OPERATIONS, RandAugment, geometric_matrix

GREY = (0.299, 0.587, 0.114)


def picture(height=17, width=23, channels=3, seed=0, low=0, high=256):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(low, high, (height, width, channels), dtype=np.uint8))


def stepped_by_loops(pixels, steps):
    """One pixel at a time with `colorsys`: each step clamped to [0, 255], rounded at the end."""
    values = pixels.numpy().astype(float).reshape(-1, 3)
    for name, amount in steps:
        level = float(np.mean(values @ GREY))
        for row in values:
            if name == "brightness":
                row[:] = row * amount
            elif name == "contrast":
                row[:] = amount * row + (1 - amount) * level
            elif name == "saturation":
                row[:] = amount * row + (1 - amount) * (row @ GREY)
            else:
                h, s, v = colorsys.rgb_to_hsv(*row)
                row[:] = colorsys.hsv_to_rgb((h + amount) % 1, s, v)
        values = values.clip(0, 255)
    return values.reshape(pixels.shape)


STEPS = [
    ("hue", -0.31),
    ("contrast", 1.4),
    ("saturation", 1.5),
    ("brightness", 0.7),
    ("hue", 0.5),
    ("saturation", 0.0),
    ("contrast", 0.0),
]


@pytest.mark.parametrize("steps", [[s] for s in STEPS] + [STEPS[:4], STEPS[3::-1]], ids=str)
def test_stepwise_jitter_equals_the_loops(steps):
    pixels = picture()
    assert np.abs(jittered_stepwise(pixels, steps).numpy() - stepped_by_loops(pixels, steps)).max() <= 0.51


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=30), st.floats(-0.5, 0.5))
def test_hue_shift_equals_colorsys(colours, turns):
    planes = torch.tensor(colours, dtype=torch.float32).T.contiguous()
    expected = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
    assert torch.allclose(hue_shifted(planes, turns).T, torch.tensor(expected, dtype=torch.float32), atol=0.01)


@pytest.mark.parametrize(
    "steps", [[s] for s in STEPS if s[0] != "hue"] + [[("contrast", 0.8), ("saturation", 0.7), ("brightness", 1.05)]], ids=str
)
def test_the_fused_matrix_equals_the_steps_where_nothing_is_clamped(steps):
    pixels = picture(low=90, high=170)
    difference = jittered(pixels, steps).int() - jittered_stepwise(pixels, steps).int()
    assert difference.abs().max() <= (0 if len(steps) == 1 else 1)


def test_the_fused_hue_turns_keep_greys_and_luminance_and_add_up():
    table = colour_matrix([("hue", 0.2)], [0.0])
    gain, bias = table[:, :3], table[:, 3]
    assert np.allclose(gain @ [5, 5, 5], 5) and not bias.any() and np.allclose(np.array(GREY) @ gain, GREY)
    assert np.allclose(gain @ gain, colour_matrix([("hue", 0.4)], [0.0])[:, :3])
    red = colour_matrix([("hue", 1 / 3)], [0.0])[:, :3] @ [1, 0, 0]
    faithful = hue_shifted(torch.tensor([[255.0], [0], [0]]), 1 / 3).flatten()
    assert int(np.argmax(red)) == int(faithful.argmax()) == 1  # both turn red towards green


@pytest.mark.parametrize("faithful", [False, True])
def test_jitter_on_grey_pictures_equals_the_same_grey_in_colour(faithful):
    grey = picture(channels=1)
    for i in range(5):
        jitter = ColourJitter(0.4, 0.4, 0.4, 0.2, faithful=faithful)
        one = jitter(Sample.of(grey), draw_for(0, 0, i)).picture.pixels
        three = jitter(Sample.of(grey.expand(-1, -1, 3).contiguous()), draw_for(0, 0, i)).picture.pixels
        assert (one.int() - three.int()).abs().max() <= 1
    with pytest.raises(UsageError, match="found 4"):
        ColourJitter(0.5)(Sample.of(picture(channels=4)), draw_for(0, 0, 0))


def test_jitter_draws_each_amount_from_its_range_in_all_orders():
    orders, amounts = set(), []
    for i in range(300):
        steps = ColourJitter(0.4, 0.3, 2.0, 0.1).drawn(draw_for(0, 0, i))
        orders.add(tuple(name for name, _ in steps))
        amounts.append([dict(steps)[name] for name in ("brightness", "contrast", "saturation", "hue")])
    low, high = np.min(amounts, 0), np.max(amounts, 0)
    assert (
        len(orders) == 24 and np.allclose(low, [0.6, 0.7, 0, -0.1], atol=0.03) and np.allclose(high, [1.4, 1.3, 3, 0.1], atol=0.03)
    )
    assert ColourJitter(contrast=0.2).drawn(draw_for(0, 0, 0))[0][0] == "contrast"


def test_the_steps_equal_pillows_enhancers():
    pixels = picture(40, 50)
    image = Image.fromarray(pixels.numpy())
    for name, enhancer in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        for amount in (0.3, 1.6):
            theirs = np.asarray(enhancer(image).enhance(amount)).astype(int)
            assert np.abs(jittered_stepwise(pixels, [(name, amount)]).numpy() - theirs).max() <= 2, name  # Pillow truncates twice


def test_histogram_operations_equal_pillow():
    for seed, (low, high) in enumerate([(0, 256), (40, 90), (7, 8), (0, 2)]):
        pixels = picture(60, 70, seed=seed, low=low, high=high)
        image = Image.fromarray(pixels.numpy())
        assert np.array_equal(equalised(pixels).numpy(), np.asarray(ImageOps.equalize(image)))
        assert np.abs(autocontrasted(pixels).numpy().astype(int) - np.asarray(ImageOps.autocontrast(image))).max() <= 1
        for transform, theirs in (
            (Solarise(100), ImageOps.solarize(image, 100)),
            (Posterise(3), ImageOps.posterize(image, 3)),
            (Equalise(), ImageOps.equalize(image)),
        ):
            assert np.array_equal(transform(Sample.of(pixels), draw_for(0, 0, 0)).picture.pixels.numpy(), np.asarray(theirs))
        theirs = np.asarray(ImageEnhance.Sharpness(image).enhance(1.8)).astype(int)
        assert np.abs(sharpened(pixels, 1.8).numpy() - theirs).max() <= 2
        grey = Grayscale()(Sample.of(pixels), draw_for(0, 0, 0)).picture.pixels
        assert np.array_equal(grey[..., 2].numpy(), np.asarray(image.convert("L"))) and torch.equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(("sigma", "size"), [(0.4, (9, 12)), (1.7, (9, 12)), (2.0, (3, 1)), (0.0, (4, 4))])
def test_blur_equals_a_gaussian_written_as_loops(sigma, size):
    pixels = picture(*size)
    reach = int(np.ceil(3 * sigma))

    def fold(i, n):
        while n > 1 and not 0 <= i < n:
            i = -i if i < 0 else 2 * (n - 1) - i
        return i if n > 1 else 0

    weights = {k: np.exp(-(k**2) / (2 * sigma**2)) if sigma else 1.0 for k in range(-reach, reach + 1)}
    total = sum(weights.values())
    expected = np.zeros(pixels.shape)
    for y in range(size[0]):
        for x in range(size[1]):
            for j, wj in weights.items():
                for i, wi in weights.items():
                    expected[y, x] += wj * wi / total**2 * pixels[fold(y + j, size[0]), fold(x + i, size[1])].numpy()
    assert np.abs(blurred(pixels, sigma).numpy() - expected).max() <= 0.51


def test_erasing_covers_the_promised_share_and_leaves_the_rest():
    pixels = torch.full((50, 60, 3), 1, dtype=torch.uint8)
    shares = []
    for i in range(60):
        out = Erase(1.0)(Sample.of(pixels), draw_for(0, 0, i)).picture.pixels
        changed = (out != pixels).any(-1)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert changed.sum() == len(rows) * len(columns) and out[changed].unique(dim=0).tolist() == [[124, 116, 104]]
        shares.append(changed.float().mean().item())
    assert min(shares) > 0.015 and max(shares) < 0.35
    noise = Erase(1.0, fill="noise")(Sample.of(pixels), draw_for(0, 0, 1)).picture.pixels
    assert len(noise.unique()) > 20 and (pixels == 1).all()
    assert torch.equal(Erase(1.0)(Sample.of(pixels[:1, :1]), draw_for(0, 0, 0)).picture.pixels, pixels[:1, :1])


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_of_randaugment_runs_and_moves_its_boxes(name, channels):
    target = Instances(torch.tensor([[8.0, 6, 12, 10]]), torch.tensor([0]), (16, 20))
    pixels = torch.zeros(16, 20, channels, dtype=torch.uint8)
    pixels[6:10, 8:12] = 200
    sample = Sample.of(pixels, target)
    none = RandAugment(m=0).operate(sample, name, 1.0)
    if name not in ("autocontrast", "equalise", "solarise"):
        assert torch.equal(none.picture.pixels, pixels)
    out = RandAugment(m=9).operate(sample, name, -1.0)
    assert out.picture.pixels.shape == pixels.shape and out.picture.pixels.dtype == torch.uint8
    if not torch.equal(out.matrix, torch.eye(3).double()):
        rows, columns = (out.picture.pixels[..., 0] == 200).nonzero().T
        x0, y0, x1, y1 = out.target.boxes[0].tolist()
        assert x0 <= columns.min() + 0.5 and columns.max() + 0.5 <= x1 and y0 <= rows.min() + 0.5 and rows.max() + 0.5 <= y1
    dot = RandAugment(m=30).operate(Sample.of(torch.full((1, 1, channels), 7, dtype=torch.uint8)), name, 1.0)
    assert dot.size == (1, 1)


def test_randaugment_magnitudes_and_draws():
    assert geometric_matrix("rotate", 30, (10, 10))[0, 0].item() == pytest.approx(np.cos(np.pi / 6))
    assert geometric_matrix("translate_x", 150 / 331, (100, 331))[0, 2].item() == 150
    assert geometric_matrix("shear_y", 0.3, (9, 9))[1].tolist() == [0.3, 1, 0]
    sample = Sample.of(picture(32, 32))
    outs = [RandAugment(2, 15)(sample, draw_for(0, 0, i)).picture.pixels for i in range(20)]
    assert torch.equal(outs[3], RandAugment(2, 15)(sample, draw_for(0, 0, 3)).picture.pixels)
    assert len({out.numpy().tobytes() for out in outs}) > 15
    with pytest.raises(UsageError, match="found 31"):
        RandAugment(m=31)(sample, draw_for(0, 0, 0))


@pytest.mark.parametrize(
    "transform",
    [
        ColourJitter(0.4, 0.4, 0.4, 0.1),
        ColourJitter(0.4, 0.4, 0.4, 0.1, faithful=True),
        Blur(),
        Solarise(),
        Posterise(),
        Equalise(),
        Erase(),
        Grayscale(),
    ],
    ids=repr,
)
def test_photometric_transforms_move_nothing_change_no_input_and_can_be_left_out(transform):
    pixels = picture()
    kept = pixels.clone()
    target = Instances(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0]), (17, 23))
    out = transform(Sample.of(pixels, target), draw_for(0, 0, 5))
    assert torch.equal(pixels, kept) and out.target is target and torch.equal(out.matrix, torch.eye(3).double())
    pixels = out.picture.pixels  # interleaved or as planes: both orders are read without a copy by what follows
    assert pixels.is_contiguous() or pixels.permute(2, 0, 1).is_contiguous()
    never = pickle.loads(pickle.dumps(transform)).__class__(p=0)
    assert never(Sample.of(pixels, target), draw_for(0, 0, 5)).picture.pixels is pixels
    assert json.loads(json.dumps(described(transform)))["transform"] == type(transform).__name__
    assert transform(Sample.of(pixels[:1, :1]), draw_for(0, 0, 0)).size == (1, 1)
