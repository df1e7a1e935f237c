"""The README's examples run as they stand there; only blocks marked `<!-- not run -->` are left out."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<mark><!-- not run -->\s*\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def blocks(file: Path) -> list[tuple[str, bool]]:
    """(code, whether it is run) of every Python block."""
    return [(found["code"], found["mark"] is None) for found in BLOCK.finditer(file.read_text("utf-8"))]


EXAMPLES = blocks(ROOT / "README.md")
RUN = [code for code, run in EXAMPLES if run]


def test_there_are_examples_and_most_are_run() -> None:
    assert len(RUN) >= 2
    assert len(RUN) >= len(EXAMPLES) - 1


@pytest.mark.parametrize("code", RUN, ids=[f"block {i}" for i in range(len(RUN))])
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", [code for code, run in EXAMPLES if not run])
def test_examples_that_are_not_run_are_at_least_python(code: str) -> None:
    compile(code, "README.md", "exec")


def test_the_readmes_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `opticus VERB ...` line of the README is a command that the command line accepts."""
    from opticus.cli.commands import COMMANDS
    from opticus.cli.main import parse

    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text("utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("opticus ")]
    commands = [command.split() for line in lines for command in line.split(";")]
    assert len(commands) >= 8
    for _, verb, *words in commands:
        parse(verb, COMMANDS[verb], [word.strip('"') for word in words])


def test_links_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
