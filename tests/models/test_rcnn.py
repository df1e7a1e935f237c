"""R-CNN (1311.2524) and SPP-net (1406.4729): corrections, warping, the pyramid's cells, and the table that the last layers are solved from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import opticus
from opticus.matching.described import Table
from opticus.matching.objects import Objects
from opticus.models.detection.rcnn import Head, solve_boxes, solve_scores, warp
from opticus.models.detection.sppnet import cells
from opticus.ops.boxes import decode_boxes, encode_boxes
from opticus.structures import UsageError

PROPOSAL = torch.tensor([[40.0, 20, 120, 80]])


@pytest.mark.parametrize(
    ("correction", "box"),
    [
        ((0.0, 0, 0, 0), (40.0, 20, 120, 80)),  # good
        ((0.25, 0, 0, 0), (60.0, 20, 140, 80)),  # it lay a quarter of its width too far left
    ],
)
def test_corrections_are_shares_of_the_proposal(correction: tuple[float, ...], box: tuple[float, ...]) -> None:
    torch.testing.assert_close(decode_boxes(torch.tensor([correction]), PROPOSAL), torch.tensor([box]))
    torch.testing.assert_close(encode_boxes(torch.tensor([box]), PROPOSAL), torch.tensor([correction]))


def test_a_proposal_that_is_too_wide_is_narrowed_about_its_middle() -> None:
    """(0, 0, -0.125, 0): an eighth too wide, to first order, since widths are corrected by an exponential."""
    found = decode_boxes(torch.tensor([[0.0, 0, -0.125, 0]]), PROPOSAL)[0]
    assert float(found[0] + found[2]) == pytest.approx(160) and found[1:4:2].tolist() == [20, 80]
    assert float(found[2] - found[0]) == pytest.approx(80 * 0.8825, rel=1e-3)


def test_a_box_warped_to_its_own_size_is_cut_out_and_what_lies_outside_is_the_mean() -> None:
    pixels = torch.randn(2, 3, 40, 50)
    found = warp(pixels, torch.tensor([[10.0, 5, 26, 21], [-8.0, 0, 8, 16]]), torch.tensor([1, 0]), 16, 0)
    torch.testing.assert_close(found[0], pixels[1, :, 5:21, 10:26], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1, :, :, 8:], pixels[0, :, :16, :8], atol=1e-4, rtol=1e-4)
    assert found[1, :, :, :7].abs().max() == 0
    around = warp(pixels, torch.tensor([[14.0, 9, 22, 17]]), torch.tensor([1]), 16, 4)
    torch.testing.assert_close(around[0], pixels[1, :, 5:21, 10:26], atol=1e-4, rtol=1e-4)


def test_a_region_has_the_cells_whose_middles_lie_in_it() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 8], [3.0, 2, 13, 11], [5.0, 5, 6, 6]])
    assert cells(boxes, 4).tolist() == [[0, 0, 3, 1], [1, 0, 2, 2], [1, 1, 1, 1]]


def _table(folder: Path, pictures: int = 30) -> Table:
    """Objects of two classes whose descriptions point two ways, and proposals beside them whose shift can be read off theirs."""
    draw = torch.Generator().manual_seed(0)
    table = Table(folder, {"a": 1})
    for i in range(table.pictures, pictures):
        truth = Objects(torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([i % 2]))
        shifts = torch.rand(6, 1, generator=draw) * 16 - 8
        near = truth.boxes + torch.cat([shifts, shifts * 0, shifts, shifts * 0], 1)
        proposals = torch.cat([near, torch.tensor([[80.0, 80, 120, 120]]).expand(4, 4)])
        kind = torch.tensor([[1.0, 0], [0, 1]])[i % 2]
        vectors = torch.cat([kind.expand(6, 2), torch.full((4, 2), -0.5), kind[None]])
        pooled = torch.cat([torch.cat([shifts, shifts * 0 + 1], 1), torch.zeros(5, 2)])
        table.add(proposals, truth, vectors, pooled)
    return table


def test_svms_and_regressors_are_solved_from_the_table(tmp_path: Path) -> None:
    table = _table(tmp_path).read()
    head = Head(2, 2, 2, 0.0)
    assert not head.solved
    solve_scores(head, table, cost=0.01)
    margins = head.svm(torch.tensor([[1.0, 0], [0, 1], [-0.5, -0.5]]))
    assert head.solved and margins.argmax(1)[:2].tolist() == [0, 1] and (margins[2] < margins[0, 0]).all()
    solve_boxes(head, table)
    shift = head.box(torch.tensor([[4.0, 1.0]])).unflatten(1, (-1, 4))[0, 0]
    assert -0.11 < float(shift[0]) < -0.02 and shift[1:].abs().max() < 1e-3


def test_a_killed_table_goes_on_and_another_passport_starts_anew(tmp_path: Path) -> None:
    whole = _table(tmp_path / "whole").read()
    _table(tmp_path / "cut", 12)
    with (tmp_path / "cut" / "boxes.flat").open("ab") as file:
        file.write(b"torn")
    part = Table(tmp_path / "cut", {"a": 1})
    assert part.pictures == 12
    again = part.read()
    assert (again.boxes == whole.boxes[: len(again.boxes)]).all() and (again.nearest == whole.nearest[: len(again.nearest)]).all()
    assert Table(tmp_path / "cut", {"a": 2}).pictures == 0


def test_a_context_that_fills_the_crop_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves nothing"):
        opticus.create("rcnn/tiny", context=16)
