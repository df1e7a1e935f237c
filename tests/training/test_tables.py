"""The stored tables: the page is what the stored figures make, the verdicts follow from the figures, a budget ends a training softly."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from opticus import zoo
from opticus.recipes.budgeted import Budget

FILE = Path(__file__).parents[2] / "tools" / "make_tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("make_tables", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_tables"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated_from_the_stored_figures(tables):
    assert tables.PAGE.read_text() == tables.page(tables.stored())


def test_stored_verdicts_follow_from_the_figures(tables):
    rows = tables.stored()
    assert {"lenet-5-digits", "resnet-tiny-crops"} <= {row["name"] for row in rows} <= {row.name for row in tables.ROWS}
    for row in rows:
        value = row["values"][row["figure"]]
        for one in row["baselines"]:
            start = one["values"][row["figure"]]
            assert one["difference"] == pytest.approx(value - start, abs=2e-4)
            assert one["closed"] == pytest.approx((value - start) / (1 - start), abs=5e-4)
            assert one["clear"] == (one["interval"][0] > 0 and one["closed"] >= tables.SHARE)
        assert row["clear"] == (all(one["clear"] for one in row["baselines"]) and row["steps"] >= row["planned"])
        changes = {**row["recipe"]["changes"], "classes": len(row["protocol"]["classes"])}  # as the run made its network
        assert row["parameters"] == sum(p.numel() for p in zoo.create(row["model"], **changes).parameters())
        assert tables.verdict(row) in tables.page([row])


def test_a_run_of_another_recipe_is_recognised(tables, tmp_path):
    recipe = tables.recipe_of(tables.ROWS[0])
    (tmp_path / "args.json").write_text(tables.json.dumps({"recipe": tables.to_json(recipe)}))
    assert not tables.unlike(tmp_path, recipe)
    assert not tables.unlike(tmp_path, tables.replace(recipe, workers=3, note="elsewhere"))
    assert tables.unlike(tmp_path, tables.replace(recipe, batch=32))


def test_seconds_are_added_over_sittings(tables, tmp_path):
    (tmp_path / "results.csv").write_text("step,seconds\n1,5\n2,10\n3,4\n4,6\n")
    assert tables.seconds_of(tmp_path) == 16


def test_the_budget_ends_a_training_only(tables):
    """Outside a training loop the alarm passes; inside, the loop's own handler is told."""
    told = []
    with Budget(time.monotonic() + 0.05):
        time.sleep(0.1)
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(os.getpid()))
    try:
        with Budget(time.monotonic() + 0.05):
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [os.getpid()]
