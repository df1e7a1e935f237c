"""`prove`: every op against its literal loop twin, on random and on adversarial input, with the largest error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opticus.matching.aligned import task_aligned
from opticus.ops import boxes as box_ops
from opticus.ops import corner, deform, iou, keypoints, masks, nms, psroi, resample, roi
from opticus.ops.twins import aligned as aligned_twins
from opticus.ops.twins import boxes as box_twins
from opticus.ops.twins import corner as corner_twins
from opticus.ops.twins import deform as deform_twins
from opticus.ops.twins import maps as map_twins
from opticus.ops.twins import roi as roi_twins
from opticus.structures import UnknownNameError, UsageError

Rng = np.random.Generator
EDGES = (0.0, 1 / 7, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0)  # overlaps that boxes on a small grid hit exactly


@dataclass(frozen=True)
class Proof:
    """What was compared: `error` is the largest absolute difference (for index and byte results: how many differ)."""

    name: str
    formula: str
    random: int
    adversarial: int
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error stays within the tolerance (rounding of float64; 0 for exact results)."""
        return self.error <= self.tolerance

    @property
    def cases(self) -> int:
        """Number of inputs tried."""
        return self.random + self.adversarial


@dataclass(frozen=True)
class Claim:
    """A formula, the tolerance, and a trial (generator, adversarial?) -> error on one drawn input."""

    formula: str
    tolerance: float
    trial: Callable[[Rng, bool], float]


def known() -> tuple[str, ...]:
    """The names that `prove` accepts."""
    return tuple(CLAIMS)


def prove(name: str, *, cases: int = 200, seed: int = 0) -> Proof:
    """Compare the op `name` with its twin on `cases` random and as many adversarial inputs.

    UnknownNameError for a name not in `known()`, UsageError for fewer than one case.
    """
    if name not in CLAIMS:
        raise UnknownNameError("op", name, CLAIMS)
    if cases < 1:
        raise UsageError(f"prove {name}: expected at least 1 case, found {cases}")
    claim, rng = CLAIMS[name], np.random.default_rng(seed)
    errors = [claim.trial(rng, hard) for hard in (False, True) for _ in range(cases)]
    return Proof(name, claim.formula, cases, cases, max(errors, key=lambda e: e if e == e else float("inf")), claim.tolerance)


def draw_boxes(rng: Rng, hard: bool, count: int | None = None) -> Tensor:
    """(N, 4) float64 boxes; the hard ones sit on a 6x6 grid (ties, repeats, no area, reversed), some at 1e30 px or 1e-30 px."""
    count = int(rng.integers(0, 24)) if count is None else count
    if not hard:
        low = rng.uniform(-20, 80, (count, 2))
        return torch.from_numpy(np.concatenate([low, low + rng.uniform(1, 40, (count, 2))], 1))
    return torch.from_numpy(rng.integers(-2, 4, (count, 4)) * float(rng.choice([1.0, 1.0, 1.0, 0.1, 1e30, 1e-30])))


def _gap(ours: Tensor, twin: Any) -> float:
    theirs = torch.as_tensor(np.asarray(twin, np.float64)).reshape(ours.shape)
    return float((ours.double() - theirs).abs().max()) if ours.numel() else 0.0


def _overlap(rng: Rng, hard: bool) -> float:
    a, b = draw_boxes(rng, hard), draw_boxes(rng, hard)
    return _gap(iou.iou(a, b), [[box_twins.iou(x, y) for y in b.tolist()] for x in a.tolist()])


def _generalised(rng: Rng, hard: bool) -> float:
    a, b = draw_boxes(rng, hard), draw_boxes(rng, hard)
    return _gap(iou.giou(a, b), [[box_twins.giou(x, y) for y in b.tolist()] for x in a.tolist()])


