"""`opticus.explain`: every kind writes a picture, a page and its numbers, the same for the same seed, and leaves the model alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import opticus
from opticus.parity.fill import picture
from opticus.structures import CapabilityError, DataError, Prepare, UnknownNameError, UsageError
from opticus.verbs.explain import KINDS, options_of
from opticus.verbs.models import Card, bind

NAMES = tuple("0123456789")


class Linear(nn.Module):
    """A linear model of grey pictures, as a stand-in for any."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.prepare = Prepare(channels=channels, resize="fixed", size=(14, 14), mean=(0.5,) * channels, std=(0.5,) * channels)
        self.head = nn.Linear(196 * channels, 10)

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.head(pixels.flatten(1))


def linear(channels: int = 1) -> Any:
    return bind(Linear(channels), Card("linear/14", "classify", NAMES, own=True))


# kind -> how it is asked, as cheaply as the work allows
ASKED: dict[str, dict[str, Any]] = {
    "filters": {"model": "resnet/tiny"},
    "activations": {"model": "lenet/5", "data": "digits", "limit": 30, "maps": 2, "layer": "c1"},
    "tsne": {"model": "lenet/5", "data": "digits", "limit": 40, "perplexity": 5},
    "surface": {"model": ["lenet/5", "lenet/5"], "data": "digits", "limit": 4, "steps": 3},
    "templates": {"model": linear(), "data": "digits", "limit": 60},
    "neighbours": {"data": "digits", "limit": 60, "queries": 3, "k": 4},
    "gradcam": {"model": "resnet/tiny", "data": "crops", "limit": 2},
    "attention": {"model": "vit/tiny", "data": "digits", "index": 3},
    "attention-mask": {"model": "vit/tiny", "data": "scenes", "size": 64},
    "attention-point": {"model": "vit/tiny", "data": "crops", "point": (9, 20)},
    "rollout": {"model": "vit/tiny", "data": "digits"},
    "receptive-field": {"model": "resnet/tiny", "layer": "layer2", "limit": 2, "data": "crops"},
    "augmentations": {"model": "resnet/tiny", "data": "crops", "columns": 2},
    "numbers": {"data": "digits"},
    "masks": {"model": "mae/tiny", "data": "scenes", "limit": 2, "hide": "boxes", "visible": "pasted"},
    "denoising": {"model": "ddpm/tiny", "data": "digits", "columns": 3, "steps": 3},
    "anchors": {"model": "retinanet/tiny", "data": "scenes", "index": 1},
    "objectness": {"model": "faster_rcnn/tiny", "data": "scenes"},
    "nms": {"model": "retinanet/tiny", "data": "scenes", "threshold": 0.0},
    "focal": {},
    "slots": {"model": "detr/tiny", "data": "scenes", "limit": 6, "queries": 3},
    "decoder-attention": {"model": "detr/tiny", "data": "scenes", "index": 2},
    "encoder-attention": {"model": "detr/tiny", "data": "scenes"},
    "centring": {"model": "lenet/5", "data": "digits", "limit": 16},
    "restoration": {"model": "srgan/tiny", "data": "x2:patches", "limit": 2},
    "cycle": {"model": "cyclegan/tiny", "data": "daynight", "limit": 2, "index": 3},
    "gallery": {"model": ["centernet/tiny", "retinanet/tiny"], "data": "scenes", "limit": 2},
    "style-mixing": {"model": "stylegan/tiny", "limit": 3, "rows": 1, "truncation": 1.0},
    "truncation": {"model": "stylegan/tiny", "limit": 2},
}


def test_every_kind_is_asked() -> None:
    assert set(ASKED) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_writes_its_picture_page_and_numbers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = opticus.explain(kind, **ASKED[kind], out=tmp_path)
    with Image.open(done.png) as image:
        assert image.format == "PNG" and min(image.size) >= 100 and np.asarray(image.convert("RGB")).std() > 10
        assert image.size == done.picture.size
    page = done.page.read_text("utf-8")
    assert page.startswith("<!doctype html>") and "data:image/png;base64," in page and done.numbers
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page) and "<script" not in page
    record = json.loads(done.json.read_text("utf-8"))
    assert record["kind"] == kind and record["caption"] and json.dumps(record["numbers"]) == json.dumps(done.numbers, default=str)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{kind}.html", f"{kind}.json", f"{kind}.png"]


