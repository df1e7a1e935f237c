"""The command line under random words: an answer within its four exit codes, never a traceback, never a hang."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticus.cli.commands import COMMANDS
from opticus.cli.main import FAULT, main

FIELDS = sorted({field.name for command in COMMANDS.values() for field in dataclasses.fields(command)} - {"more"})
CHEAP = ("models", "identify", "doctor", "compare", "report", "info")  # run for real, on names that lead nowhere expensive
NAMES = ("lenet/5", "lenet", "resnet/18", "resnet/18:imagenet1k_v9", "nothing/1", "vit/b16:", "/", ":", "detr/", "/5", "lenet/5:x")
PATHS = (
    "nowhere",
    "empty",
    "text.txt",
    "broken.pth",
    "broken.json",
    ".",
    "..",
    "text.txt/below",
    "~nobody/x",
    "digitz",
    "\x00",
    "a\nb",
)
VALUES = (
    "0",
    "-1",
    "1",
    "7",
    "1e9",
    "nan",
    "inf",
    "true",
    "null",
    "[1,2]",
    '{"a":1}',
    "'",
    '"',
    "=",
    "",
    "é✓",
    "None",
    "1,2,,3",
    "--",
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUE = st.one_of(st.sampled_from((*NAMES, *PATHS, *VALUES)), TEXT)
KEY = st.one_of(st.sampled_from(FIELDS), st.sampled_from(FIELDS).map(lambda k: k[:-1] + "x"), TEXT)
WORD = st.one_of(
    VALUE,
    st.builds("{}={}".format, KEY, VALUE),
    st.builds("--{}={}".format, KEY, VALUE),
    st.builds("--{}".format, KEY),
    st.builds("--no-{}".format, KEY),
    st.sampled_from(("-h", "--help", "--json", "-", "--", "---", "=", "json=", "--=")),
)
WORDS = st.lists(WORD, max_size=6)


@pytest.fixture(scope="module", autouse=True)
def corner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with little in it, and no way to work long."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("text")
    (folder / "broken.pth").write_bytes(b"PK\x03\x04 broken")
    (folder / "broken.json").write_text("{")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def answer(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def check(words: list[str]) -> None:
    code, out, err = answer(words)
    assert code in (0, 1, 2, 3), words
    assert "Traceback" not in err and FAULT not in err, (words, err)
    if code in (2, 3):
        assert "opticus: " in err and out == "", (words, out, err)
    else:
        assert out, words


@settings(max_examples=120)
@given(st.one_of(st.sampled_from(sorted(COMMANDS)), TEXT), WORDS)
def test_parsing_never_fails_otherwise_than_by_a_sentence(verb: str, words: list[str]) -> None:
    """Every verb, its work replaced by nothing."""

    def idle(self: Any) -> int:
        print("{}")
        return 0

    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS.values():
            patch.setattr(command, "run", idle)
        check([verb, *words])


@settings(max_examples=60)
@given(st.sampled_from(CHEAP), st.lists(st.sampled_from((*NAMES, *PATHS)), max_size=2), WORDS.map(lambda words: words[:2]))
def test_cheap_verbs_at_work(verb: str, names: list[str], words: list[str]) -> None:
    check([verb, *names, *[word for word in words if "size" not in word]])


@settings(max_examples=60)
@given(
    st.sampled_from(("train", "val", "predict", "export-data", "verify", "demo")),
    st.lists(st.sampled_from([*PATHS, *NAMES[1:]]), max_size=2),
    WORDS.map(lambda words: words[:3]),
)
def test_heavy_verbs_refuse_what_is_not_there(verb: str, names: list[str], words: list[str]) -> None:
    """No word here is a model with weights or a data set, so whatever is asked ends before any work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opticus.recipes.demo.demo", _refuse)
        check([verb, *names, *words])


@settings(max_examples=60)
@given(st.lists(st.builds("{}={}".format, st.sampled_from(
    ("batch", "steps", "epochs", "lr", "seed", "workers", "average", "betas", "kind", "precision", "options", "transforms", "metric",
     "clip", "patience", "device", "classes", "channels", "accumulate", "momentum", "evaluate_every", "log_every", "nesterov")
), VALUE), min_size=1, max_size=3))  # fmt: skip
def test_settings_of_training_are_checked_before_any_step(words: list[str]) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        from opticus.structures import TrainError

        raise TrainError("the loop was reached")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opticus.verbs.train._run", stop)
        check(["train", "lenet/5", "data=digits", "out=run", *words])


def _refuse(*_: Any, **__: Any) -> Any:
    from opticus.structures import TrainError

    raise TrainError("not in a test")