def _suppression(rng: Rng, hard: bool) -> float:
    boxes = draw_boxes(rng, hard, int(rng.integers(0, 90)))
    scores = torch.from_numpy(rng.integers(0, 4, len(boxes)) / 3.0 if hard else rng.random(len(boxes)))
    labels = torch.from_numpy(rng.integers(0, 3, len(boxes)))
    threshold = float(rng.choice(EDGES)) if hard else float(rng.random())
    if hard and len(boxes) and 1e-9 < float(boxes.abs().max()) < 1e9 and rng.random() < 0.5:
        boxes = boxes.float()  # the twin then computes with float32 scalars, and compares with the exact threshold
    twin = box_twins.nms([list(row) for row in boxes.numpy()], scores.tolist(), labels.tolist(), np.float64(threshold))
    wrong = 0
    for ours in (
        nms.nms_per_class(boxes, scores, labels, threshold),
        nms.nms_on_device(boxes, scores, labels, threshold, int(rng.choice([1, 7, 2048]))),
    ):
        wrong += len(set(ours.tolist()) ^ set(twin)) + int(ours.tolist() != twin)
    return float(wrong)


def _soft(rng: Rng, hard: bool) -> float:
    boxes = draw_boxes(rng, hard, int(rng.integers(0, 60)))
    scores = torch.from_numpy(rng.integers(0, 4, len(boxes)) / 3.0 if hard else rng.random(len(boxes)))
    labels = torch.from_numpy(rng.integers(0, 3, len(boxes)))
    threshold, sigma = float(rng.choice(EDGES)) if hard else float(rng.random()), float(rng.choice([0.1, 0.5, 2.0]))
    floor = float(rng.choice([0.0, 0.001, 1 / 3]))
    wrong = 0.0
    for method in ("linear", "gaussian"):
        ours = nms.soft_nms(boxes, scores, labels, method=method, threshold=threshold, sigma=sigma, floor=floor)
        # np.exp, so that equal scores stay equal in both
        twin = box_twins.soft_nms(boxes.tolist(), scores.tolist(), labels.tolist(), method, threshold, sigma, floor, np.exp)
        same = ours.indices.tolist() == [index for index, _ in twin]
        wrong += _gap(ours.scores, [score for _, score in twin]) if same else 1.0
    return wrong


def _coder(rng: Rng, hard: bool) -> float:
    count = int(rng.integers(0, 9))
    low, sides = rng.uniform(-50, 50, (2, count, 2)), rng.uniform(0.5, 60, (2, count, 2))
    if hard:
        sides = 2.0 ** rng.integers(-20, 20, (2, count, 2))
    boxes, anchors = torch.from_numpy(np.concatenate([low, low + sides], 2))
    weights = (10.0, 10.0, 5.0, 5.0) if rng.random() < 0.5 else (1.0, 1.0, 1.0, 1.0)
    deltas = box_ops.encode_boxes(boxes, anchors, weights)
    twin = [box_twins.encode(b, a, weights) for b, a in zip(boxes.tolist(), anchors.tolist(), strict=True)]
    scale = float(deltas.abs().max().clamp(min=1)) if count else 1.0
    error = _gap(deltas, np.reshape(np.array(twin), (count, 4))) / scale
    back = box_ops.decode_boxes(deltas, anchors, weights)
    decoded = [box_twins.decode(d, a, weights) for d, a in zip(deltas.tolist(), anchors.tolist(), strict=True)]
    scale = float(back.abs().max().clamp(min=1)) if count else 1.0
    return max(error, _gap(back, np.reshape(np.array(decoded), (count, 4))) / scale)


def _regions(rng: Rng, hard: bool) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    height, width, count = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(0, 5))
    features = torch.from_numpy(rng.standard_normal((2, 3, height, width)))
    low = rng.uniform(-2, 8, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 8, (count, 2))], 1)
    if hard:  # halves hit pixel centres, rounding ties and the limits -1 and H; reversed, empty and far boxes
        boxes = rng.integers(-6, 24, (count, 4)) / 2 * float(rng.choice([1, 1, 4]))
    size = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    return features, torch.from_numpy(boxes), torch.from_numpy(rng.integers(0, 2, count)), size


