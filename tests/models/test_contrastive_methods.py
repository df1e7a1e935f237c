"""What is particular to SimCLR, MoCo, BYOL, Barlow Twins and InfoMin: equations, queues, kept layers, bad settings."""

import numpy as np
import pytest
import torch

from opticus import zoo
from opticus.layers.norm import in_groups
from opticus.structures import Batch, DataError, Images, Picture, Progress, Sample, UsageError
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Flip
from opticus.transforms.policy import RandAugment
from opticus.transforms.views import Jigsaw, View, Views

AT = Progress(0, 0, 10, 1)


def batch(count=4, roles=("global", "global"), side=16):
    generator = torch.Generator().manual_seed(1)
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    views = tuple(
        Images(torch.randn(count, 3, side, side, generator=generator), None, eye, ((side, side),) * count) for _ in roles
    )
    return Batch(None, (None,) * count, tuple(map(str, range(count))), views, roles)


def made(method, variant="tiny", **options):
    torch.manual_seed(0)
    return zoo.paper(method).objective(zoo.create(f"{method}/{variant}"), **options)


def test_simclr_keeps_a_layer_of_the_head():
    """SimCLRv2 with its first layer in the network has the loss of a network without it and a head with it."""
    plain, kept = made("simclr", layers=3, outputs=16).double(), made("simclr", "v2-tiny", layers=3, outputs=16).double()
    state = {}
    for key, value in plain.state_dict().items():
        place = key.split(".")
        if place[:2] == ["head", "0"]:
            key = ".".join(["network", "kept", "0", *place[2:]])
        elif place[0] == "head":
            key = ".".join(["head", str(int(place[1]) - 1), *place[2:]])
        state[key] = value
    kept.load_state_dict(state)
    views = batch().to("cpu", torch.float64)
    torch.testing.assert_close(kept(views, AT)["simclr"], plain(views, AT)["simclr"])
    assert kept.network(views.views[0].pixels).shape == (4, 128)


def test_simclr_counts_its_negatives():
    """Eq. 1 as a loop over all ordered pairs of 2N views."""
    objective = made("simclr", outputs=16, temperature=0.5).double()
    views = batch().to("cpu", torch.float64)
    loss = objective(views, AT)["simclr"]
    with torch.no_grad():
        z = torch.nn.functional.normalize(objective.head(objective.network(torch.cat([v.pixels for v in views.views]))), dim=1)
    total = 0.0
    for i in range(8):
        logits = [float(z[i] @ z[k]) / 0.5 for k in range(8) if k != i]
        total -= float(z[i] @ z[(i + 4) % 8]) / 0.5 - np.log(np.exp(logits).sum())
    assert float(loss) == pytest.approx(total / 8, rel=1e-9)


def test_moco_queue_takes_the_keys_of_all_micro_batches():
    objective = made("moco", queue=10, outputs=8, momentum=0.5)
    before, slow = objective.queue.rows.clone(), objective.key_head[0].weight.clone()
    for _ in range(2):
        objective(batch(), AT)
    keys = torch.cat(objective._keys)
    with torch.no_grad():
        objective.head[0].weight.add_(1.0)
    objective.after_step(AT)
    torch.testing.assert_close(objective.queue.rows[:8], keys)
    assert torch.equal(objective.queue.rows[8:], before[8:]) and int(objective.queue.place) == 8
    torch.testing.assert_close(objective.key_head[0].weight, slow + 0.5)
    objective(batch(), AT)
    objective.after_step(AT)
    assert int(objective.queue.place) == 2 and int(objective.queue.filled) == 10


def test_groups_put_every_vector_back_in_its_place():
    torch.manual_seed(0)
    pixels = torch.randn(10, 3)
    torch.testing.assert_close(in_groups(torch.nn.Linear(3, 2).requires_grad_(False), pixels, 1).shape, torch.Size((10, 2)))
    linear = torch.nn.Linear(3, 2)
    torch.testing.assert_close(in_groups(linear, pixels, 4), linear(pixels))
    norm = torch.nn.BatchNorm1d(3, affine=False)
    assert not torch.allclose(in_groups(norm, pixels, 4), norm(pixels), atol=1e-2)
    with pytest.raises(UsageError, match="10 pictures cannot be cut into 6 groups"):
        in_groups(norm, pixels, 6)


