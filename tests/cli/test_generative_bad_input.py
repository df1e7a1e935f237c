"""What a user can do wrong with systems that draw, restore and translate pictures: one sentence, the right exit code, no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import opticus
from opticus.cli.main import FAILURE, USAGE, main

GOOD = ("dcgan/tiny", "autoencoder/tiny", "pix2pix/tiny", "srgan/tiny", "ddpm/tiny", "flow_matching/tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each system, and pictures."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    for name in GOOD:
        opticus.create(name).save(folder / f"{name.split('/')[0]}.safetensors")
    (folder / "empty").mkdir()
    (folder / "plain" / "train" / "one").mkdir(parents=True)
    Image.new("RGB", (20, 20), (9, 99, 200)).save(folder / "plain" / "train" / "one" / "p.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


BAD: list[tuple[str, int, str]] = [
    ("sample {}/nothing", FAILURE, "no such run folder or weights file"),
    ("sample centernet/tiny:scenes", USAGE, "draws no pictures"),
    ("sample {}/autoencoder.safetensors", USAGE, "draws no pictures"),
    ("sample {}/dcgan.safetensors n=0", USAGE, "n must be at least 1, found 0"),
    ("sample {}/dcgan.safetensors n=some", USAGE, "must be a whole number"),
    ("sample {}/dcgan.safetensors steps=5", USAGE, "steps"),
    ("sample {}/dcgan.safetensors condition=cat", USAGE, "draws without classes"),
    ("sample {}/dcgan.safetensors guidance=3", USAGE, "guidance"),
    ("sample {}/dcgan.safetensors truncaton=0.7", USAGE, "truncaton"),
    ("sample {}/ddpm.safetensors steps=100000 n=1", USAGE, "steps"),
    ("sample {}/ddpm.safetensors sampler=dimm n=1", USAGE, "ddim"),
    ("sample {}/ddpm.safetensors eta=2 n=1", USAGE, "eta"),
    ("sample {}/ddpm.safetensors device=cuda n=1", USAGE, "CUDA"),
    ("reconstruct {}/dcgan.safetensors {}/plain", USAGE, "no encode() and decode()"),
    ("reconstruct {}/autoencoder.safetensors {}/empty", FAILURE, "no pictures in this folder"),
    ("reconstruct {}/autoencoder.safetensors {}/broken.png", FAILURE, "broken.png"),
    ("reconstruct {}/autoencoder.safetensors {}/plain batch=0", USAGE, "batch must be at least 1"),
    ("val {}/dcgan.safetensors data=digits samples=3 limit=20", USAGE, "at least 6"),
    ("val {}/dcgan.safetensors data=digits samples=8 limit=20 features=nothing/here", USAGE, "nothing/here"),
    ("val {}/dcgan.safetensors data=digits samples=8 limit=20 features={}/dcgan.safetensors", USAGE, "no embed()"),
    ("val {}/dcgan.safetensors data=digits metric=coco", USAGE, "no protocol of systems that draw"),
    ("val {}/autoencoder.safetensors data=digits limit=8 samples=9", USAGE, "for systems that draw pictures"),
    ("val {}/autoencoder.safetensors data=digits limit=8 metric=voc07", USAGE, "voc07"),
    ("val {}/pix2pix.safetensors data=digits limit=8", USAGE, "scored on data with target pictures"),
    ("val {}/srgan.safetensors data=x4:{}/nothing", FAILURE, "nothing"),
    ("train pix2pix/tiny data=digits steps=1 out={}/run", FAILURE, "target picture"),
    ("train cyclegan/tiny data=digits steps=1 out={}/run", USAGE, "a pair needs a target picture"),
    ("train srgan/tiny data=digits steps=1 out={}/run", USAGE, "a pair needs a target picture"),
    ("train dcgan/tiny data=digits classes=3 out={}/run", USAGE, "classes"),
    ("train dcgan/tiny data=digits rule=hingey steps=1 out={}/run", USAGE, "rule"),
    ("predict {}/dcgan.safetensors {}/plain", USAGE, "has no results()"),
    ("predict {}/srgan.safetensors {}/broken.png", FAILURE, "broken.png"),
]


@pytest.mark.parametrize(("words", "code", "told"), BAD, ids=[row[0].replace("{}/", "") for row in BAD])
def test_one_sentence_and_the_right_code(
    words: str, code: int, told: str, saved: Path, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found = main([word.replace("{}", str(saved)) for word in words.split()])
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("opticus: ") and "licence" not in line]
    assert len(error) == 1 and told in error[0], error
    assert found == code, error
    assert "fault of opticus" not in error[0]


def test_good_words_work(saved: Path, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    s = str(saved)
    for words in (
        f"sample {s}/ddpm.safetensors n=2 steps=3 sampler=dpm++ out=a",
        f"sample {s}/dcgan.safetensors n=2 between=3 out=b",
        f"sample {s}/flow_matching.safetensors n=2 steps=2 --grid out=c",
        f"reconstruct {s}/autoencoder.safetensors {s}/plain out=d.png",
        f"predict {s}/srgan.safetensors {s}/plain out=e",
        f"val {s}/autoencoder.safetensors data=digits limit=8",
        f"val {s}/dcgan.safetensors data=digits limit=20 samples=16 out=f",
        f"val {s}/srgan.safetensors data=x2:{s}/plain split=train metric=y",
        f"info {s}/dcgan.safetensors",
    ):
        assert main(words.split()) == 0, (words, capfd.readouterr().err)
    assert len(list(Path("a").glob("*.png"))) == 2 and Path("b/grid.png").is_file() and Path("d.png").is_file()
    assert Path("f/passport.json").is_file() and Image.open(next(Path("e").glob("*.png"))).size[0] > 20
