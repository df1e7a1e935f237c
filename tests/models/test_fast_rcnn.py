"""Fast R-CNN (1504.08083): regions from outside, what is learned from them, and how they travel with a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from papers import batch_for, new

import opticus
from opticus import zoo
from opticus.matching import regions
from opticus.matching.objects import Truth
from opticus.matching.proposals import sampled
from opticus.models.detection.fast_rcnn import FastRCNN
from opticus.ops.boxes import map_boxes
from opticus.ops.iou import iou
from opticus.structures import Batch, CapabilityError, Instances, Progress, Sample, UsageError
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Crop, Flip
from opticus.transforms.mixing import MixUp
from opticus.transforms.regions import Propose


@pytest.fixture(scope="module")
def tiny() -> FastRCNN:
    network = new("fast_rcnn/tiny").eval()
    assert isinstance(network, FastRCNN)
    return network


def test_without_regions_it_proposes_its_own_inside_the_picture(tiny: FastRCNN) -> None:
    batch = batch_for(tiny, "detect", 2)
    assert batch.images is not None
    valid = torch.ones(2, 128, 128, dtype=torch.bool)
    valid[1, 70:] = False
    with torch.no_grad():
        out = tiny(batch.images.pixels, valid)
        given = tiny(batch.images.pixels, valid, [out.proposals[out.pictures == i] for i in range(2)])
    for i, height in enumerate((128, 70)):
        boxes = out.proposals[out.pictures == i]
        assert 0 < len(boxes) <= tiny.config.proposals
        assert (boxes >= 0).all() and (boxes[:, 2] <= 128).all() and (boxes[:, 3] <= height).all()
    assert torch.equal(out.logits, given.logits) and out.deltas.shape == (len(out.proposals), 11, 4)


def test_a_picture_without_regions_has_no_results(tiny: FastRCNN) -> None:
    batch = batch_for(tiny, "detect", 2)
    assert batch.images is not None
    with torch.no_grad():
        out = tiny(batch.images.pixels, None, [torch.zeros(0, 4), torch.tensor([[10.0, 20, 60, 90]])])
    assert out.pictures.tolist() == [1]
    found = tiny.results(out, batch.images)[0]
    assert isinstance(found, Instances) and len(found) == 0


def test_sampling_obeys_section_2_3() -> None:
    """At most a quarter are objects (IoU >= 0.5); the background overlaps an object by `low` to 0.5; the objects are among them."""
    truth = Truth(torch.tensor([[20.0, 20, 60, 80]]), torch.tensor([3]), torch.zeros(0, 4))
    spots = torch.rand(400, 2) * 100
    every = torch.cat([spots, spots + 10 + torch.rand(400, 2) * 60], 1)
    none = torch.zeros(len(every), dtype=torch.int64)
    boxes, _, kinds, goals = sampled(every, none, [truth], 16, low=0.1)
    overlap = iou(truth.boxes, boxes)[0]
    assert len(boxes) == 16 and 0 < int((kinds > 0).sum()) <= 4
    assert (overlap[kinds == 4] >= 0.5).all() and set(kinds.tolist()) == {0, 4}
    assert ((overlap[kinds == 0] >= 0.1) & (overlap[kinds == 0] < 0.5)).all()
    assert (goals[kinds > 0] == truth.boxes).all() and torch.equal(goals[kinds == 0], boxes[kinds == 0])
    alone = sampled(every[:0], none[:0], [truth], 16, low=0.1)
    assert torch.equal(alone.boxes, truth.boxes) and torch.equal(alone.objects, truth.boxes)
    empty = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    nothing = sampled(every, none, [empty], 16, low=0.1)
    assert len(nothing.boxes) == 16 and nothing.labels.sum() == 0
    crowd = empty._replace(ignored=torch.tensor([[-1.0, -1, 300, 300]]))
    assert len(sampled(every, none, [crowd], 16).boxes) == 0


def test_regions_of_a_batch_are_learned_from(tiny: FastRCNN) -> None:
    network = new("fast_rcnn/tiny").train()
    batch = batch_for(network, "detect", 2)
    assert batch.images is not None
    boxes = torch.tensor([[5.0, 6, 50, 60]])
    seen: list[torch.Tensor] = []
    network.register_forward_hook(lambda _, given, out: seen.append(out.proposals))
    objective = zoo.paper("fast_rcnn").objective(network)
    with_regions = Batch(batch.images, batch.targets, batch.ids, inputs={"regions": (boxes, boxes + 1)})
    terms = objective.forward(with_regions, Progress(0, 0, 1, 1))
    assert torch.equal(seen[0], torch.cat([boxes, boxes + 1])) and all(bool(torch.isfinite(term)) for term in terms.values())


def test_regions_move_with_the_picture() -> None:
    pixels = torch.randint(0, 255, (60, 80, 3), dtype=torch.uint8)
    sample = Propose(limit=50)(Sample.of(pixels, Instances.empty((60, 80)), "a"), draw_for(0, 0, 0))
    before = sample.inputs["regions"]
    assert isinstance(before, torch.Tensor) and 0 < len(before) <= 50
    flipped = Flip(p=1.0)(sample, draw_for(0, 0, 0))
    moved = flipped.inputs["regions"]
    assert isinstance(moved, torch.Tensor)
    torch.testing.assert_close(moved, map_boxes(before, flipped.matrix))
    cut = Crop((40, 40), keep=0.5)(sample, draw_for(0, 0, 1)).inputs["regions"]
    assert isinstance(cut, torch.Tensor) and len(cut) < len(before) and (cut >= 0).all() and (cut <= 40).all()
    assert torch.equal(before, sample.inputs["regions"])
    with pytest.raises(UsageError, match="Propose after the mix"):
        MixUp(p=1.0)(sample, draw_for(0, 0, 0, another=lambda rng: sample))


def test_proposals_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    search = regions.Search(limit=40)
    pixels = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8)
    first = regions.propose(pixels, search)
    assert not list(tmp_path.rglob("*.boxes")), "nothing is kept unless it is asked for"
    regions._recent.clear()  # pyright: ignore[reportPrivateUsage]
    with regions.keeping():
        regions.propose(pixels, search)
    assert len(list(tmp_path.rglob("*.boxes"))) == len(list(tmp_path.rglob("*.index"))) == 1
    regions._recent.clear()  # pyright: ignore[reportPrivateUsage]
    regions._stores.clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(regions, "_searched", lambda *_: pytest.fail("it was kept"))
    assert torch.equal(regions.propose(pixels, search), first)


def test_two_writers_and_a_torn_record(tmp_path: Path) -> None:
    one, two = regions.Store(tmp_path), regions.Store(tmp_path)
    boxes = torch.rand(3, 4)
    one.put(b"a" * 16, boxes)
    two.put(b"b" * 16, boxes[:0])
    two.put(b"c" * 16, boxes * 2)
    found = one.get(b"c" * 16)
    none = two.get(b"b" * 16)
    assert found is not None and torch.equal(found, boxes * 2) and none is not None and none.shape == (0, 4)
    index = next(path for path in tmp_path.glob("*.index") if path.stem == two.own.name)
    index.write_bytes(index.read_bytes() + b"d" * 20)  # killed while it wrote
    fresh = regions.Store(tmp_path)
    whole = fresh.get(b"a" * 16)
    assert fresh.get(b"d" * 16) is None and whole is not None and torch.equal(whole, boxes)


def test_large_pictures_are_searched_small_and_answered_in_their_own_pixels() -> None:
    pixels = torch.zeros(700, 900, 3, dtype=torch.uint8)
    pixels[200:500, 300:600] = torch.tensor([200, 40, 90], dtype=torch.uint8)
    found = regions.propose(pixels, regions.Search(scales=(100.0,), spaces=("rgb",)))
    assert iou(torch.tensor([[300.0, 200, 600, 500]]), found).max() > 0.97


def test_bad_settings_are_refused() -> None:
    with pytest.raises(CapabilityError, match="a map of stride 3"):
        opticus.create("fast_rcnn/tiny", stride=3)


def test_the_classifier_s_file_starts_all_but_the_sister_layers(tmp_path: Path) -> None:
    """Section 2.2: the network is initialised from an ImageNet VGG; only the last two layers are new."""
    from opticus.parity.fill import fill_module
    from opticus.structures import Part

    small = {"layers": (1, 1, 1, 1, 1), "width": 2, "classes": 7, "hidden": 6}
    vgg = opticus.create("vgg/16", **small)
    fill_module(vgg)
    places = {"trunk": "features", "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    state = {f"{places[key.split('.')[0]]}.{key.partition('.')[2]}": value for key, value in vgg.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    part = Part("vgg/16", **{**small, "classes": 0, "hidden": 0})
    model = opticus.load("fast_rcnn/vgg16", tmp_path / "vgg.pth", fresh=r"head\.(cls_score|bbox_pred)\..*", classes=4, hidden=6,
                         backbone=part, quiet=True)  # fmt: skip
    assert torch.equal(model.get_parameter("head.fc7.weight"), vgg.get_parameter("fc7.weight"))
    assert torch.equal(model.get_parameter("backbone.trunk.0.weight"), vgg.get_parameter("trunk.0.weight"))
