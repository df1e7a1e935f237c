"""From dense answers to results: levels, thresholds, the best of a level, windows, suppression."""

from __future__ import annotations

import pytest
import torch

from opticus.matching.detections import best_of, in_original, level_sizes, pyramid_maps, suppressed, windows
from opticus.structures import CapabilityError, Images


class Maps:
    """A backbone as far as its shape is looked at."""

    def __init__(self, *strides: int) -> None:
        self.strides, self.widths = strides, tuple(8 * stride for stride in strides)

    def features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return []  # nothing here looks at values


def images(valid: torch.Tensor | None, height: int = 12, width: int = 20) -> Images:
    eye = torch.eye(3, dtype=torch.float64)
    return Images(torch.zeros(2, 3, height, width), valid, torch.stack([eye, eye]), ((height, width),) * 2)


def test_a_pyramid_stands_on_the_last_map_of_every_stride() -> None:
    assert pyramid_maps(Maps(2, 4, 8, 16, 32), 8, "x") == (2, 3, 4)
    assert pyramid_maps(Maps(4, 8, 8, 16, 16), 8, "x") == (2, 4)
    assert pyramid_maps(Maps(16), 8, "x") == (0,)
    with pytest.raises(CapabilityError, match=r"x: expected a backbone with a map of stride 8 or coarser, found \(2, 4\)"):
        pyramid_maps(Maps(2, 4), 8, "x")


def test_level_sizes_are_those_of_strided_convolutions() -> None:
    assert level_sizes((800, 1344), (8, 16, 32), 2) == ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    x = torch.zeros(1, 1, 25, 42)
    for size in level_sizes((800, 1344), (32,), 2)[1:]:
        x = torch.nn.functional.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
        assert tuple(x.shape[-2:]) == size


def test_windows_are_the_true_part_of_the_mask() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    assert windows(images(None), like).tolist() == [[0, 0, 20, 12]] * 2
    valid = torch.zeros(2, 12, 20, dtype=torch.bool)
    valid[0, 3:9, :] = True  # bars above and below
    valid[1, :7, :15] = True  # padding at the right and bottom
    found = windows(images(valid), like)
    assert found.tolist() == [[0, 3, 20, 9], [0, 0, 15, 7]] and found.dtype == torch.float64


def test_best_of_keeps_the_highest_of_all_classes() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.05], [0.7, 0.8]])
    found = best_of(scores, 0.5, 10)
    assert found.places.tolist() == [0, 2, 2] and found.labels.tolist() == [1, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7]), "0.5 itself is not above 0.5"
    assert best_of(scores, 0.0, 2).places.tolist() == [0, 2]
    assert [len(part) for part in best_of(scores, 0.95, 10)] == [0, 0, 0]


def test_suppression_is_per_class_and_inside_the_window() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [-5, -5, 4, 4], [30, 0, 40, 5], [0, 12, 9, 20]])
    labels, scores = torch.tensor([0, 0, 1, 2, 0, 0]), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.5])
    window = torch.tensor([0.0, 0, 20, 11])
    kept, classes, best = suppressed(boxes, labels, scores, window, overlap=0.5, count=10)
    assert kept.tolist() == [[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 4, 4]], "two lie outside, one is a double"
    assert classes.tolist() == [0, 1, 2] and best.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert len(suppressed(boxes, labels, scores, window, overlap=0.5, count=2)[0]) == 2
    assert len(suppressed(boxes[:0], labels[:0], scores[:0], window, overlap=0.5, count=2)[0]) == 0


def test_results_are_in_original_pixels_and_inside() -> None:
    scale = torch.tensor([[0.5, 0, 4], [0, 0.25, 0], [0, 0, 1]], dtype=torch.float64)
    view = images(None)._replace(to_input=torch.stack([scale, scale]), sizes=((40, 30), (40, 30)))
    found = in_original(
        torch.tensor([[5.0, 1, 10, 6], [5, 1, 19.5, 11]]).double(), torch.tensor([1, 2]), torch.ones(2).double(), view, 1
    )
    assert found.boxes.tolist() == [[2, 4, 12, 24], [2, 4, 30, 40]]
    assert found.size == (40, 30) and found.boxes.dtype == torch.float32 and found.scores is not None
