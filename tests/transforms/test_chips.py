"""Chips (SNIPER, 1805.09300): every object at its scale, others ignored, false positives sought, one matrix for all."""

from __future__ import annotations

import pytest
import torch

from opticus.structures import Classes, Instances, Sample, UsageError
from opticus.transforms.chips import Chips
from opticus.transforms.draw import draw_for

SCALES = ((2.0, 0.0, 30.0), (1.0, 20.0, 60.0), (0.0, 50.0, 1e5))


def sample(boxes: list[list[float]], size: tuple[int, int] = (150, 220)) -> Sample:
    pixels = torch.arange(size[0] * size[1]).reshape(*size, 1).expand(-1, -1, 3) % 251
    target = Instances(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), size)
    return Sample.of(pixels.to(torch.uint8).contiguous(), target, "a")


def test_every_object_lies_whole_in_a_chip_of_every_scale_whose_range_it_is_in() -> None:
    rng = torch.Generator().manual_seed(0)
    chips = Chips(64, SCALES, stride=8)
    for _ in range(20):
        low = torch.rand(12, 2, generator=rng) * torch.tensor([180.0, 110.0])
        boxes = torch.cat([low, low + 3 + torch.rand(12, 2, generator=rng) * 35], 1)
        found = chips.positive((150, 220), boxes)
        for i, (factor, *_) in enumerate(SCALES):
            own = [c for c in found if c.scale == i]
            side = 220 if factor == 0 else round(64 / factor)
            assert all(c.side == side for c in own)
            limit = side - max(8 * side // 64, 1)  # what fits wherever it lies
            for box in boxes[chips.learned(boxes, i) & ((boxes[:, 2:] - boxes[:, :2]).amax(1) <= limit)]:
                x1, y1, x2, y2 = box.tolist()
                assert any(c.left <= x1 and c.top <= y1 and x2 <= c.left + side and y2 <= c.top + side for c in own)
        assert len(set(found)) == len(found)


def test_objects_of_other_scales_become_crowds_and_pixels_follow_the_matrix() -> None:
    small, large = [100.0, 60, 112, 72], [90.0, 50, 180, 130]
    chips = Chips(64, SCALES, stride=8, keep=0.05)
    seen = set()
    for index in range(30):
        given = sample([small, large])
        out = chips(given, draw_for(0, 0, index))
        target = out.target
        assert isinstance(target, Instances) and out.size == (64, 64) and target.crowd is not None
        scale = round(float(out.matrix[0, 0]), 4)
        seen.add(scale)
        for label, crowd, box in zip(target.labels.tolist(), target.crowd.tolist(), target.boxes):
            assert crowd == ((label == 1) if scale == 2 else (label == 0))
            original = torch.tensor([small, large][label])
            moved = original * float(out.matrix[0, 0]) + torch.tensor([out.matrix[0, 2], out.matrix[1, 2]]).float().repeat(2)
            torch.testing.assert_close(box, moved.clamp(0, 64), atol=1e-3, rtol=0)
        if scale == 1:
            raise AssertionError("no object is in the range of this scale")
    assert seen == {2.0, round(64 / 220, 4)}


def test_false_positives_are_sought_where_no_object_is() -> None:
    false = torch.tensor([[10.0, 10, 20, 22], [12.0, 14, 25, 26], [102.0, 62, 110, 70]])
    chips = Chips(64, SCALES, stride=8, negatives={"a": false}, share=1.0, enough=2)
    boxes = torch.tensor([[100.0, 60, 112, 72]])
    positive = chips.positive((150, 220), boxes)
    negative = chips.negative((150, 220), false, positive)
    assert len(positive) == 1 and len(negative) == 1 and negative[0].scale == 0
    out = chips(sample(boxes.tolist()), draw_for(0, 0, 0))
    assert out.target is not None and len(out.target) == 0  # background alone


def test_a_picture_without_objects_is_shown_whole() -> None:
    out = Chips(64, SCALES, stride=8)(sample([]), draw_for(0, 0, 0))
    assert out.size == (64, 64) and float(out.matrix[0, 0]) == pytest.approx(64 / 220)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="least < most"):
        Chips(64, ((1.0, 50.0, 20.0),))
    with pytest.raises(UsageError, match="stride"):
        Chips(64, SCALES, stride=64)
    given = sample([])
    given.target = Classes(torch.tensor(0))
    with pytest.raises(UsageError, match="type Instances"):
        Chips(64, SCALES, stride=8)(given, draw_for(0, 0, 0))
