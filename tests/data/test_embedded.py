import time

import numpy as np
import pytest
import torch

from opticus.data.embedded.material import PHOTOGRAPHS, digit_indices
from opticus.data.embedded.scenes import CHALLENGES, KEYPOINTS, SIZE, Scenes, scene
from opticus.data.open import open_data
from opticus.structures import DataError, Instances, UnknownNameError, UsageError


def test_splits_share_no_digit_and_no_photograph():
    rows = [set(digit_indices(split).tolist()) for split in ("train", "val", "test")]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 1797
    files = [file for split in PHOTOGRAPHS.values() for file in split]
    assert len(files) == len(set(files))
    stereo = [split for split, names in PHOTOGRAPHS.items() for name in names if "motorcycle" in name]
    assert len(set(stereo)) == 1
    for split in ("val", "test"):
        used = {int(r) for i in range(40) for r in scene(0, split, i).rows}
        assert used <= set(digit_indices(split).tolist())


def test_digits_are_learnable_and_balanced():
    train, test = open_data("digits"), open_data("digits", "test")
    assert (len(train), len(open_data("digits", "valid")), len(test)) == (1097, 200, 500)
    x, y = (torch.stack([d[i].picture.pixels for i in range(len(d))]).flatten(1).float() for d in (train, test))
    labels, truth = (torch.tensor([int(d.target_of(i).labels) for i in range(len(d))]) for d in (train, test))
    near = labels[torch.cdist(y, x).topk(20, largest=False).indices]
    assert (near.mode(1).values == truth).float().mean() > 0.95
    assert torch.bincount(labels).min() > 80
    assert train[0].picture.pixels.shape == (28, 28, 1) and train[0].picture.pixels.dtype == torch.uint8


def test_a_scene_is_a_pure_function_of_its_index():
    a, b = Scenes("train"), Scenes("train")
    for index in (7, 3):
        assert torch.equal(a[index].picture.pixels, b[index].picture.pixels)
    assert not torch.equal(a[3].picture.pixels, a[7].picture.pixels)
    assert not torch.equal(a[3].picture.pixels, Scenes("train", seed=1)[3].picture.pixels)
    assert a.hash == b.hash != Scenes("train", seed=1).hash
    assert len({Scenes(s).hash for s in ("train", "val", "test")}) == 3


def test_scenes_keep_their_promises():
    data = Scenes("test", masks=True, keypoints=True)
    contrasts, shorts = [], []
    for index in range(120):
        drawn = data.draw(index)
        target = data.target_of(index).check(data.id_of(index))
        assert 1 <= len(target) <= 6
        assert float(target.boxes.min()) >= 0 and float(target.boxes.max()) <= SIZE
        wh = target.boxes[:, 2:] - target.boxes[:, :2]
        shorts += wh.amin(1).tolist()
        inter = (
            (
                torch.min(target.boxes[:, None, 2:], target.boxes[None, :, 2:])
                - torch.max(target.boxes[:, None, :2], target.boxes[None, :, :2])
            )
            .clamp(min=0)
            .prod(-1)
        )
        share = inter / torch.min(wh.prod(1)[:, None], wh.prod(1)[None])
        assert (share - torch.eye(len(target)) * share).max() <= 0.36  # placed by extents, a pixel of rounding on small digits
        # the mask lies inside the box, and touches its four sides for the topmost digit
        for k, box in enumerate(target.boxes.long().tolist()):
            ys, xs = np.nonzero(drawn.owner == k + 1)
            assert xs.min() >= box[0] and ys.min() >= box[1] and xs.max() < box[2] and ys.max() < box[3]
        ys, xs = np.nonzero(drawn.owner == len(target))
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == target.boxes[-1].tolist()
        assert torch.equal(target.masks.flatten(1).sum(1).float(), target.areas)
        assert target.keypoints.shape == (len(target), len(KEYPOINTS), 3)
        k = target.keypoints[:, 4, :2]
        assert ((k > target.boxes[:, :2]) & (k < target.boxes[:, 2:])).all()
        contrasts.append(_contrast(drawn))
    assert min(shorts) >= 13 and max(shorts) <= 57
    low, high = CHALLENGES[""].contrast
    assert low - 0.12 < float(np.quantile(contrasts, 0.02)) and max(contrasts) < high + 0.1


def _contrast(drawn):
    """Luminance of the last digit against its surroundings (which only resemble the pixels under it)."""
    luma = drawn.pixels.astype(float) @ [0.299, 0.587, 0.114] / 255
    x0, y0, x1, y1 = drawn.boxes[-1].astype(int)
    inside = np.zeros_like(luma, bool)
    inside[y0:y1, x0:x1] = True
    ink = drawn.owner == len(drawn.labels)
    return abs(np.median(luma[ink]) - np.median(luma[inside & ~ink]))


