"""load, save and identify, from the user's side: every published format, other heads, other sizes, licences."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import opticus
from opticus import zoo
from opticus.parity.fill import fill, fill_module
from opticus.parity.manifests import Manifest, all_manifests
from opticus.structures import UnknownNameError, UsageError, WeightsError
from opticus.weights.load import match
from opticus.weights.read import read


def manifest(paper: str, variant: str, form: str) -> Manifest:
    return next(m for m in all_manifests() if (m.paper, m.variant, m.format) == (paper, variant, form))


def values(found: Manifest, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """The published file's tensors, each a formula of its key."""
    wanted = {key: shapes.get(key, shape) for key, shape in found.keys.items()}
    return {key: fill(key, shape, torch.float32) for key, shape in wanted.items()}


def published(found: Manifest, folder: Path, **shapes: tuple[int, ...]) -> Path:
    """A file as its publisher writes it."""
    state = values(found, **shapes)
    if found.format == "google":
        np.savez(folder / "w.npz", **{key: value.numpy() for key, value in state.items()})
        return folder / "w.npz"
    if found.format in ("huggingface", "transformers"):
        save_file(state, folder / "w.safetensors")
        return folder / "w.safetensors"
    torch.save({"model": state} if found.format in ("facebookresearch", "deit") else state, folder / "w.pth")
    return folder / "w.pth"


SMALL = [
    ("lenet", "5", "transcription"),
    ("resnet", "18", "torchvision"),
    ("resnet", "18", "huggingface"),
    ("vit", "ti16", "timm"),
    ("vit", "ti16", "google"),
    ("vit", "s16_dino", "dino"),
    ("centernet", "resnet18", "xingyizhou"),
]


@pytest.mark.parametrize(("paper", "variant", "form"), SMALL, ids=["-".join(row) for row in SMALL])
def test_what_is_identified_can_be_loaded(paper: str, variant: str, form: str, tmp_path: Path) -> None:
    file = published(manifest(paper, variant, form), tmp_path)
    found = opticus.identify(file)
    assert found.exact and found.name == f"{paper}/{variant}"
    named = opticus.load(found.name, file)
    unnamed = opticus.load(file)
    assert named.card.name == unnamed.card.name == found.name
    assert not named.training
    state = named.state_dict()
    assert all(torch.equal(state[key], value) for key, value in unnamed.state_dict().items())
    fresh = zoo.create(found.name).state_dict()
    moved = [key for key in state if state[key].is_floating_point() and not torch.equal(state[key], fresh[key])]
    assert len(moved) == sum(value.is_floating_point() for value in state.values())


LARGE = [m for m in all_manifests() if (m.paper, m.variant, m.format) not in SMALL]


@pytest.mark.parametrize("found", LARGE, ids=[f"{m.name}-{m.format}" for m in LARGE])
def test_every_manifest_fits_the_network_that_it_names(found: Manifest) -> None:
    """Shapes only: no file that identify recognises is one that load refuses."""
    module = zoo.paper(found.paper)
    config = zoo.config_of(found.name)
    state = {key: torch.empty(shape, device="meta") for key, shape in found.keys.items()}
    options = {"positions": getattr(module, "POSITIONS", None), "ignore": getattr(module, "IGNORE", None)}
    fits = [match(zoo.meta(found.name, config), state, module.FORMATS[found.format], **options)]
    if not fits[0].exact and fits[0].misshapen:  # the published head may have another width; load finds it
        theirs = fits[0].misshapen[0][1][0]
        for classes in (theirs, theirs - 1):
            other = dataclasses.replace(config, classes=classes)
            fits.append(match(zoo.meta(found.name, other), state, module.FORMATS[found.format], **options))
    assert any(fit.exact for fit in fits), (fits[0].unmatched[:3], fits[0].missing[:3], fits[0].extra[:3], fits[0].misshapen[:3])


def test_save_and_load_are_exact_with_labels_prepare_and_config(tmp_path: Path) -> None:
    model = opticus.create("resnet/tiny", classes=3, width=8)
    fill_module(model)
    model.card.labels, model.card.label_ids = ("cat", "dog", "bird"), (7, 8, 42)
    model.prepare = dataclasses.replace(model.prepare, resize="shortest", size=(40, 0), crop=(36, 36))
    file = model.save(tmp_path / "m.safetensors")
    for again in (opticus.load(file), opticus.load("resnet/tiny", file)):
        assert again.config == model.config and again.prepare == model.prepare
        assert again.card.labels == ("cat", "dog", "bird") and again.card.label_ids == (7, 8, 42)
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    picture = np.zeros((36, 36, 3), np.uint8)
    assert torch.equal(model.eval().predict(picture)[0].probs, opticus.load(file).predict(picture)[0].probs)
    assert opticus.load(file).predict(picture)[0].to_json()["classes"][0]["name"] in ("cat", "dog", "bird")


def test_a_run_folder_loads_its_best_weights_and_else_the_last(tmp_path: Path) -> None:
    model = opticus.create("lenet/5")
    with pytest.raises(WeightsError, match="not a run folder, it has no weights"):
        opticus.load(tmp_path)
    model.save(tmp_path / "weights" / "last.safetensors")
    assert opticus.load(tmp_path).card.name == "lenet/5"
    with torch.no_grad():
        next(model.parameters()).zero_()
    model.save(tmp_path / "weights" / "best.safetensors")
    assert float(next(opticus.load(str(tmp_path)).parameters()).abs().sum()) == 0
    with pytest.raises(WeightsError, match="holds lenet/5, not resnet/18"):
        opticus.load("resnet/18", tmp_path / "weights" / "best.safetensors")


