"""Found objects by size and crowding against a count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from opticus.cli.main import main
from opticus.metrics.breakdown import breakdown
from opticus.metrics.detect import CocoDetection
from opticus.structures import Instances


def metric() -> CocoDetection:
    """Two pictures: a small object alone that is found; a pair that overlaps, one found, one called by another class."""
    out = CocoDetection(("cat", "dog"))
    small, none = torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)
    out.update(
        Instances(small + 1, torch.tensor([0]), (200, 200), torch.tensor([0.9])),
        Instances(small, torch.tensor([0]), (200, 200)),
        "1",
    )
    pair = torch.tensor([[0.0, 0, 100, 100], [50, 0, 150, 100]])
    found = Instances(pair, torch.tensor([0, 0]), (200, 200), torch.tensor([0.9, 0.8]))
    out.update(found, Instances(pair, torch.tensor([0, 1]), (200, 200)), "2")
    crowd = Instances(small, torch.tensor([1]), (200, 200), crowd=torch.tensor([True]))
    out.update(Instances(none, torch.zeros(0, dtype=torch.long), (200, 200), torch.zeros(0)), crowd, "3")
    return out


def test_groups_are_counted_by_hand() -> None:
    rows = {(row["by"], row["group"]): (row["found"], row["objects"]) for row in breakdown(metric()).rows()}
    assert rows == {
        ("size", "small"): (1, 1),
        ("size", "large"): (1, 2),
        ("IoU with a neighbour", "alone"): (1, 1),
        ("IoU with a neighbour", "crowded"): (1, 2),  # 50 / 150 of each other
        ("company", "1 object"): (1, 1),
        ("company", "2 to 3 objects"): (1, 2),
    }


def test_thresholds_count_and_nothing_is_found_by_nobody() -> None:
    strict = breakdown(metric(), score=0.95)
    assert sum(share.found for share in strict.shares) == 0 and "0 of 1" in strict.text()
    assert breakdown(metric(), iou=0.9).shares[0].found == 0  # (81 / 119 of the small one)
    assert not breakdown(CocoDetection(("cat",))).shares


def test_the_command_line_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 50, "height": 50}]
    truth = {"images": images, "categories": [{"id": 3, "name": "cat"}],
             "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}]}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": [5, 5, 10, 9], "score": 0.7}]))
    words = ["val", f"results={tmp_path / 'found.json'}", f"data={tmp_path / 'truth.json'}", "breakdown=true", "json=true"]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"by": "size", "group": "small", "objects": 1, "found": 1, "recall": 1.0} in record["breakdown"]["groups"]
