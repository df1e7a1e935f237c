"""Bad input for every verb: one clear sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.cli.main import main

# words -> exit code, part of the sentence. {run} a trained run, {pic} a picture, {coco} a data set, {block} a path below a file
WRONG: list[tuple[str, int, str]] = [
    ("trian", 2, "unknown verb 'trian'; did you mean 'train'?"),
    ("xyzzyplugh", 2, "unknown verb 'xyzzyplugh'; known: train, val"),
    # train
    ("train", 2, "needs MODEL and data="),
    ("train lenet/5", 2, "needs MODEL and data="),
    ("train lenett/5 data=digits", 2, "unknown model 'lenett/5'; did you mean 'lenet/5'"),
    ("train lenet data=digits", 2, "'lenet' needs a variant: lenet/5"),
    ("train lenet/5 data=digitz", 3, "did you mean 'digits'"),
    ("train lenet/5 data=nowhere", 3, "nowhere: neither an embedded data set"),
    ("train lenet/5 data=empty", 3, "empty: the folder is empty"),
    ("train lenet/5 data=scenes", 2, "lenet/5 does classify, but the data set is for detect"),
    ("train lenet/5 data=digits classes=7", 2, "classes=7 was asked for, but the data has 10 classes"),
    ("train lenet/5 data=digits epoch=7", 2, "unknown training option 'epoch'; did you mean 'epochs'"),
    ("train lenet/5 data=digits epochs=-1", 2, "must not be negative"),
    ("train lenet/5 data=digits batch=0", 2, "batch must be at least 1, found 0"),
    ("train lenet/5 data=digits batch=many", 2, "batch must be a whole number, found 'many'"),
    ("train lenet/5 data=digits steps=1.5", 2, "steps must be a whole number, found 1.5"),
    ("train lenet/5 data=digits lr=NaN", 2, "lr must be in"),
    ("train lenet/5 data=digits lr=-1", 2, "lr must be in"),
    ("train lenet/5 data=digits workers=-1", 2, "workers must be at least 0"),
    ("train lenet/5 data=digits batch=32 accumulate=3", 2, "batch=32 is not a multiple of accumulate=3"),
    ("train lenet/5 data=digits patience=0", 2, "patience must be at least 1"),
    ("train lenet/5 data=digits average=1.5", 2, "average must be in [0, 1]"),
    ("train lenet/5 data=digits seed=abc", 2, "seed must be a whole number"),
    ("train lenet/5 data=digits kind=adamm", 2, "unknown kind 'adamm'; did you mean 'adam'"),
    ("train lenet/5 data=digits precision=fp8", 2, "unknown precision 'fp8'"),
    ("train lenet/5 data=digits device=cuda", 2, "device 'cuda' was asked for, but torch sees no CUDA GPU here"),
    ("train lenet/5 data=digits device=warp", 2, "unknown device to train on 'warp'"),
    ("train lenet/5 data=digits transforms=flip", 2, "transforms must be a list"),
    ("train lenet/5 data=digits betas=[0.9]", 2, "betas must be a list"),
    ("train lenet/5 data=digits options=5", 2, "options must be a mapping"),
    ('train lenet/5 data=digits options={"foo":1}', 2, "options of lenet/5's objective: got an unexpected keyword argument 'foo'"),
    ("train lenet/5 data=digits channels=0", 2, "lenet/5 cannot be built with channels=0"),
    ("train lenet/5 data=digits channels=one", 2, "channels must be a whole number, found 'one'"),
    ("train lenet/5 data=digits on_bad=maybe", 2, "unknown value of opticus train's on_bad 'maybe'; known: raise, quarantine"),
    ("train lenet/5 data=digits quarantine=nowhere.csv", 3, "nowhere.csv: the quarantine list cannot be read"),
    ("train lenet/5 data=digits out={block}", 3, "cannot be written"),
    ("train lenet/5 data=digits out=/proc/run", 3, "/proc/run/args.json: cannot be written"),
    ("train lenet/5 data=digits weights=nowhere.pth", 3, "nowhere.pth: no such weights file"),
    ("train lenet/5 data=digits weights=evil.pth", 3, "evil.pth"),
    ("train lenet/5 data=digits weights=short.safetensors", 3, "short.safetensors: truncated"),
    ("train lenet/5 data=slip.zip", 3, "would be written outside the folder; refused"),
    ("train resume=nowhere", 3, "nowhere: nothing to resume"),
    ("train resume=empty", 3, "empty: nothing to resume"),
    ("train resume={run} out=elsewhere", 2, "a resumed run goes on in its own folder"),
    ("train --resume", 2, "--resume needs a value"),
    ("train lenet/5 data=", 2, "data needs a value"),
    ("train lenet/5 data=digits data=scenes", 2, "data is given twice"),
    # val
    ("val", 2, "needs MODEL"),
    ("val {run}", 2, "needs data="),
    ("val nowhere data=digits", 2, "unknown model 'nowhere'"),
    ("val runs/nowhere data=digits", 3, "no such run folder or weights file"),
    ("val empty data=digits", 3, "empty: not a run folder"),
    ("val {run} data=scenes", 2, "does classify, but the data set is for detect"),
    ("val {run} data=empty", 3, "the folder is empty"),
    ("val {run} data=nowhere", 3, "neither an embedded data set"),
    ("val {run} data=slip.zip", 3, "would be written outside the folder; refused"),
    ("val {run} data=digits split=foo", 3, "digits has the splits train, val, test"),
    ("val {run} data=digits batch=0", 2, "batch must be at least 1"),
    ("val {run} data=digits limit=0", 2, "limit must be at least 1"),
    ("val {run} data=digits limit=-2", 2, "limit must be at least 1"),
    ("val {run} data=digits batch=x", 2, "batch must be a whole number, found 'x'"),
    ("val {run} data=digits device=cuda", 2, "torch sees no CUDA GPU here"),
    ("val {run} data=digits device=warp", 2, "unknown device 'warp'"),
    ("val {run} data=digits precision=fp8", 2, "did you mean 'fp32' or 'fp16'"),
    ("val {run} data=digits splitt=val", 2, "unknown key of opticus val 'splitt'; did you mean 'split'"),
    ("val {run} data=digits limit=4 quiet=1 out={block}", 3, "Not a directory"),
    ("val resnet/18 data=digits", 2, "published weights: resnet/18:imagenet1k_v1"),
    ("val resnet/18:imagenet data=digits", 2, "unknown weights 'resnet/18:imagenet'; did you mean"),
    # predict
    ("predict {run}", 2, "needs SOURCE"),
    ("predict {run} a b", 2, "takes 2 words (MODEL, SOURCE), found 3"),
    ("predict {run} nowhere.png", 3, "nowhere.png: no such file or folder"),
    ("predict {run} empty", 3, "empty: no pictures in this folder"),
    ("predict {run} bomb.png", 3, "bomb.png: more pixels than the budget"),
    ("predict {run} short.png", 3, "short.png: the picture is corrupt or truncated"),
    ("predict {run} nan.tif", 3, "nan.tif: pixels are floating-point numbers"),
    ("predict {run} text.txt", 3, "text.txt: not an image"),
    ("predict {run} clip.mp4", 3, "clip.mp4: the video cannot be decoded"),
    ("predict {run} {pic} threshold=2", 2, "threshold must be in [0, 1]"),
    ("predict {run} {pic} threshold=nan", 2, "threshold must be in [0, 1]"),
    ("predict {run} {pic} threshold=abc", 2, "threshold must be a number, found 'abc'"),
    ("predict {run} {pic} treshold=0.5", 2, "unknown key of opticus predict 'treshold'; did you mean 'threshold'"),
    ("predict {run} {pic} labels=cat", 2, "unknown label 'cat'; known: 0, 1, 2"),
    ("predict {run} {pic} limit=0", 2, "limit must be at least 1"),
    ("predict {run} {pic} batch=0", 2, "batch must be at least 1"),
    ("predict {run} {pic} device=cuda", 2, "torch sees no CUDA GPU here"),
    ("predict {run} {pic} save=maybe", 2, "save must be true or false, found 'maybe'"),
    ("predict {run} {pic} out={block}", 3, "cannot be written"),
    ("predict {run} {pic} out=/proc/found", 3, "/proc/found/street.png: cannot be written"),
    ("predict lenet/5 {pic} weights=evil.pth", 3, "evil.pth"),
    ("predict lenet/5 {pic} weights=short.pth", 3, "short.pth: the archive is truncated or corrupt"),
    ("predict evil.pth {pic}", 3, "evil.pth"),
    ("predict short.safetensors {pic}", 3, "short.safetensors: truncated"),
    ("predict other.pth {pic}", 3, "matches no known manifest"),
    ("predict text.txt {pic}", 3, "not a weights file that is known"),
    ("predict resnett/18 {pic}", 2, "unknown model 'resnett/18'; did you mean 'resnet/18'"),
    # models, info, identify
    ("models a b", 2, "takes 1 word (PATTERN), found 2"),
    ("models --task fly", 2, "unknown task 'fly'; known: classify"),
    ("models task=detekt", 2, "did you mean 'detect'"),
    ("models --taks detect", 2, "unknown key of opticus models 'taks'; did you mean 'task'"),
    ("info", 2, "needs MODEL"),
    ("info lenet/6", 2, "unknown model 'lenet/6'; did you mean 'lenet/5'"),
    ("info lenet/5 size=0", 2, "size must be at least 1"),
    ("info lenet/5 size=abc", 2, "size must be a whole number"),
    ("info lenet/5 size=17", 2, "the input must be 32x32 pixels, found 17x17"),
    ("info lenet/5 weights=short.safetensors", 3, "truncated"),
    ("info empty", 3, "not a run folder"),
    ("identify", 2, "needs FILE"),
    ("identify nowhere.pth", 3, "nowhere.pth: there is no such file"),
    ("identify empty", 3, "empty: a folder without"),
    ("identify text.txt", 3, "not a weights file that is known"),
    ("identify zero.pth", 3, "zero.pth"),
    ("identify evil.pth", 3, "evil.pth"),
    ("identify short.pth", 3, "truncated or corrupt"),
    ("identify short.safetensors", 3, "truncated"),
    # data
    ("doctor", 2, "needs DATA"),
    ("doctor nowhere", 3, "neither an embedded data set"),
    ("doctor scenez", 3, "did you mean 'scenes'"),
    ("doctor empty", 3, "the folder is empty"),
    ("doctor text.txt", 3, "a single .txt file is not a data set"),
    ("doctor slip.zip", 3, "would be written outside the folder; refused"),
    ("doctor {coco} quarantine={block}", 3, "cannot be written"),
    ("doctor {coco} quarantin=q.csv", 2, "did you mean 'quarantine'"),
    ("export-data scenes coco", 2, "needs FOLDER"),
    ("export-data scenes", 2, "needs FORMAT and FOLDER"),
    ("export-data scenez coco new", 3, "did you mean 'scenes'"),
    ("export-data scenes coko new", 2, "unknown export format 'coko'; did you mean 'coco'"),
    ("export-data scenes mnist new", 2, "scenes is detect data, which mnist does not hold"),
    ("export-data digits coco new", 2, "digits is classify data, which coco does not hold"),
    ("export-data scenes coco new limit=0", 2, "limit must be at least 1"),
    ("export-data scenes coco {coco}", 3, "the folder is not empty"),
    ("export-data scenes coco {block}", 3, "cannot be written"),
    ("export-data scenes coco /proc/new", 3, "cannot be written"),
    # runs
    ("report", 2, "needs RUN_FOLDER"),
    ("report nowhere", 3, "nowhere: not a run folder"),
    ("report empty", 3, "empty: not a run folder"),
    ("report text.txt", 3, "not a run folder"),
    ("compare {run}", 2, "needs SECOND"),
    ("compare {run} nowhere", 3, "nowhere/passport.json"),
    ("compare {run} empty", 3, "empty/passport.json"),
    ("prove nmz", 2, "unknown op 'nmz'; did you mean 'nms'"),
    ("prove nms iou", 2, "takes 1 word (NAME), found 2"),
    ("verify resume", 2, "needs RUN_FOLDER"),
    ("verify resumee {run}", 2, "did you mean 'resume'"),
    ("verify resume nowhere", 3, "nowhere: not a run folder"),
    ("verify resume {run} steps=0", 2, "steps must be at least 2"),
    ("verify resume {run} steps=x", 2, "steps must be a whole number"),
    ("demo word", 2, "takes no words, found 1"),
    ("demo steps=-1", 2, "must not be negative"),
    ("demo stepz=1", 2, "did you mean 'steps'"),
    ("demo steps=1 out={block}", 3, "cannot be written"),
]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.fixture
def corner(cli: Any, trained: Path) -> Any:
    """The command in a folder full of broken files."""
    Path("empty").mkdir()
    Path("text.txt").write_text("no picture, no weights, no data")
    Path("zero.pth").write_bytes(b"")
    Path("clip.mp4").write_bytes(b"no video" * 100)
    torch.save({"c1.weight": Evil()}, "evil.pth")
    torch.save({"strange": torch.zeros(1000)}, "other.pth")
    Path("short.pth").write_bytes(Path("other.pth").read_bytes()[:2000])
    whole = (trained / "weights" / "last.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("good.png")
    picture = Path("good.png").read_bytes()
    Path("short.png").write_bytes(picture[: len(picture) - 30])
    Path("good.png").unlink()
    Path("bomb.png").write_bytes(bomb())
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save("nan.tif")
    with zipfile.ZipFile("slip.zip", "w") as archive:
        archive.writestr("../../slipped.txt", "x")
    return cli


def bomb() -> bytes:
    """A few hundred bytes that promise ten thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(("words", "code", "sentence"), WRONG, ids=[row[0] for row in WRONG])