def test_a_head_of_another_size_is_inferred_from_the_file(tmp_path: Path) -> None:
    heads: dict[str, tuple[int, ...]] = {"fc.weight": (37, 512), "fc.bias": (37,)}
    file = published(manifest("resnet", "18", "torchvision"), tmp_path, **heads)
    for model in (opticus.load("resnet/18", file), opticus.load(file)):
        assert model.config.classes == 37 and model.fc.weight.shape == (37, 512)
        assert model.card.labels is None, "names of another label set would be wrong"
    near = opticus.identify(file)
    assert (near.name, near.exact, near.classes) == ("resnet/18", False, 37)


def test_another_head_than_the_files_is_an_error_that_says_what_to_pass(tmp_path: Path) -> None:
    file = published(manifest("resnet", "18", "torchvision"), tmp_path)
    with pytest.raises(WeightsError) as error:
        opticus.load("resnet/18", file, classes=5)
    text = str(error.value)
    assert "the head has 1000 outputs in the file and 5 in the network (classes=5)" in text
    assert "pass classes=1000" in text and r'fresh=r"fc\..*"' in text


def test_a_new_head_is_asked_for_by_name_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = published(manifest("resnet", "18", "torchvision"), tmp_path)
    torch.manual_seed(3)
    model = opticus.load("resnet/18", file, classes=5, fresh=r"fc\..*")
    assert model.fc.weight.shape == (5, 512) and model.card.labels is None
    expected = fill("conv1.weight", tuple(model.conv1.weight.shape), torch.float32)
    assert torch.equal(model.conv1.weight, expected)
    assert "fc.weight, fc.bias" in capsys.readouterr().err
    with pytest.raises(UsageError, match="matches none of the network's"):
        opticus.load("resnet/18", file, fresh="head")


def test_position_embeddings_are_resized_on_request(tmp_path: Path) -> None:
    file = published(manifest("vit", "ti16", "timm"), tmp_path)
    small, large = opticus.load("vit/ti16", file), opticus.load("vit/ti16", file, size=384)
    assert small.pos_embed.shape == (1, 197, 192) and large.pos_embed.shape == (1, 577, 192)
    assert large.config.size == 384 and large.prepare.crop == (384, 384)
    assert torch.equal(small.pos_embed[:, 0], large.pos_embed[:, 0])
    assert torch.equal(small.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)
    with torch.inference_mode():
        assert large(torch.zeros(1, 3, 384, 384)).shape == (1, 1000)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A server of the files in a folder, and a cache of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_published_weights_tell_their_licence_once(
    site: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import hashlib

    folder, address = site
    file = published(manifest("resnet", "18", "torchvision"), folder)
    module = zoo.paper("resnet")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    row = dataclasses.replace(module.WEIGHTS["18:imagenet1k_v1"], url=f"{address}/w.pth", digest=digest)
    monkeypatch.setitem(module.WEIGHTS, "18:imagenet1k_v1", row)
    model = opticus.load("resnet/18:imagenet1k_v1")
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("BSD-3-Clause") == 1
    assert model.card.license == "BSD-3-Clause" and model.card.labels is not None and model.card.labels[0] == "tench"
    assert model.prepare == row.prepare
    model.save(tmp_path / "kept.safetensors")
    assert opticus.load(tmp_path / "kept.safetensors").card.license == "BSD-3-Clause"
    file.unlink()
    opticus.load("resnet/18:imagenet1k_v1", quiet=True)  # from the cache
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(module.WEIGHTS, "18:imagenet1k_v1", dataclasses.replace(row, digest="0" * 8))
    with pytest.raises(WeightsError):
        opticus.load("resnet/18:imagenet1k_v1")


def test_wrong_names_and_files_are_one_sentence(tmp_path: Path) -> None:
    for name, kind, words in (
        ("resnet/18", UsageError, "published weights: resnet/18:imagenet1k_v1"),
        ("lenet/5", UsageError, "no weights are published for it, use create"),
        ("resnet/18:v9", UnknownNameError, "unknown weights 'resnet/18:v9'"),
        ("resnet/19:v1", UnknownNameError, "did you mean 'resnet/18'"),
        (tmp_path / "none.pth", WeightsError, "no such weights file"),
    ):
        with pytest.raises(kind, match=words):
            opticus.load(name)
    with pytest.raises(UsageError, match="names published weights: use load"):
        opticus.create("resnet/18:imagenet1k_v1")
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="a tag names published weights to fetch"):
        opticus.load("resnet/18:imagenet1k_v1", tmp_path / "x.pth")


def test_a_file_in_the_wrong_paper_lists_the_four_groups(tmp_path: Path) -> None:
    file = published(manifest("lenet", "5", "transcription"), tmp_path)
    with pytest.raises(WeightsError, match="does not fit the network") as error:
        opticus.load("resnet/18", file)
    assert "unmatched" in str(error.value) and "missing" in str(error.value)
    assert read(file).state.keys() == manifest("lenet", "5", "transcription").keys.keys()


def test_a_part_given_by_name_is_that_network_and_keeps_only_head_and_norms():
    plain, given = zoo.config_of("resnet/50"), zoo.config_of("detr/tiny", {"backbone": "resnet/50"})
    part = given.backbone
    assert part.name == "resnet/50" and dict(part.changes) == {"classes": 0}
    assert zoo.config_of(part.name, dict(part.changes)).layers == plain.layers
    assert dict(zoo.config_of("detr/r50", {"backbone": "resnet/101"}).backbone.changes) == {"classes": 0, "norm": "frozen"}
    assert dict(zoo.config_of("detr/r50", {"backbone": "vgg/16"}).backbone.changes) == {"classes": 0}  # vgg's norm is yes or no
