"""Faults that nobody would notice: unread splits, shifted names, unlike decoding, samples left out, coarse arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import opticus
from opticus.data.folder import read as read_folders
from opticus.data.open import open_data
from opticus.data.subset import Samples
from opticus.losses.supervised import Supervised
from opticus.structures import Batch, Classes, DataError, Images, Instances, Progress, Sample, TrainError, UsageError
from opticus.verbs.report import rewrite

QUIET: dict[str, Any] = {"quiet": True, "test": False}
NAMES = ("background", "cat", "dog")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that an easy rule tells apart, one of them called background; the splits are train and valid."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for split in ("train", "valid"):
        for number, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 30, (28, 28, 3), dtype=np.uint8) + np.uint8(100 * number)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_splits_under_other_names_are_used_and_every_class_of_the_data_is_a_class(folders: Path, tmp_path: Path) -> None:
    run = opticus.train("lenet/5", str(folders), out=tmp_path, steps=80, batch=12, lr=3e-3, evaluate_every=40, quiet=True)
    assert (tmp_path / "weights" / "best.safetensors").is_file(), "the split 'valid' chooses the best weights"
    assert run.evaluation is not None and run.evaluation.protocol["split"] == "val"
    assert run.values["top1"] > 0.9
    (tmp_path / "report.html").unlink()
    assert rewrite(tmp_path).is_file()
    assert json.loads((tmp_path / "passport.json").read_text())["protocols"][0]["split"] == "val"
    for model in (run.model, opticus.load(tmp_path), opticus.load("lenet/5", tmp_path)):
        for name in NAMES:
            best = model.predict(str(folders / "valid" / name / "0.png"))[0]
            assert best.to_json()["classes"][0]["name"] == name


def test_outputs_without_a_class_leave_ranked_classes_too() -> None:
    model: Any = opticus.create("lenet/5", classes=3)
    model.card.labels = ("background", "cat", "dog")  # a published table
    found = model.predict(np.zeros((28, 28, 3), np.uint8))[0]
    assert sorted(found.labels.tolist()) == [0, 1]
    assert found.names == ("cat", "dog") and len(found.probs) == 2  # names follow the numbers


def test_pillow_pictures_are_decoded_like_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (40, 24, 3), dtype=np.uint8)).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray((np.arange(28 * 28, dtype=np.uint16) * 80).reshape(28, 28)).save(tmp_path / "deep.png")
    model: Any = opticus.create("lenet/5")
    for name in ("turned.png", "deep.png"):
        file = model.predict(tmp_path / name)[0]
        with Image.open(tmp_path / name) as image:
            held = model.predict(image)[0]
        assert torch.equal(file.picture.pixels, held.picture.pixels)
        assert torch.equal(file.probs, held.probs)


def test_no_sample_is_left_out_of_a_score_unnoticed() -> None:
    twins = [Sample.of(torch.zeros(28, 28, 1, dtype=torch.uint8), Classes(torch.tensor([i])), "twin") for i in range(2)]
    model = opticus.create("lenet/5", classes=2)
    with pytest.raises(DataError, match="2 samples but only 1 different ids"):
        opticus.evaluate(model, open_data(twins, "test", on_bad="keep"), quiet=True)


def test_a_nameless_head_of_another_width_is_not_scored() -> None:
    with pytest.raises(UsageError, match="7 classes without names, the data set has 10"):
        opticus.evaluate(opticus.create("lenet/5", classes=7), "digits", limit=2, quiet=True)


def test_double_precision_is_evaluated_too(tmp_path: Path) -> None:
    run = opticus.train("lenet/5", "digits", out=tmp_path, steps=2, batch=8, precision="fp64", evaluate_every=2, **QUIET)
    assert "top1" in run.outcome.values


def test_losses_see_full_precision_under_autocast() -> None:
    class Half(torch.nn.Module):
        def forward(self, pixels: torch.Tensor, valid: object) -> torch.Tensor:
            return pixels.to(torch.bfloat16)

    seen: list[torch.dtype] = []

    def criterion(out: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(out.dtype)
        return {"a": out.sum()}

    images = Images(torch.ones(1, 3, 4, 4), None, torch.eye(3)[None], ((4, 4),))
    Supervised(Half(), criterion)(Batch(images, (Instances.empty((4, 4)),), ("a",)), Progress(0, 0, 1, 1))
    assert seen == [torch.float32]


def test_resume_refuses_other_data_and_keeps_the_quarantine(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    (tmp_path / "bad.csv").write_text("split,record,kind,detail\ntrain,cat/0.png,corrupt picture,x\n")
    options: dict[str, Any] = {"steps": 2, "batch": 4, "quarantine": tmp_path / "bad.csv", **QUIET}
    with pytest.warns(UserWarning, match="1 of 24 records"):
        opticus.train("lenet/5", str(data), out=tmp_path / "run", **options)
    with pytest.warns(UserWarning, match="1 of 24 records"):  # its records are left out again, though nobody says so
        assert opticus.train(resume=tmp_path / "run", steps=3, **QUIET).outcome.steps == 3
    with pytest.warns(UserWarning, match="left out"), pytest.raises(TrainError, match=r"trained with batch=4.*has batch=8"):
        opticus.train(resume=tmp_path / "run", steps=4, batch=8, **QUIET)
    (data / "train" / "cat" / "1.png").unlink()
    with pytest.warns(UserWarning, match="left out"), pytest.raises(TrainError, match="trained with data="):
        opticus.train(resume=tmp_path / "run", steps=4, **QUIET)


def test_a_folder_with_only_a_test_split_holds_no_class_called_test(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "valid", tmp_path / "test")
    assert read_folders(tmp_path, "test").names == NAMES


def test_voc_names_are_those_of_all_splits(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for stem, name in (("a", "helmet"), ("b", "person")):
        part = f"<part><name>hand</name>{box}</part>" if stem == "b" else ""
        size = "<size><width>10</width><height>10</height></size>"
        text = f"<annotation>{size}<object><name>{name}</name>{box}{part}</object></annotation>"
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
    for split, stem in (("train", "a"), ("val", "b")):
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(stem)
    assert open_data(tmp_path, "train").names == open_data(tmp_path, "val").names == ("helmet", "person")


@pytest.mark.parametrize("name", ["resnet/tiny", "vit/tiny", "lenet/5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_prepared_for_the_channels_asked_for(name: str, channels: int) -> None:
    model: Any = opticus.create(name, channels=channels)
    assert model.prepare.channels == channels
    grey = model.predict(np.full((40, 40), 90, np.uint8))[0]
    assert torch.equal(grey.probs, model.predict(np.full((40, 40, 3), 90, np.uint8))[0].probs)


def test_a_head_of_other_or_reordered_classes_is_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def data(*names: str) -> Samples:
        pictures = [torch.full((28, 28, 1), 100 * i, dtype=torch.uint8) for i in range(2)]
        return Samples([Sample.of(p, Classes(torch.tensor([i])), f"s{i}") for i, p in enumerate(pictures)], names=names)

    options: dict[str, Any] = {"steps": 0, "batch": 2, **QUIET}
    first = opticus.train("lenet/5", data("dark", "bright"), out=tmp_path / "a", seed=1, **options).model
    heads = {}
    for number, names in enumerate([("dark", "bright"), ("bright", "dark"), ("day", "night")]):
        run = opticus.train("lenet/5", data(*names), weights=tmp_path / "a", out=tmp_path / f"b{number}", seed=2, **options)
        assert torch.equal(run.model.get_parameter("f6.weight"), first.get_parameter("f6.weight"))
        heads[names] = torch.equal(run.model.get_parameter("output.weight"), first.get_parameter("output.weight"))
    assert list(heads.values()) == [True, False, False]
    assert "fresh: output.weight" in capsys.readouterr().err
    with pytest.raises(UsageError, match="in another order"):
        opticus.train(first, data("bright", "dark"), out=tmp_path / "c", **options)