def _align(rng: Rng, hard: bool) -> float:
    features, boxes, pictures, size = _regions(rng, hard)
    scale, samples, aligned = float(rng.choice([1.0, 0.5])), int(rng.integers(0, 4)), bool(rng.integers(0, 2))
    ours = roi.roi_align(features, boxes, pictures, size, scale=scale, samples=samples, aligned=aligned)
    planes = features.numpy()
    twins = [roi_twins.roi_align(planes[p], b, size, scale, samples, aligned) for p, b in zip(pictures, boxes.numpy(), strict=True)]
    return _gap(ours, np.reshape(np.array(twins), ours.shape))


def _pool(rng: Rng, hard: bool) -> float:
    features, boxes, pictures, size = _regions(rng, hard)
    scale = float(rng.choice([1.0, 0.5]))
    ours = roi.roi_pool(features, boxes, pictures, size, scale=scale)
    planes = features.numpy()
    twins = [roi_twins.roi_pool(planes[p], b, size, scale) for p, b in zip(pictures, boxes.numpy(), strict=True)]
    return _gap(ours, np.reshape(np.array(twins), ours.shape))


def _sensitive(rng: Rng, hard: bool) -> float:
    _, boxes, pictures, size = _regions(rng, hard)
    sides = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    features = torch.from_numpy(rng.standard_normal((2, 2 * size[0] * size[1], *sides)))
    scale, samples = float(rng.choice([1.0, 0.5])), int(rng.integers(1, 4))
    planes, rows = features.numpy(), list(zip(pictures.tolist(), boxes.numpy(), strict=True))
    ours = psroi.psroi_pool(features, boxes, pictures, size, scale=scale)
    error = _gap(ours, np.reshape(np.array([roi_twins.psroi_pool(planes[p], b, size, scale) for p, b in rows]), ours.shape))
    ours = psroi.psroi_align(features, boxes, pictures, size, scale=scale, samples=samples)
    twins = [roi_twins.psroi_align(planes[p], b, size, scale, samples) for p, b in rows]
    return max(error, _gap(ours, np.reshape(np.array(twins), ours.shape)))