def test_wrong_words(
    corner: Any, words: str, code: int, sentence: str, trained: Path, street: Path, coco: Path, block: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before, filled = everything(tmp_path), words
    for name, path in {"run": trained, "pic": street, "coco": coco, "block": block}.items():
        filled = filled.replace(f"{{{name}}}", str(path))
    answer = corner(*filled.split())
    assert (answer.code, sentence in answer.sentence) == (code, True), answer
    assert answer.sentence.count("opticus: ") == 1 or f"opticus {words.split()[0]}" in answer.sentence
    left = everything(tmp_path) - before - {"home", "home/weights", "home/unpacked"}
    assert not left, left


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = (
    ("train lenet/5 data=digits steps=1 evaluate_every=0 test=false quiet=true out=new", "the disk is full"),
    ("predict {run} {pic} out=new", "the disk is full"),
    ("val {run} data=digits limit=4 quiet=true out=new", "full"),
    ("doctor digits quarantine=new/q.csv", "the disk is full"),
    ("report {run}", "full"),
)


@pytest.mark.parametrize(("words", "sentence"), FULL, ids=[row[0].split()[0] for row in FULL])
def test_a_full_disk(cli: Any, words: str, sentence: str, trained: Path, street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = cli(*words.format(run=trained, pic=street).split())
    assert answer.code == 3 and sentence in answer.sentence.lower().replace("no space left on device", "the disk is full"), answer
    assert not [path for path in Path().rglob("*") if path.is_file()]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_disk_that_fills_while_data_is_exported_leaves_no_half_data_set(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticus.data import export

    saved, count = export.save_png, [0]

    def failing(pixels: Any, file: Path) -> None:
        count[0] += 1
        if count[0] > 3:
            full()
        saved(pixels, file)

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_png", failing)
        answer = cli("export-data", "scenes", "yolo", "new", "limit=2")
    assert answer.code == 3 and "No space left on device" in answer.sentence
    assert not any(Path().rglob("*"))
    assert cli("export-data", "scenes", "yolo", "new", "limit=2").code == 0


def test_a_full_disk_while_training_keeps_the_last_state(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("evaluate_every=0", "test=false", "quiet=true")
    assert cli("train", "lenet/5", "data=digits", "steps=2", "out=r", *common).code == 0
    state = Path("r/state/state.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = cli("train", "resume=r", "steps=4", *common)
    assert answer.code == 3 and not list(Path("r").rglob("*.part"))
    assert Path("r/state/state.safetensors").read_bytes() == state
    assert cli("train", "resume=r", "steps=4", *common).code == 0


def test_a_loss_that_is_not_finite_names_the_samples(cli: Any) -> None:
    answer = cli("train", "lenet/5", "data=digits", "steps=60", "lr=1e5", "kind=sgd", "clip=null", "evaluate_every=0", "test=false",
                 "quiet=true", "out=r")  # fmt: skip
    assert (
        answer.code == 3
        and "the loss is not finite at step" in answer.sentence
        and "samples of the batch: digit" in answer.sentence
    )


def test_a_disk_that_is_full_for_the_state_only(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from opticus.training import state

    def failing(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", failing)
    answer = cli("train", "lenet/5", "data=digits", "steps=1", "out=r", "evaluate_every=0", "test=false", "quiet=true")
    assert answer.code == 3 and "state.safetensors: cannot be written" in answer.sentence and "No space left" in answer.sentence


@pytest.mark.parametrize("damage", ["args.json", "state/state.safetensors"])
def test_a_damaged_run_is_named(cli: Any, damage: str) -> None:
    common = ("evaluate_every=0", "test=false", "quiet=true")
    assert cli("train", "lenet/5", "data=digits", "steps=1", "out=r", *common).code == 0
    Path("r", damage).write_bytes(b"{ broken")
    answer = cli("train", "resume=r", "steps=2", *common)
    assert answer.code == 3 and damage in answer.sentence
    if damage == "args.json":
        assert cli("report", "r").code == 3
        assert cli("verify", "resume", "r").code == 3


def test_a_run_is_not_resumed_as_another_model(cli: Any) -> None:
    common = ("evaluate_every=0", "test=false", "quiet=true")
    assert cli("train", "lenet/5", "data=digits", "steps=1", "out=r", *common).code == 0
    answer = cli("train", "resnet/tiny", "data=digits", "resume=r", "steps=2", *common)
    assert answer.code == 3 and "r: its state does not fit this model and recipe" in answer.sentence


def test_a_pickle_is_never_executed(corner: Any) -> None:
    for words in (("identify", "evil.pth"), ("predict", "evil.pth", "x.png"), ("info", "lenet/5", "weights=evil.pth")):
        assert corner(*words).code == 3
    assert not Path("pwned").exists()


def test_a_pickle_in_a_data_set_is_never_executed(corner: Any) -> None:
    import pickle

    Path("c").mkdir()
    Path("c/data_batch_1").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [0]}))
    for words in (("doctor", "c"), ("train", "lenet/5", "data=c", "steps=1")):
        answer = corner(*words)
        assert answer.code in (1, 3) and "data_batch_1" in answer.out + answer.err
    assert not Path("pwned").exists() and not Path("runs").exists()


def test_a_bomb_or_a_torn_picture_in_a_data_set_is_named(cli: Any, trained: Path) -> None:
    for split in ("train", "test"):
        for name in map(str, range(10)):
            Path("d", split, name).mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), 20 * int(name), np.uint8)).save(f"d/{split}/{name}/x.png")
    Path("d/test/3/x.png").write_bytes(bomb())
    Path("d/train/4/x.png").write_bytes(Path("d/train/5/x.png").read_bytes()[:-30])
    answer = cli("doctor", "d", "quarantine=q.csv", "--json")
    found = json.loads(answer.out)
    assert answer.code == 1 and found["errors"] >= 2
    assert sum("x.png" in line for line in Path("q.csv").read_text().splitlines()) >= 2
    answer = cli("val", trained, "data=d", "quiet=true")
    assert answer.code == 3 and "x.png" in answer.sentence and "budget" in answer.sentence
    answer = cli("train", "lenet/5", "data=d", "steps=9", "batch=10", "evaluate_every=0", "test=false", "quiet=true", "out=r")
    assert answer.code == 3 and "x.png" in answer.sentence


def test_data_without_samples_of_a_split(cli: Any) -> None:
    Path("d/train/cat").mkdir(parents=True)
    Path("d/train/dog").mkdir()
    answer = cli("train", "lenet/5", "data=d", "steps=1", "out=r")
    assert answer.code == 3 and not Path("r").exists()


def test_wrong_labels_of_a_run_are_named(cli: Any, trained: Path) -> None:
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            Path("d", split, name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"d/{split}/{name}/x.png")
    answer = cli("val", trained, "data=d", "quiet=true")
    assert answer.code == 2 and "lenet/5 does not know the data set's classes 'cat', 'dog'" in answer.sentence


def test_a_head_of_another_size_says_what_to_pass(cli: Any, trained: Path) -> None:
    import opticus
    from opticus.structures import WeightsError

    with pytest.raises(WeightsError) as error:
        opticus.load(trained, classes=7)
    assert "pass classes=10 to keep the file's head" in str(error.value)


def test_debug_shows_the_traceback(cli: Any) -> None:
    from opticus.structures import DataError

    with pytest.raises(DataError):
        main(["doctor", "nowhere", "--debug"])


def test_json_of_an_error_stays_off_stdout(cli: Any) -> None:
    answer = cli("info", "lenet/6", "--json")
    assert answer.out == "" and answer.code == 2
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answer.out)
