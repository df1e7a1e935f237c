"""`opticus.info` of every detector: those that choose regions by their values are counted too."""

from __future__ import annotations

from typing import Any

import pytest

from opticus import zoo
from opticus.verbs.info import info

NAMES = [f"{stem}/tiny" for stem in zoo.paper_files() if zoo.paper(stem).TASK == "detect" and "tiny" in zoo.paper(stem).VARIANTS]


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_detector(name: str) -> None:
    found = info(name, size=128)
    assert found.parameters > 10_000 and found.flops > 1_000_000 and found.layers and found.formats


def test_regions_cost_what_they_cost() -> None:
    few, many = (info(_with(count)).flops for count in (10, 300))
    assert many > 5 * few


def _with(count: int) -> Any:
    import opticus

    return opticus.create("rcnn/tiny", proposals=count)