@pytest.mark.parametrize("kind", ["activations", "neighbours", "surface", "augmentations", "receptive-field", "gradcam"])
def test_the_same_seed_gives_the_same_picture_and_the_model_is_left_alone(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    asked = dict(ASKED[kind])
    model: Any = opticus.create("lenet/5" if kind in ("activations", "surface") else "resnet/tiny").train()
    frozen = next(iter(model.children())).eval()
    asked["model"] = model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pictures = [opticus.explain(kind, **asked, seed=3, out=tmp_path / str(i)).png.read_bytes() for i in range(2)]
    assert pictures[0] == pictures[1]
    assert model.training and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    if kind in ("activations", "surface", "augmentations"):
        other = opticus.explain(kind, **asked, seed=4, out=tmp_path / "other")
        assert other.png.read_bytes() != pictures[0]


def test_the_cams_of_a_named_class_and_of_the_best_one_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = opticus.create("resnet/tiny")
    model.card.labels, model.card.own = tuple("abcdefghij"), True
    best = opticus.explain("gradcam", model, data="crops", limit=1, out=tmp_path).numbers["cams"]
    assert len(best) == 3 and best[0]["score"] >= best[1]["score"] >= best[2]["score"]
    named = opticus.explain("gradcam", model, data="crops", limit=1, label=best[1]["class"], out=tmp_path).numbers["cams"]
    assert named == [best[1]]
    with pytest.raises(UnknownNameError, match="unknown label 'aa'; did you mean 'a'"):
        opticus.explain("gradcam", model, data="crops", label="aa", out=tmp_path)


def test_the_page_says_which_projection_was_used(tmp_path: Path) -> None:
    asked = {"data": "crops", "limit": 9, "maps": 1, "out": tmp_path}
    guided = opticus.explain("activations", "resnet/tiny", layer="conv1", **asked)
    assert guided.numbers["rule"] == "guided" and "no max pooling before this layer" in guided.page.read_text("utf-8")
    assert "fresh random weights" in guided.page.read_text("utf-8") and "resnet/tiny (random weights)" in guided.page.read_text(
        "utf-8"
    )
    model: Any = opticus.create("resnet/18")
    model.prepare = Prepare(size=(48, 48))
    pooled = opticus.explain("activations", model, layer="layer1", units=(5,), **asked)
    assert pooled.numbers["rule"] == "deconvnet" and [one["map"] for one in pooled.numbers["units"]] == [5]


def test_patches_of_a_transformers_tokens(tmp_path: Path) -> None:
    done = opticus.explain("activations", "vit/tiny", data="digits", limit=12, maps=1, layer="blocks.1", out=tmp_path)
    assert done.numbers["units"][0]["top"][0]["field"] == [0, 0, 32, 32] and done.numbers["maps"] == 96
    done = opticus.explain("activations", "vit/tiny", data="digits", limit=12, maps=1, layer="patch_embed", out=tmp_path)
    left, top, right, bottom = done.numbers["units"][0]["top"][0]["field"]
    assert (right - left, bottom - top) == (4, 4)


def test_neighbours_by_embedding_and_of_a_foreign_picture(tmp_path: Path) -> None:
    mine = Image.fromarray(picture(28, 28, 0))
    asked: dict[str, Any] = {"data": "digits", "limit": 50, "k": 3, "out": tmp_path}
    done = opticus.explain("neighbours", "lenet/5", mine, **asked, norm="cosine")
    assert done.numbers["by"] == "embed" and len(done.numbers["queries"]) == 1 and done.numbers["right_votes"] is None
    train = opticus.open_data("digits", "train")
    itself = opticus.explain("neighbours", None, train[7].picture, **asked, norm="l1").numbers["queries"][0]["neighbours"][0]
    assert itself["id"] == train.id_of(7) and itself["distance"] == 0


def test_augmentations_move_boxes_and_keep_draws_down_a_column(tmp_path: Path) -> None:
    done = opticus.explain("augmentations", "centernet/tiny", data="scenes", columns=1, out=tmp_path)
    assert [one["transform"] for one in done.numbers["transforms"]] == ["Resize", "RandomResizedCrop", "ColourJitter"]
    mixed = opticus.explain("augmentations", "vit/ti16", Image.fromarray(picture(60, 80, 3)), columns=1, out=tmp_path)
    assert any("mixed with the picture itself" in note for note in mixed.notes)


def test_colour_templates_and_pictures(tmp_path: Path) -> None:
    done = opticus.explain("templates", linear(3), out=tmp_path)
    assert np.asarray(done.numbers["weights"]).shape == (10, 3, 14, 14)
    done = opticus.explain("numbers", Image.fromarray(picture(40, 80, 3)), size=16, out=tmp_path)
    assert np.asarray(done.numbers["values"]).shape == (8, 16, 3) and done.numbers["size"] == [40, 80]


def test_a_unit_at_the_border_is_cut_to_the_picture(tmp_path: Path) -> None:
    done = opticus.explain("receptive-field", "resnet/tiny", layer="conv1", cell=(0, 31), limit=2, unit=3, out=tmp_path)
    assert done.numbers["window"] == [30, 0, 32, 2] and done.numbers["theoretical"] == [3, 3] and done.numbers["outside"] == 0
    with pytest.raises(UsageError, match=r"cell must be a row in 0\.\.31 and a column in 0\.\.31 of layer conv1, found \[0, 32\]"):
        opticus.explain("receptive-field", "resnet/tiny", layer="conv1", cell=[0, 32], out=tmp_path)


NOT_ABLE: list[tuple[str, str, dict[str, Any], str]] = [
    ("templates", "resnet/tiny", {}, "a network whose only layer is linear on pixels, it has"),
    ("attention", "resnet/tiny", {"data": "crops"}, r"resnet/tiny has no attention modules \(with `qkv` and `heads`\)"),
    ("rollout", "lenet/5", {"data": "digits"}, "lenet/5 has no attention modules"),
    ("tsne", "centernet/tiny", {"data": "scenes"}, r"centernet/tiny has no embed\(\): explain tsne needs it"),
    ("neighbours", "centernet/tiny", {"data": "scenes", "limit": 20}, r"has no embed\(\): explain neighbours needs it .*by=pixels"),
    ("gradcam", "lenet/5", {"data": "digits"}, r"lenet/5 cannot do Grad-CAM: it has no features\(\)"),
    ("gradcam", "resnet/tiny", {"data": "crops", "classes": 0}, r"resnet/tiny has no classes \(classes=0\)"),
    ("filters", "resnet/tiny", {"layer": "layer2.0.conv1"}, "see 16 maps each; only those of 1 or 3 are pictures"),
    ("filters", "resnet/tiny", {"layer": "fc"}, "layer 'fc' is a Linear, its filters are no pictures"),
    ("activations", "resnet/tiny", {"data": "crops", "layer": "fc"}, "the output of layer 'fc' is no map over the picture"),
    (
        "attention",
        "vit/tiny",
        {"data": "digits", "layer": "blocks.0"},
        r"layer 'blocks\.0' is no attention; those are blocks\.0\.attn",
    ),
    ("anchors", "centernet/tiny", {"data": "scenes"}, r"centernet/tiny has no anchors\(\)"),
    ("objectness", "retinanet/tiny", {"data": "scenes"}, "retinanet/tiny has no proposal network"),
    ("nms", "detr/tiny", {"data": "scenes"}, "detr/tiny answers without suppression"),
    ("slots", "fcos/tiny", {"data": "scenes"}, "fcos/tiny has no queries: expected an output with boxes"),
    ("decoder-attention", "vit/tiny", {"data": "digits"}, "vit/tiny has no queries: expected attention with a packed"),
    ("encoder-attention", "detr/tiny", {"data": "scenes", "layer": "backbone"}, "layer 'backbone' is no attention among"),
    ("gallery", "lenet/5", {"data": "digits"}, "lenet/5 finds no boxes: explain gallery needs detectors"),
    ("cycle", "pix2pix/tiny", {"data": "sketches"}, r"pix2pix/tiny has no cycle\(\): explain cycle needs it to lead back"),
    ("style-mixing", "progan/tiny", {}, r"progan/tiny.* has no styles\(\): explain style-mixing needs a generator"),
    ("truncation", "lenet/5", {}, r"lenet/5.* has no styles\(\)"),
]


@pytest.mark.parametrize(("kind", "model", "options", "words"), NOT_ABLE)
def test_what_a_model_cannot_do_is_named(kind: str, model: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    changes = {"classes": options["classes"]} if "classes" in options else {}
    asked = {key: value for key, value in options.items() if key != "classes"}
    network = opticus.create(model, **changes)
    with pytest.raises(CapabilityError, match=words):
        opticus.explain(kind, network, out=tmp_path / "x", **asked)
    assert not (tmp_path / "x").exists()


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("gradcan", {}, UnknownNameError, "unknown kind of explanation 'gradcan'; did you mean 'gradcam'"),
    ("gradcam", {"model": "resnet/tiny", "source": "nowhere.png"}, DataError, "nowhere.png: no such file or folder"),
    ("gradcam", {"model": "resnet/tiny"}, UsageError, "needs a picture or data="),
    ("gradcam", {"data": "crops"}, UsageError, "explain gradcam needs a model"),
    ("gradcam", {"model": "resnet/tiny", "data": "crops", "lable": "3"}, UnknownNameError, "'lable'; did you mean 'label'"),
    (
        "gradcam",
        {"model": "resnet/tiny", "data": "crops", "label": 10},
        UsageError,
        r"classes 0\.\.9, found 10|in 0\.\.9, found 10",
    ),
    ("gradcam", {"model": "resnet/tiny", "data": "crops", "index": 10**6}, UsageError, r"index must be in 0\.\."),
    ("gradcam", {"model": "resnet/tiny", "data": "crops", "limit": 0}, UsageError, "limit must be a whole number of at least 1"),
    ("gradcam", {"model": "resnet/tiny", "data": "crops", "limit": "few"}, UsageError, "limit must be a whole number, found 'few'"),
    ("gradcam", {"model": "resnet/tinny", "data": "crops"}, UnknownNameError, "did you mean 'resnet/tiny'"),
    ("gradcam", {"model": ["resnet/tiny", "lenet/5"], "data": "crops"}, UsageError, "takes one model, found 2"),
    ("activations", {"model": "resnet/tiny", "data": "crops", "layer": "layr2"}, UnknownNameError, "'layr2'; did you mean 'layer"),
    (
        "activations",
        {"model": "resnet/tiny", "data": "crops", "limit": 2, "units": [999]},
        UsageError,
        r"the maps 0\.\.127, found 999",
    ),
    ("surface", {"model": "lenet/5", "data": "digits", "limit": 2, "span": 0.0}, UsageError, "span must be larger than 0"),
    ("surface", {"model": "lenet/5"}, UsageError, "explain surface needs data="),
    ("neighbours", {"data": "digits", "norm": "l3"}, UnknownNameError, "unknown norm 'l3'; did you mean 'l1'|unknown norm 'l3'"),
    ("neighbours", {"data": "digits", "split": "train"}, UsageError, "take the queries from another one"),
    (
        "tsne",
        {"model": "lenet/5", "data": "digits", "limit": 6},
        UsageError,
        "perplexity must be at least 1 and below the 6 pictures",
    ),
    (
        "numbers",
        {"model": "lenet/5", "source": Image.new("RGB", (4, 4))},
        UsageError,
        "needs no model, only a picture; found lenet/5",
    ),
    (
        "anchors",
        {"model": "retinanet/tiny", "data": "scenes", "threshold": 1.5},
        UsageError,
        r"threshold must be in 0\.\.1, found 1.5",
    ),
    ("focal", {"background": 0}, UsageError, "background must be a whole number of at least 1"),
    ("gallery", {"data": "scenes"}, UsageError, "explain gallery needs a model"),
    ("numbers", {"data": "digits", "seed": -1}, UsageError, "seed must be a whole number of at least 0, found -1"),
]


@pytest.mark.parametrize(("kind", "asked", "error", "words"), WRONG)
def test_bad_input_is_one_sentence(kind: str, asked: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        opticus.explain(kind, **asked, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_foreign_module_must_say_how_it_wants_its_pictures(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="Linear has no `prepare`"):
        opticus.explain("gradcam", nn.Linear(3, 3), data="crops", out=tmp_path)


def test_networks_in_double_precision_are_explained(tmp_path: Path) -> None:
    model = opticus.create("lenet/5").double()
    for kind, options in (("surface", {"limit": 3, "steps": 3}), ("activations", {"limit": 10, "maps": 1, "layer": "c3"})):
        assert opticus.explain(kind, model, data="digits", out=tmp_path, **options).numbers


def test_the_options_of_a_kind_are_listed() -> None:
    assert options_of("gradcam") == ["layer", "label", "limit", "index"]
    with pytest.raises(UnknownNameError):
        options_of("cam")


def test_masks_hides_what_it_says_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = opticus.create("mae/tiny")
    ask: dict[str, Any] = {"data": "scenes", "limit": 2, "out": tmp_path}
    plain, pasted = (opticus.explain("masks", model, **ask, visible=how) for how in ("predicted", "pasted"))
    rows = plain.numbers["pictures"]
    assert [row["hidden"] for row in rows] == [48, 48] and rows == pasted.numbers["pictures"]
    a, b = (np.asarray(done.picture) for done in (plain, pasted))
    assert a.shape == b.shape and (a != b).any(), "visible patches are laid over the prediction"
    assert opticus.explain("masks", model, **ask, ratio=0.5).numbers["pictures"][0]["hidden"] == 32
    for wrong, words in (
        ({"ratio": 1.0}, "above 0 and below 1"),
        ({"ratio": 0.999}, "leaves 0 of 64"),
        ({"hide": "boxes", "data": "crops"}, "needs data= with boxes"),
        ({"visible": "shown"}, "visible"),
    ):
        with pytest.raises(UsageError, match=words):
            opticus.explain("masks", model, **{**ask, **wrong})
    with pytest.raises(CapabilityError, match="reconstruct"):
        opticus.explain("masks", "lenet/5", data="digits", out=tmp_path)