def test_byol_target_moves_by_the_schedule():
    objective = made("byol", hidden=16, outputs=8, momentum=0.9)
    assert objective.decay(0.0) == pytest.approx(0.9) and objective.decay(0.5) == pytest.approx(0.95)
    assert objective.decay(1.0) == 1.0
    weight = objective.target_projector[0].weight.clone()
    with torch.no_grad():
        objective.projector[0].weight.add_(1.0)
    objective.after_step(Progress(5, 0, 10, 1))
    torch.testing.assert_close(objective.target_projector[0].weight, weight + 0.05)
    assert 0 <= float(objective(batch(), AT)["byol"]) <= 8


def test_infomin_patches():
    objective = made("infomin", queue=16, outputs=8)
    patched = batch(roles=("global", "global", *["patch"] * 9), side=12)
    terms = objective(patched, AT)
    sum(terms.values()).backward()
    assert terms.keys() == {"infomin", "jigsaw"} and float(objective.jigsaw_head.all.weight.grad.abs().max()) > 0
    with pytest.raises(DataError, match="two patch views"):
        objective(batch(), AT)
    with pytest.raises(UsageError, match="expected 9 views of the role 'patch', found 4"):
        objective(batch(roles=("global", "global", *["patch"] * 4)), AT)


def test_jigsaw_cuts_every_cell_once():
    """Windows as large as their cells put together again are the part of the picture; matrices say where each came from."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    sample = Sample({"image": Picture(pixels)}, None, "a")
    made = Jigsaw(grid=3, cell=10, size=10, scale=(1.0, 1.0), flip=0.0)(sample, draw_for(0, 0, 0))
    assert [role for role, _ in made.views] == ["patch"] * 9 and made.picture is sample.picture
    corners = {tuple((-view.matrix[:2, 2]).round().long().tolist()) for _, view in made.views}
    assert corners == {(x, y) for x in (0, 10, 20) for y in (0, 10, 20)}
    for _, view in made.views:
        left, top = (-view.matrix[:2, 2]).round().long().tolist()
        assert torch.equal(view.picture.pixels, pixels[top : top + 10, left : left + 10])
    both = Views((View("global", (Flip(1.0),), 2),))(made, draw_for(0, 0, 0))
    assert [role for role, _ in both.views] == ["patch"] * 9 + ["global"] * 2
    assert all(view.views == () for _, view in both.views) and "image" not in both.inputs
    with pytest.raises(UsageError, match="jigsaw"):
        Jigsaw(cell=10, size=11)(sample, draw_for(0, 0, 0))


def test_randaugment_with_probability_zero_does_nothing():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    sample = Sample({"image": Picture(pixels)}, None, "a")
    assert torch.equal(RandAugment(2, 30, p=0.0)(sample, draw_for(0, 0, 0)).picture.pixels, pixels)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("simclr", {"temperature": 0.0}, "simclr: temperature must be above 0"),
        ("simclr", {"layers": 0}, "simclr: layers must be more than the 0"),
        ("moco", {"momentum": 1.5}, "moco: temperature must be above 0 and momentum in"),
        ("moco", {"queue": 0}, "moco: queue, outputs and groups must be at least 1"),
        ("byol", {"momentum": -0.1}, "byol: momentum must be in"),
        ("barlow", {"outputs": 1}, "barlow: off_weight must be 0 or more"),
        ("infomin", {"jigsaw": 2.0}, "infomin: temperature must be above 0"),
        ("infomin", {"patches": 0}, "infomin: queue, outputs, patches and groups"),
    ],
)
def test_bad_settings_are_named(method, options, words):
    with pytest.raises(UsageError, match=words):
        made(method, **options)
    if method == "simclr":
        with pytest.raises(UsageError, match="kept must be 0 or more"):
            zoo.create("simclr/tiny", kept=-1)
