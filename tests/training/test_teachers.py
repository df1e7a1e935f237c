"""Training with a teacher: from every kind of source, mapped by class names, resumed bit by bit, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import opticus
from opticus import zoo
from opticus.cli.main import main
from opticus.data.open import open_data
from opticus.data.subset import Samples, few
from opticus.structures import DataError, Sample, TrainError, UsageError
from opticus.training.state import FILE, load_state
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import Resize
from opticus.verbs.models import Card
from opticus.verbs.teach import Teaching, columns_of
from opticus.verbs.verify import differences, verify_resume

TINY: dict[str, Any] = {"depth": 1, "width": 24, "heads": 2, "patch": 16}
QUICK: dict[str, Any] = {"evaluate_every": 0, "test": False, "quiet": True, "workers": 0, "batch": 16}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    opticus.train("lenet/5", "digits", out=folder, steps=60, **QUICK)
    return folder


def test_killed_distillation_ends_bit_equal(teacher: Path, tmp_path: Path) -> None:
    """Trained at once, and killed (SIGKILL) and resumed from its folder alone, the student's state is equal bit by bit."""
    run = tmp_path / "run"
    opticus.train("deit/tiny", "digits", out=run, teacher=teacher, distill="soft", temperature=2.0, steps=2, **TINY, **QUICK)
    found = verify_resume(run, 8, kills=1)
    assert found.equal, found.different
    assert found.tensors > 40


