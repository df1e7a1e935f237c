"""docs/zoo.md says what the paper files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from opticus import zoo

TOOL = Path(__file__).parents[1] / "tools" / "make_zoo.py"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_zoo", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    made = tool()
    written = made.PAGE.read_text("utf-8")
    assert written == made.page(), "docs/zoo.md is out of date; `make docs` writes it"
    assert all(f"\n## {paper}\n" in written for paper in zoo.paper_files())


def test_a_status_needs_its_evidence() -> None:
    made = tool()
    record = {"reference": {"kind": "package"}}
    assert made.status(record, [{"model": "x/y"}]) == "trained"
    assert made.status(record, []) == "parity"
    assert made.status({"reference": {"kind": "transcription"}}, []) == "transcribed"
    assert made.status({}, []) == "loads"
