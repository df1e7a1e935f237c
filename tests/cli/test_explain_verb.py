"""`opticus explain` on the command line: words, keys, JSON, and sentences for what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from opticus.cli.explain import COMMON, Explain
from opticus.verbs.explain import KINDS, options_of


def test_every_option_of_every_kind_is_a_key_and_no_key_is_unknown_to_all() -> None:
    keys = {field.name for field in dataclasses.fields(Explain)} - set(COMMON)
    assert keys == {name for kind in KINDS for name in options_of(kind)}
    assert all(kind in (Explain.__doc__ or "") for kind in KINDS)


def test_numbers_takes_a_picture_as_its_first_word(cli: Any, street: Path) -> None:
    answer = cli("explain", "numbers", street, "size=8", "--json")
    record = json.loads(answer.out)
    assert answer.code == 0 and record["kind"] == "numbers" and Path("runs/explain/pictures/numbers.png").is_file()
    assert {record["png"], record["page"], record["json"]} == {
        f"runs/explain/pictures/numbers.{e}" for e in ("png", "html", "json")
    }


def test_a_trained_model_on_a_picture_and_on_data(cli: Any, trained: Path, street: Path) -> None:
    answer = cli("explain", "filters", trained)
    assert answer.code == 0 and "picture: runs/explain/lenet-5/filters.png" in answer.out and "random" not in answer.out
    answer = cli("explain", "activations", trained, "data=digits", "limit=20", "layer=c1", "units=0,3", "out=found")
    assert answer.code == 0 and [
        one["map"] for one in json.loads(Path("found/activations.json").read_text())["numbers"]["units"]
    ] == [0, 3]
    answer = cli("explain", "receptive-field", trained, street, "layer=c3", "cell=2,4", "limit=2")
    numbers = json.loads(Path("runs/explain/lenet-5/receptive-field.json").read_text())["numbers"]
    assert answer.code == 0 and numbers["cell"] == [2, 4] and numbers["window"] == [8, 4, 22, 18]


def test_two_models_share_a_surface(cli: Any, trained: Path) -> None:
    answer = cli("explain", "surface", trained, "beside=lenet/5", "data=digits", "limit=4", "steps=3", "out=found")
    models = json.loads(Path("found/surface.json").read_text())["numbers"]["models"]
    assert answer.code == 0 and [one["name"] for one in models] == ["lenet/5 (run)", "lenet/5 (random weights)"]


WRONG: list[tuple[str, int, str]] = [
    ("explain", 2, "needs KIND"),
    ("explain gradcan resnet/tiny {pic}", 2, "unknown kind of explanation 'gradcan'; did you mean 'gradcam'"),
    ("explain gradcam", 2, "explain gradcam needs a model"),
    ("explain gradcam resnet/tiny", 2, "needs a picture or data="),
    ("explain gradcam resnet/tiny nowhere.png", 3, "nowhere.png: no such file or folder"),
    ("explain gradcam resnet/tiny {run}/args.json", 3, "args.json: not an image"),
    ("explain gradcam {run} {pic}", 2, "lenet/5 cannot do Grad-CAM: it has no features()"),
    ("explain gradcam resnet/tiny {pic} {pic}", 2, "takes 3 words (KIND, MODEL, SOURCE), found 4"),
    ("explain gradcam resnet/tiny {pic} layer=layer9", 2, "unknown layer of resnet/tiny 'layer9'; did you mean 'layer"),
    ("explain gradcam resnet/tiny {pic} label=dog", 2, "unknown label 'dog'"),
    ("explain gradcam resnet/tiny {pic} limit=no", 2, "limit must be a whole number, found 'no'"),
    ("explain gradcam resnet/tiny {pic} k=3", 2, "unknown option of explain gradcam 'k'"),
    ("explain gradcam resnet/tiny {pic} out={pic}", 3, "cannot be written"),
    ("explain attention {run} {pic}", 2, "lenet/5 has no attention modules"),
    ("explain templates {run}", 2, "lenet/5 has no class templates"),
    ("explain neighbours data=digits norm=l7", 2, "unknown value of opticus explain's norm 'l7'"),
    ("explain neighbours data=nowhere", 3, "neither an embedded data set"),
    ("explain surface {run} data=scenes limit=2 steps=3", 3, "classification needs a target of type Classes"),
    ("explain tsne {run} data=digits weights=x.pth", 3, "x.pth"),
    ("explain filters runs/nowhere", 3, "no such run folder or weights file"),
    ("explain numbers {pic} seed=x", 2, "seed must be a whole number"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), WRONG)
def test_wrong_words(cli: Any, trained: Path, street: Path, words: str, code: int, sentence: str) -> None:
    answer = cli(*(word.format(run=trained, pic=street) for word in words.split()))
    assert answer.code == code and sentence in answer.sentence, answer
    assert not Path("runs").exists()