def test_harder_scenes_are_harder_in_what_they_say():
    plain = figures("scenes")
    found = {kind: figures(f"scenes-{kind}") for kind in CHALLENGES if kind}
    assert found["small"]["side"] < plain["side"] / 2 and found["crowded"]["objects"] > 2 * plain["objects"]
    assert found["occluded"]["hidden"] > 2 * plain["hidden"] and found["varied"]["slant"] > 2 * plain["slant"]
    assert all(found["hard"][key] > plain[key] for key in ("objects", "hidden", "slant")) and found["hard"]["side"] < plain["side"]
    for kind, challenge in CHALLENGES.items():
        if kind:  # clutter belongs to nobody: targets are those of digits only
            data = open_data(f"scenes-{kind}", "val")
            assert challenge.digits[0] - 3 <= len(data.target_of(0).check(kind)) <= challenge.digits[1]
            assert torch.equal(data[1].picture.pixels, open_data(f"scenes-{kind}", "val")[1].picture.pixels)
    assert len({open_data(f"scenes-{kind}").hash for kind in CHALLENGES if kind} | {open_data("scenes").hash}) == 7
    assert "photograph with" in open_data("scenes-crowded").caption(0)
    with pytest.raises(UnknownNameError, match="hard"):
        Scenes("test", challenge="harder")


def figures(name):
    """Means over 60 scenes: objects, shorter side in pixels, share of a digit's box area hidden by others, slant in radians."""
    data, sides, hidden, slants, count = open_data(name, "test", masks=True, keypoints=True), [], [], [], 0
    alone = scene(0, "test", 0).owner.shape
    for i in range(60):
        target = data.target_of(i)
        wh = target.boxes[:, 2:] - target.boxes[:, :2]
        sides += wh.amin(1).tolist()
        count += len(target)
        over = torch.zeros(alone, dtype=torch.bool)
        for k in range(len(target) - 1, -1, -1):  # the last lies on top
            x0, y0, x1, y1 = target.boxes[k].long().tolist()
            hidden.append(float(over[y0:y1, x0:x1].float().mean()))
            over |= target.masks[k]
        across = target.keypoints[:, 1, :2] - target.keypoints[:, 0, :2]
        slants += torch.atan2(across[:, 1], across[:, 0]).abs().tolist()
    return {"objects": count / 60, "side": np.mean(sides), "hidden": np.mean(hidden), "slant": np.mean(slants)}


def test_derived_targets_agree():
    data = Scenes("val", masks=True)
    for index in range(10):
        target = data.target_of(index)
        semantic, panoptic = data.semantic(index).labels, data.panoptic(index)
        assert torch.equal(semantic > 0, target.masks.any(0))
        assert set(panoptic.segments.unique().tolist()) <= set(panoptic.ids.tolist())
        for k in range(len(target)):
            assert (semantic[target.masks[k]] == target.labels[k] + 1).all()
            assert torch.equal(panoptic.segments == k + 1, target.masks[k])
        words = dict(data.questions(index))
        assert words["how many digits are there?"] == str(len(target))
        assert words["what is the sum of the digits?"] == str(int(target.labels.sum()))
        assert data.caption(index).startswith("a photograph with ")


def test_scenes_are_drawn_fast():
    data = Scenes("val")
    data[0]
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        for index in range(60):
            data[index]
        best = min(best, time.process_time() - start)
    assert 60 / best > 250  # 1000 a second on a free core


def test_crops_are_harder_than_digits():
    train, test = open_data("crops", count=1500), open_data("crops", "test", count=200)
    x, y = (torch.stack([s.picture.pixels for s in d]).flatten(1).float() for d in (train, test))
    labels, truth = (torch.cat([s.target.labels for s in d]) for d in (train, test))
    near = labels[torch.cdist(y, x).topk(20, largest=False).indices]
    accuracy = float((near.mode(1).values == truth).float().mean())
    assert 0.15 < accuracy < 0.9  # better than chance, far from the 97 % of `digits`
    assert train[0].picture.pixels.shape == (32, 32, 3) and torch.equal(train.target_of(5).labels, train[5].target.labels)


def test_open_data_names_what_was_wrong():
    with pytest.raises(DataError, match="train, val, test"):
        open_data("scenes", "holdout")
    with pytest.raises(UsageError, match="flavour"):
        open_data("scenes", flavour=1)
    with pytest.raises(UsageError, match="on_bad"):
        open_data("scenes", on_bad="ignore")
    assert isinstance(open_data("scenes", "test").target_of(0), Instances)


def test_textures_share_no_pixel_and_do_not_yield_to_raw_pixels():
    from opticus.data.embedded.textures import NAMES, REGIONS, SPAN, Textures, patch, strips

    for name in NAMES:
        cuts = strips(name)
        assert min(min(cut.size) for cut in cuts.values()) >= SPAN[1] * 2**0.5, f"{name}: no room for a turned square"
        along = 0 if len({cut.height for cut in cuts.values()}) == 1 else 1
        photo = {REGIONS[other][0]: other for other in NAMES}
        assert photo and sum(cut.size[along] for cut in cuts.values()) >= 3 * SPAN[1]
    train, test = Textures("train"), Textures("test")
    assert torch.equal(train[5].picture.pixels, Textures("train")[5].picture.pixels)
    assert not np.array_equal(patch(0, "train", 5), patch(0, "test", 5)) and not np.array_equal(
        patch(0, "train", 5), patch(1, "train", 5)
    )
    x, y = (torch.stack([d[i].picture.pixels for i in range(n)]).flatten(1).float() for d, n in ((train, 1400), (test, 420)))
    labels, truth = (torch.tensor([int(d.target_of(i).labels) for i in range(n)]) for d, n in ((train, 1400), (test, 420)))
    near = labels[torch.cdist(y, x).topk(20, largest=False).indices].mode(1).values
    assert (near == truth).float().mean() < 0.2, "comparing pixels must not solve it"
    with pytest.raises(DataError, match="splits"):
        Textures("all")
