from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.cli.main import FAULT, main
from opticus.parity.fill import picture


class Answer(NamedTuple):
    """What a command said and returned."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What is left of stderr without progress bars."""
        return self.err.rpartition("\r")[2].strip()


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command in an empty folder of its own; no answer may be a traceback or a fault of opticus."""
    home = tmp_path / "home"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("OPTICUS_HOME", str(home))
    monkeypatch.chdir(work)

    def run(*words: Any) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        answer = Answer(code, *capsys.readouterr())
        assert code in (0, 1, 2, 3), answer
        assert "Traceback" not in answer.err and FAULT not in answer.err, answer.err
        if code in (2, 3):
            assert answer.sentence.startswith("opticus: "), answer
            assert answer.out == "", answer
        return answer

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small classifier."""
    out = tmp_path_factory.mktemp("trained") / "run"
    torch.manual_seed(0)
    assert main(["train", "lenet/5", "data=digits", "steps=20", "evaluate_every=0", "quiet=true", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture file."""
    file = tmp_path_factory.mktemp("pictures") / "street.png"
    Image.fromarray(picture(60, 80, 3)).save(file)
    return file


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in a real format."""
    folder = tmp_path_factory.mktemp("data") / "coco"
    assert main(["export-data", "scenes", "coco", str(folder), "limit=3"]) == 0
    return folder


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """A path that no user may write: it lies below a file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "sub"


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