def _deform(rng: Rng, hard: bool) -> float:
    groups, shares = (int(rng.choice([1, 2])) for _ in range(2))
    rows, columns = (int(v) for v in rng.integers(1, 4, 2))
    stride, padding, dilation = int(rng.integers(1, 3)), int(rng.integers(0, 3)), int(rng.integers(1, 3))
    sides = [int(rng.integers(1, 4)) + dilation * (k - 1) for k in (rows, columns)]
    h, w = ((side + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for side, k in zip(sides, (rows, columns), strict=True))
    x, weight = rng.standard_normal((1, 4, *sides)), rng.standard_normal((4, 4 // shares, rows, columns))
    draw = (2 * groups * rows * columns, h, w)
    offsets = rng.integers(-4, 5, draw) / 2 if hard else rng.uniform(-3, 3, draw)  # halves and whole pixels, far outside too
    modulation = rng.random((groups * rows * columns, h, w))
    settings = (stride, padding, dilation)
    ours = deform.deform_conv(
        torch.from_numpy(x), torch.from_numpy(offsets[None]), torch.from_numpy(weight), None, torch.from_numpy(modulation)[None],
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    return _gap(ours[0], deform_twins.deform_conv(x[0], offsets, weight, modulation, *settings))


def _corners(rng: Rng, hard: bool) -> float:
    plane = rng.standard_normal((int(rng.integers(1, 9)), int(rng.integers(1, 9))))
    plane = np.round(plane) if hard else plane  # plateaus
    x, error = torch.from_numpy(plane)[None, None], 0.0
    for name, ours in (
        ("top", corner.top_pool),
        ("bottom", corner.bottom_pool),
        ("left", corner.left_pool),
        ("right", corner.right_pool),
    ):
        error = max(error, _gap(ours(x)[0, 0], corner_twins.pool(plane, name)))
    return error


def _runs(rng: Rng, hard: bool) -> float:
    count, height, width = int(rng.integers(0, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 40 if hard else 9))
    on = rng.random((count, height, width)) < (rng.choice([0.0, 0.02, 0.98, 1.0]) if hard else 0.5)
    codes = masks.encode(torch.from_numpy(on))
    wrong = sum(a != map_twins.text(map_twins.runs(b)) for a, b in zip(codes.counts, on, strict=True))
    wrong += int((masks.decode(codes).numpy() != on).sum()) + int((masks.areas(codes).numpy() != on.sum((1, 2))).sum())
    return float(wrong)


def _mask_boxes(rng: Rng, hard: bool) -> float:
    on = rng.random((int(rng.integers(0, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 9)))) < (0.03 if hard else 0.3)
    ours = masks.boxes_of_masks(torch.from_numpy(on))
    return _gap(ours, np.reshape(np.array([map_twins.box(m) for m in on]), ours.shape))


def _bilinear(rng: Rng, hard: bool) -> float:
    plane = rng.standard_normal((int(rng.integers(1, 7)), int(rng.integers(1, 7))))
    points = rng.integers(-4, 20, (9, 2)) / 2 if hard else rng.uniform(-2, 9, (9, 2))
    border = bool(rng.integers(0, 2))
    features = torch.from_numpy(plane)[None, None]
    ours = resample.sample(features, torch.from_numpy(points)[None], outside="border" if border else "zeros")
    return _gap(ours[0, 0], [map_twins.sample(plane, x, y, border) for x, y in points])


def _warp(rng: Rng, hard: bool) -> float:
    plane, size = rng.standard_normal((int(rng.integers(1, 7)), int(rng.integers(1, 7)))), (int(rng.integers(1, 7)), 5)
    matrix = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)) * [[1, 1, 9], [1, 1, 9], [0.02, 0.02, 0]]
    if hard:  # quarter turns, flips and whole shifts: every lookup falls on a pixel centre
        turn = np.array([[0, -1], [1, 0]]) if rng.random() < 0.5 else np.diag(rng.choice([-1, 1], 2))
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = turn, rng.integers(-3, 8, 2)
    border = bool(rng.integers(0, 2))
    moved = resample.warp(
        torch.from_numpy(plane)[None, None], torch.from_numpy(matrix)[None], size, outside="border" if border else "zeros"
    )
    return _gap(moved[0, 0], map_twins.warp(plane, matrix, size, border))


def _heat(rng: Rng, hard: bool) -> float:
    count, shape = int(rng.integers(0, 6)), (2, int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    centres = rng.integers(-3, 14, (count, 2)).astype(np.float64) if hard else rng.uniform(0, 11, (count, 2))
    radii, labels = rng.integers(0, 15 if hard else 4, count), rng.integers(0, 2, count)
    ours = keypoints.render(torch.from_numpy(centres), torch.from_numpy(radii), torch.from_numpy(labels), shape)
    return _gap(ours, map_twins.render(centres, radii.tolist(), labels.tolist(), shape))


def _peaks(rng: Rng, hard: bool) -> float:
    heat = rng.random((2, int(rng.integers(1, 8)), int(rng.integers(1, 8))))
    heat = np.round(heat * 2) / 2 if hard else heat  # plateaus
    count = min(int(rng.integers(1, 9)), heat.size)
    scores, labels, rows, columns = (v[0] for v in keypoints.peaks(torch.from_numpy(heat)[None], count))
    there = torch.from_numpy(heat)[labels, rows, columns]
    misplaced = float((there - scores)[scores > 0].abs().sum())
    return _gap(scores, map_twins.peaks(heat, count)) + misplaced


def _similarity(rng: Rng, hard: bool) -> float:
    found, truth = rng.uniform(0, 50, (3, 5, 3)), rng.uniform(0, 50, (2, 5, 3))
    truth[..., 2] = rng.integers(0, 2 if hard else 3, (2, 5)) * (rng.random() < 0.5 if hard else 1)
    low = rng.uniform(0, 30, (2, 2))
    boxes, areas, sigmas = (
        np.concatenate([low, low + rng.uniform(1, 20, (2, 2))], 1),
        rng.uniform(10, 900, 2),
        rng.uniform(0.02, 0.2, 5),
    )
    if hard:
        areas[0] = 0
    ours = keypoints.oks(*(torch.from_numpy(v) for v in (found, truth, boxes, areas, sigmas)))
    return _gap(ours, [[map_twins.oks(f, t, b, a, sigmas) for t, b, a in zip(truth, boxes, areas, strict=True)] for f in found])


def _alignment(rng: Rng, hard: bool) -> float:
    objects, places, count = int(rng.integers(0, 5)), int(rng.integers(0, 30)), int(rng.integers(1, 12))
    scores, overlaps = rng.random((2, objects, places))
    if hard:  # ties within and between objects, zeros, and alignments near the end of float64
        scores, overlaps = np.round(scores * 3) / 3, np.round(overlaps * 2) / 2 * float(rng.choice([1.0, 1e-40]))
    inside = rng.random((objects, places)) < 0.6
    alpha, beta = float(rng.choice([0.5, 1.0])), float(rng.choice([1.0, 6.0]))
    drawn = (torch.from_numpy(v) for v in (scores, overlaps, inside))
    ours = task_aligned(*drawn, count=count, alpha=alpha, beta=beta)
    tables = scores.tolist(), overlaps.tolist(), inside.tolist()
    owners, quality = aligned_twins.task_aligned(*tables, places, count, alpha, beta)
    return float(sum(a != b for a, b in zip(ours.matches.tolist(), owners, strict=True))) + _gap(ours.quality, quality)


CLAIMS: dict[str, Claim] = {
    "nms": Claim("keep i unless some kept j before it has IoU(i, j) > t; order: score falling, index rising", 0.0, _suppression),
    "soft_nms": Claim("s_i <- s_i (1 - IoU) where IoU > t, or s_i exp(-IoU^2 / sigma), after every pick of the best", 1e-12, _soft),
    "iou": Claim("|A n B| / |A u B|, 0 where either box has no area", 1e-12, _overlap),
    "giou": Claim("IoU - (|hull| - |A u B|) / |hull|, fractions with denominator 0 are 0", 1e-12, _generalised),
    "box_coder": Claim("dx = (xb - xa) / wa, dw = log(wb / wa), times weights; decode cuts dw at log(1000/16)", 1e-12, _coder),
    "roi_align": Claim("mean over a regular grid of samples per bin; a sample beyond [-1, H] is 0", 1e-12, _align),
    "roi_pool": Claim("maximum over floor(p b) .. ceil((p + 1) b) of the region rounded to pixels; empty bins 0", 0.0, _pool),
    "psroi": Claim("mean of map (c, i, j) over bin (i, j): whole pixels, and bilinear samples; outside 0", 1e-12, _sensitive),
    "deform_conv": Claim("sum_k w_k m_k(p) x(p + k + offset_k(p)), x bilinear, 0 outside the map", 1e-11, _deform),
    "task_aligned": Claim(
        "per object the k best s^a u^b inside it; shared places to the largest u; t max(u) / max(t)", 1e-12, _alignment
    ),
    "corner_pool": Claim("out(p) = max of x(p), x(p + d), x(p + 2 d), ... for d = down, up, right and left", 0.0, _corners),
    "rle": Claim("column-major run lengths, background first, differences to the run two before in base 32", 0.0, _runs),
    "mask_boxes": Claim("(min x, min y, max x + 1, max y + 1) over the object's pixels", 0.0, _mask_boxes),
    "bilinear": Claim("sum over the 4 pixels around p of (1 - |dx|)(1 - |dy|) v, pixel centres at +0.5", 1e-12, _bilinear),
    "warp": Claim("out(p) = in(M^-1 p), bilinear at pixel centres", 1e-9, _warp),
    "heatmap": Claim("max over objects of exp(-d^2 / 2 s^2), s = (2 r + 1) / 6, |dx|, |dy| <= r", 1e-12, _heat),
    "peaks": Claim("the k highest values that no 3x3 neighbour exceeds", 0.0, _peaks),
    "oks": Claim("mean over labelled points of exp(-d^2 / (2 area (2 sigma)^2))", 1e-12, _similarity),
}