class Breaks:
    """A transform that fails after so many samples."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the power went out")
        return sample


def test_a_run_with_a_teacher_object_goes_on_bit_equal_when_it_is_given_again(teacher: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"teacher": opticus.load(teacher), "distill": "hard", "steps": 6, "save_every": 2, **TINY, **QUICK}
    fixed = Resize((32, 32))
    opticus.train("deit/tiny", "digits", out=tmp_path / "whole", transforms=(fixed,), **words)
    with pytest.raises(RuntimeError, match="the power went out"):
        opticus.train("deit/tiny", "digits", out=tmp_path / "broken", transforms=(fixed, Breaks(3 * 16)), **words)
    assert load_state(tmp_path / "broken")["step"] == 2
    with pytest.raises(UsageError, match=r"distilled from a model object .lenet/5.*give teacher= again"):
        opticus.train(resume=tmp_path / "broken", test=False)
    opticus.train("deit/tiny", "digits", out=tmp_path / "broken", resume=True, transforms=(fixed,), **words)
    count, different = differences(load_state(tmp_path / "whole"), load_state(tmp_path / "broken"))
    assert count > 40 and different == []


def test_no_file_of_the_run_holds_the_teacher(teacher: Path, tmp_path: Path) -> None:
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    opticus.train("deit/tiny", "digits", out=plain, steps=2, **TINY, **QUICK)
    run = opticus.train("deit/tiny", "digits", out=taught, teacher=teacher, steps=2, **TINY, **QUICK)
    with (
        safe_open(plain / "weights" / "last.safetensors", "pt") as one,
        safe_open(run.out / "weights" / "last.safetensors", "pt") as two,
    ):
        assert set(one.keys()) == set(two.keys())
    sizes = [(folder / "state" / FILE).stat().st_size for folder in (plain, taught)]
    assert abs(sizes[1] - sizes[0]) < 2000, "the state holds a digest and settings, no weights of the teacher"
    assert set(load_state(taught)["objective"]) - set(load_state(plain)["objective"]) == {"_extra_state"}
    provenance = opticus.load(taught).card.provenance["teacher"]
    assert provenance["name"] == "lenet/5" and len(provenance["digest"]) == 64
    assert "train/teacher" in (taught / "results.csv").read_text().splitlines()[0]


def test_resume_refuses_another_teacher_settings_or_none(teacher: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    words: dict[str, Any] = {"out": run, **TINY, **QUICK}
    opticus.train("deit/tiny", "digits", teacher=teacher, steps=2, **words)
    opticus.train("lenet/5", "digits", out=other, steps=2, **QUICK)
    with pytest.raises(TrainError, match="another teacher"):
        opticus.train("deit/tiny", "digits", teacher=other, steps=4, resume=True, **words)
    with pytest.raises(TrainError, match="distill=hard, now distill=soft"):
        opticus.train("deit/tiny", "digits", teacher=teacher, distill="soft", steps=4, resume=True, **words)
    with pytest.raises(TrainError, match="does not fit"):
        opticus.train("deit/tiny", "digits", steps=4, resume=True, **words)
    again = opticus.train("deit/tiny", "digits", teacher=teacher, steps=4, resume=True, **words)
    assert again.outcome.steps == 4


@pytest.mark.parametrize("student", ["lenet/5", "resnet/tiny", "vit/tiny"])
def test_any_classifier_is_a_student(student: str, teacher: Path, tmp_path: Path) -> None:
    run = opticus.train(student, "digits", out=tmp_path / "run", teacher=str(teacher), distill="soft", steps=1, **QUICK)
    header = (run.out / "results.csv").read_text().splitlines()[0]
    assert "train/classify" in header and "train/teacher" in header


def test_a_teacher_object_stays_as_it_is(teacher: Path, tmp_path: Path) -> None:
    model = opticus.load(teacher).train()
    opticus.train("lenet/5", "digits", out=tmp_path / "run", teacher=model, steps=1, **QUICK)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert json.loads((tmp_path / "run" / "args.json").read_text())["overrides"]["teacher"] == {"object": "lenet/5"}


def test_the_student_learns_what_the_teacher_says(teacher: Path, tmp_path: Path) -> None:
    """With share=1 no true label enters: the student still comes to agree with its teacher."""
    run = opticus.train(
        "lenet/5", "digits", out=tmp_path / "run", teacher=teacher, distill="soft", share=1.0, steps=80, seed=3, **QUICK
    )
    test = open_data("digits", "test")
    pictures = [test[i].picture for i in range(100)]
    first, second = ([int(found.labels[0]) for found in model.predict(pictures)] for model in (run.model, opticus.load(teacher)))
    assert sum(a == b for a, b in zip(first, second)) > 70


def test_command_line(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "deit/tiny", "data=digits", f"teacher={teacher}", "distill=soft", "temperature=4", "share=0.3", "steps=1"]
    words += [f"out={tmp_path / 'run'}", *(f"{key}={value}" for key, value in TINY.items()), "evaluate_every=0", "quiet=true"]
    assert main(words) == 0
    assert "top1" in capsys.readouterr().out
    assert load_state(tmp_path / "run")["objective"]["_extra_state"] == {
        "teacher": opticus.load(tmp_path / "run").card.provenance["teacher"]["digest"],
        "distill": "soft",
        "share": 0.3,
        "temperature": 4.0,
    }
    for word, said in (
        ("teacher=runs/nothing", "teacher='runs/nothing': runs/nothing: no such run folder"),
        ("teacher=resnt/50", "did you mean"),
        ("teacher=resnet/50", "needs a file or a tag"),
        ("distill=soft", "needs a teacher"),
        ("techer=x", "did you mean 'teacher'"),
    ):
        assert main(["train", "deit/tiny", "data=digits", word, f"out={tmp_path / 'none'}"]) == 2, word
        assert said in capsys.readouterr().err, word
    assert main(["train", "deit/tiny", "data=digits", f"teacher={teacher}", "distill=warm", f"out={tmp_path / 'none'}"]) == 2
    assert "unknown kind of distillation (distill) 'warm'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_teachers_that_do_not_fit_are_named(teacher: Path, tmp_path: Path) -> None:
    def attempt(**words: Any) -> None:
        opticus.train("deit/tiny", "digits", out=tmp_path / "none", steps=1, **words, **TINY, **QUICK)

    with pytest.raises(UsageError, match="the teacher centernet/tiny does detect; a teacher is a classifier"):
        attempt(teacher=opticus.create("centernet/tiny"))
    with pytest.raises(UsageError, match="made by opticus"):
        attempt(teacher=torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="teacher must be a run folder"):
        attempt(teacher=7)
    with pytest.raises(UsageError, match="7 classes without names, the data has 10"):
        attempt(teacher=opticus.create("resnet/tiny", classes=7))
    stranger = opticus.load(teacher)
    stranger.card.labels = ("cat", *stranger.card.labels[1:])
    with pytest.raises(UsageError, match=r"cannot teach this data: .*does not know the data set's classes '0'"):
        attempt(teacher=stranger)
    with pytest.raises(UsageError, match="temperature must be greater than 0"):
        attempt(teacher=teacher, distill="soft", temperature=0)
    with pytest.raises(UsageError, match="cannot be distilled"):
        opticus.train("centernet/tiny", "scenes", out=tmp_path / "none", teacher=teacher, steps=1, quiet=True)
    assert not (tmp_path / "none").exists()


def test_classes_are_matched_by_name(teacher: Path) -> None:
    model = opticus.load(teacher)
    names = tuple("0123456789")
    assert columns_of(model, names) is None
    assert columns_of(model, names[::-1]) == list(range(9, -1, -1))
    assert columns_of(model, ("7", "2")) == [7, 2]
    model.card = Card("lenet/5", "classify", labels=("a", "b", "a"), own=True)
    with pytest.raises(UsageError, match="several outputs for the class 'a'"):
        columns_of(model, ("b", "a"))


def test_a_teacher_with_its_classes_in_another_order_says_the_same(teacher: Path) -> None:
    """The rows of its last layer and its names are permuted together: the student must not notice."""
    model, moved = opticus.load(teacher), opticus.load(teacher)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    last = next(module for module in moved.modules() if isinstance(module, nn.Linear) and module.out_features == 10)
    with torch.no_grad():
        for tensor in last.parameters():
            tensor.copy_(tensor[order].clone())
    moved.card.labels = tuple(model.card.labels[i] for i in order)
    student = opticus.create("lenet/5")
    base = zoo.paper("lenet").objective(student)
    pixels = torch.randn(4, 1, 32, 32)
    one, two = (Teaching(which).objective(base, student, tuple("0123456789")).says(pixels) for which in (model, moved))
    torch.testing.assert_close(one, two)
    assert float(one.std()) > 0.1


# --- few pictures ----------------------------------------------------------------------------------------------------------


def test_few_takes_as_many_of_every_class() -> None:
    data = open_data("digits", "train")
    chosen = few(data, 7, seed=2)
    labels = torch.cat([chosen.target_of(i).labels for i in range(len(chosen))])
    assert torch.bincount(labels).tolist() == [7] * 10
    assert len({chosen.id_of(i) for i in range(len(chosen))}) == 70
    assert few(data, 7, seed=2).hash == chosen.hash != few(data, 7, seed=3).hash
    assert set(few(data, 3, seed=2).indices) < set(chosen.indices), "more pictures are the same ones and others"
    held = Samples(chosen, names=data.names)
    assert held.names == data.names and len(held) == 70
    with pytest.raises(DataError, match="fewer than 1000"):
        few(data, 1000)
    with pytest.raises(UsageError, match="per_class must be at least 1"):
        few(data, 0)
    with pytest.raises(DataError, match="one label each"):
        few(open_data("scenes", "val"), 1)
