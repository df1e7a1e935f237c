"""Photometric transforms: what changes colours and moves nothing. Geometry is in `geometry`, the RandAugment list in `policy`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from opticus.structures import Sample, UsageError
from opticus.transforms.draw import Draw
from opticus.transforms.pixels import LUMINANCE, channelled

Floats = npt.NDArray[np.float64]

# RGB -> YIQ (NTSC, FCC 1953): a turn of the I-Q plane changes the hue and keeps the luminance
_YIQ = np.array([LUMINANCE, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
_RGB = np.linalg.inv(_YIQ)
_GREY = np.array(LUMINANCE)
BAND = 64  # outputs of a blur that are made at once
_STEPS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, slots=True)
class ColourJitter:
    """Change brightness, contrast, saturation and hue by random amounts, in random order, with probability `p`.

    The first three draw a factor from [max(0, 1 - value), 1 + value]; `hue` draws a shift from +-value turns of the colour circle.
    The default composes all four into one 3x4 colour matrix (hue as a turn of the YIQ chroma plane; nothing is clamped in
    between) and applies it once. `faithful` works as torchvision does: one step after the other, clamped to [0, 255] in between,
    hue in HSV; values stay real numbers between the steps and are rounded once.
    """

    brightness: float = 0
    contrast: float = 0
    saturation: float = 0
    hue: float = 0
    p: float = 1
    faithful: bool = False

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        amounts = self.drawn(draw)
        pixels = sample.picture.pixels
        out = jittered_stepwise(pixels, amounts) if self.faithful else jittered(pixels, amounts)
        return sample.with_picture(out, sample.target)

    def drawn(self, draw: Draw) -> list[tuple[str, float]]:
        """The steps with their amounts, in the order in which they are applied; steps of strength 0 are left out."""
        u = draw.rng.random(8).tolist()
        order = sorted(range(4), key=lambda i: u[4 + i])
        steps: list[tuple[str, float]] = []
        for i in order:
            strength = (self.brightness, self.contrast, self.saturation, self.hue)[i]
            low, high = (-strength, strength) if i == 3 else (max(0.0, 1 - strength), 1 + strength)
            if strength > 0:
                steps.append((_STEPS[i], low + (high - low) * u[i]))
        return steps


def planes_of(pixels: Tensor) -> Tensor:
    """(C, H*W) contiguous float32 planes of (H, W, C) uint8 pixels with 1 or 3 channels; UsageError for other counts."""
    channels = _counted(pixels)
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).view(channels, -1)


def colours_of(pixels: Tensor) -> Tensor:
    """(C, H*W) float32 values in whichever order they lie in memory: a matrix product reads either, so nothing is transposed."""
    channels = _counted(pixels)
    if pixels.is_contiguous():
        return pixels.view(-1, channels).to(torch.float32).t()
    return planes_of(pixels)


def _counted(pixels: Tensor) -> int:
    channels = int(pixels.shape[2])
    if channels not in (1, 3):
        raise UsageError(f"colour transforms take pictures of 1 or 3 channels, found {channels}")
    return channels


def pixels_of(planes: Tensor, like: Tensor, half: float = 0.5, spare: Tensor | None = None) -> Tensor:
    """(H, W, C) uint8 pixels shaped as `like` from planes (C, H*W), which are overwritten: rounded and clamped.

    `half` is what is added before cutting off decimals; 0 where a map has added it already. `spare` is a second buffer like `planes`
    that may be overwritten: fresh memory costs more than the arithmetic.
    In memory they stay planes (a transposed view): the next colour transform and the collation, which want planes, copy nothing.
    """
    height, width, channels = like.shape
    # by way of int16, as float32 -> uint8 is not vectorised
    values = (planes.add_(half) if half else planes).clamp_(0, 255)
    room = None if spare is None else spare.view(-1).view(torch.int16)[: values.numel()].view(values.shape)
    whole = (values.to(torch.int16) if room is None else room.copy_(values)).to(torch.uint8)
    return whole.view(channels, height, width).permute(1, 2, 0)


def jittered(pixels: Tensor, steps: list[tuple[str, float]]) -> Tensor:
    """All steps as one affine map of colour space, applied to (H, W, C) uint8 pixels."""
    colours = colours_of(pixels)
    planes = _mapped(colours, steps, 0.5)
    return pixels_of(planes, pixels, 0.0, None if planes is colours else _buffer(colours))


def _buffer(colours: Tensor) -> Tensor:
    """The memory of colours (C, N), in whichever order they lie, as planes to be overwritten."""
    return colours if colours.is_contiguous() else colours.t().view(colours.shape)


def _mapped(colours: Tensor, steps: list[tuple[str, float]], more: float = 0.0, out: Tensor | None = None) -> Tensor:
    """Colours (C, N) through the one affine map that `steps` amount to, plus `more`, not clamped, as contiguous planes, in `out`.

    `colours` may be overwritten.
    """
    mean = _mean(colours) if any(name == "contrast" for name, _ in steps) else [0.0]
    table = colour_matrix(steps, mean * 3 if len(colours) == 1 else mean)
    table[:, 3] += more
    if len(colours) == 1:  # every step maps grey to grey, so a row's sum is the whole gain
        return colours.mul_(float(table[0, :3].sum())).add_(float(table[0, 3]))
    map = torch.from_numpy(table.astype(np.float32))
    return torch.addmm(map[:, 3:], map[:, :3], colours, out=out)


def _mean(colours: Tensor) -> list[float]:
    """The mean of each channel of colours (C, N); bytes that lie colour by colour are added up in long rows, three times as fast."""
    channels, count = colours.shape
    if channels == 1 or colours.is_contiguous() or count % 64:
        return colours.mean(1).tolist()
    return (colours.t().reshape(-1, 64 * channels).sum(0).view(64, channels).sum(0) / count).tolist()


def colour_matrix(steps: list[tuple[str, float]], mean: list[float]) -> Floats:
    """The steps in order as one matrix (3, 4) for colours (red, green, blue, 1); `mean` is the picture's mean colour before them.

    Contrast moves away from the mean luminance that the picture has at that step, which is linear in `mean`.
    """
    table = np.eye(3, 4)
    for name, amount in steps:
        if name == "hue":
            table = _hue_matrix(amount) @ table
            continue
        level = (1 - amount) * (_GREY @ table)  # (4,): the missing share of the luminance
        table *= amount
        if name == "saturation":
            table += level
        elif name == "contrast":
            table[:, 3] += level[:3] @ mean + level[3]
    return table


def _hue_matrix(turns: float) -> Floats:
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return _RGB @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ _YIQ


def jittered_stepwise(pixels: Tensor, steps: list[tuple[str, float]]) -> Tensor:
    """The steps one after the other on (H, W, C) uint8 pixels, clamped to [0, 255] after each; hue in HSV."""
    planes, spare = colours_of(pixels), None  # two buffers take turns
    waiting: list[tuple[str, float]] = []
    for name, amount in steps:
        if name != "hue":
            waiting.append((name, amount))
            if amount <= 1:  # a step towards black or grey stays in range: it needs no clamp and joins the next one's map
                continue
        if waiting:
            planes, spare = _turned(planes, spare, waiting)
            planes.clamp_(0, 255)
            waiting = []
        if name == "hue" and len(planes) == 3:
            if not planes.is_contiguous():
                planes, spare = _turned(planes, spare, [])  # a product with the identity transposes three times as fast
            planes = hue_shifted(planes, amount, spare)
    if not waiting:
        planes, spare = (planes, spare) if planes.is_contiguous() else _turned(planes, spare, [])
        return pixels_of(planes, pixels, spare=spare)
    planes, spare = _turned(planes, spare, waiting, 0.5)
    return pixels_of(planes, pixels, 0.0, spare)


def _turned(
    colours: Tensor, spare: Tensor | None, steps: list[tuple[str, float]], more: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """The mapped colours, in `spare` if there is one, and the buffer that is free now."""
    planes = _mapped(colours, steps, more, spare)
    return planes, None if planes is colours else _buffer(colours)


def hue_shifted(planes: Tensor, turns: float, spare: Tensor | None = None) -> Tensor:
    """Turn the hue of planes (3, N) in HSV by `turns`, |turns| <= 0.5, in place; value and saturation stay.

    `spare` is a second buffer like `planes` for intermediate values.

    HSV as Smith (1978) defines it, written without its six cases. With low and high the extreme channels and d their distance, the
    hue is h = +-(green + blue - red + high - 2 low) / d sixths of the circle, with the sign of green - blue, and the new channels are
    low + d * w, where w clamped to [0, 1] is |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue, h in [0, 6).
    """
    red, green, blue = planes
    high, low, sixths = torch.empty_like(planes) if spare is None else spare
    torch.maximum(torch.maximum(red, green, out=high), blue, out=high)
    torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    spread = high - low
    sixths = (
        torch.add(green, blue, out=sixths).sub_(red).add_(high).sub_(low, alpha=2).div_(torch.clamp(spread, min=1e-12, out=high))
    )
    sixths = torch.copysign(sixths, torch.sub(green, blue, out=high), out=sixths)
    hue = torch.add(torch.tensor(1 + turns), sixths, alpha=1 / 6, out=sixths).frac_()  # in turns; one more, as frac_ keeps the sign
    base = low.sub_(spread)
    torch.addcmul(base, spread, torch.sub(hue, 3 / 6, out=high).abs_().clamp_(1 / 6, 2 / 6), value=6, out=red)
    base.add_(spread, alpha=3)  # from here 2 - clamp(|h - c|, 1, 2) = clamp(2 - |h - c|, 0, 1)
    torch.addcmul(base, spread, torch.sub(hue, 2 / 6, out=high).abs_().clamp_(1 / 6, 2 / 6), value=-6, out=green)
    torch.addcmul(base, spread, hue.sub_(4 / 6).abs_().clamp_(1 / 6, 2 / 6), value=-6, out=blue)
    return planes


@dataclass(frozen=True, slots=True)
class Grayscale:
    """Replace colours by their luminance with probability `p`; the number of channels stays."""

    p: float = 1

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        pixels = sample.picture.pixels
        if not draw.chance(self.p) or pixels.shape[2] == 1:
            return sample
        grey = channelled(pixels, 1, sample.id)[..., 0]
        return sample.with_picture(grey.expand(3, -1, -1).contiguous().permute(1, 2, 0), sample.target)


@dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur with probability `p`; its standard deviation in pixels is drawn from `sigma`.

    A true Gaussian cut off at 3 sigma (Pillow's GaussianBlur approximates one by boxes); the border is mirrored.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 1

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        sigma = draw.uniform(*self.sigma)
        return sample.with_picture(blurred(sample.picture.pixels, sigma), sample.target)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """(H, W, C) uint8 pixels convolved with a Gaussian of `sigma` pixels.

    Each axis is a product with a band matrix, `BAND` rows at a time: few passes over memory, and the mirrors are in the matrix.
    """
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    taps = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2)) if sigma > 0 else torch.ones(1).double()
    weights = (taps / taps.sum()).float()
    height, width, channels = pixels.shape
    planes = pixels.permute(2, 0, 1).contiguous().to(torch.float32)
    half = torch.empty_like(planes)
    band = _band(height, offsets, weights)
    for rows, used in _blocks(height, reach):
        for plane, out in zip(planes, half):
            torch.mm(band[rows, used], plane[used], out=out[rows])
    band = (band if width == height else _band(width, offsets, weights)).t()
    lines, out = half.view(-1, width), planes.view(-1, width)
    for columns, used in _blocks(width, reach):
        torch.mm(lines[:, used], band[used, columns], out=out[:, columns])
    return pixels_of(planes.view(channels, -1), pixels, spare=half.view(channels, -1))


def _band(length: int, offsets: Tensor, weights: Tensor) -> Tensor:
    """(length, length): row i weighs the pixels i + offsets, mirrored at the border."""
    place = mirrored(torch.arange(length)[:, None] + offsets, length)
    return torch.zeros(length, length).scatter_add_(1, place, weights.expand(length, -1))


def _blocks(length: int, reach: int) -> list[tuple[slice, slice]]:
    """Blocks of `BAND` outputs and the inputs they need; mirrored ones lie inside."""
    starts = range(0, length, BAND)
    return [(slice(s, min(s + BAND, length)), slice(max(s - reach, 0), min(s + BAND + reach, length))) for s in starts]


def mirrored(index: Tensor, length: int) -> Tensor:
    """Indices folded back into 0..length-1 by mirrors at the centres of the first and last pixel."""
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index.remainder(period)
    return torch.where(index < length, index, period - index)


@dataclass(frozen=True, slots=True)
class Solarise:
    """Invert every value of at least `threshold`, with probability `p`."""

    threshold: int = 128
    p: float = 1

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        return _photometric(sample, draw, self.p, lambda pixels: solarised(pixels, self.threshold))


@dataclass(frozen=True, slots=True)
class Posterise:
    """Keep the `bits` highest bits of every value, with probability `p`."""

    bits: int = 4
    p: float = 1

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        return _photometric(sample, draw, self.p, lambda pixels: posterised(pixels, self.bits))


@dataclass(frozen=True, slots=True)
class Equalise:
    """Flatten the histogram of each channel (Pillow's rule), with probability `p`."""

    p: float = 1

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        return _photometric(sample, draw, self.p, equalised)


@dataclass(frozen=True, slots=True)
class Erase:
    """Overwrite a random rectangle with probability `p` (Zhong et al. 2017); targets stay, as the object is only hidden.

    `scale` and `ratio` (height / width) as in torchvision. `fill` is a colour (default: the mean of ImageNet, which is zero after
    normalisation) or "noise" for uniform random values.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[float, ...] | Literal["noise"] = (124, 116, 104)

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not draw.chance(self.p):
            return sample
        height, width = sample.size
        for _ in range(10):
            area = height * width * draw.uniform(*self.scale)
            ratio = math.exp(draw.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = draw.integer(0, height - h + 1), draw.integer(0, width - w + 1)
                return sample.with_picture(self._erased(sample.picture.pixels, (top, left, h, w), draw), sample.target)
        return sample

    def _erased(self, pixels: Tensor, window: tuple[int, int, int, int], draw: Draw) -> Tensor:
        top, left, h, w = window
        channels = int(pixels.shape[2])
        out = pixels.clone()
        if self.fill == "noise":
            colour = torch.from_numpy(draw.rng.integers(0, 256, (h, w, channels), dtype=np.uint8))
        else:
            colour = torch.tensor([float(v) for v in self.fill]).round().to(torch.uint8)
            colour = colour if len(colour) in (1, channels) else colour[:1]
        out[top : top + h, left : left + w] = colour
        return out


def solarised(pixels: Tensor, threshold: float) -> Tensor:
    """Values of at least `threshold` become 255 - value."""
    high = (pixels >= threshold).view(torch.uint8)
    return high.neg_().bitwise_xor_(pixels)  # x ^ 255 = 255 - x


def posterised(pixels: Tensor, bits: int) -> Tensor:
    """Only the `bits` highest of the eight bits stay."""
    return pixels & (256 - (1 << (8 - bits)))


def equalised(pixels: Tensor) -> Tensor:
    """Each channel through the table that flattens its histogram, in whole numbers as Pillow does (`ImageOps.equalize`)."""

    def table(plane: Tensor) -> Tensor:
        counts = torch.bincount(plane.reshape(-1).long(), minlength=256)
        used = counts[counts > 0]
        step = int(used[:-1].sum()) // 255
        if step == 0:
            return torch.arange(256)
        return (
            (torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1])) + step // 2)
            .div(step, rounding_mode="floor")
            .clamp(max=255)
        )

    return _through_tables(pixels, table)


def autocontrasted(pixels: Tensor) -> Tensor:
    """Each channel stretched so that its extremes become 0 and 255 (`ImageOps.autocontrast` without cut-off)."""

    def table(plane: Tensor) -> Tensor:
        low, high = int(plane.min()), int(plane.max())
        if low == high:
            return torch.arange(256)
        return ((torch.arange(256) - low).double() * (255 / (high - low))).clamp(0, 255).long()

    return _through_tables(pixels, table)


def sharpened(pixels: Tensor, factor: float) -> Tensor:
    """The picture away from (factor > 1) or towards (< 1) its smoothed version.

    Smoothing is Pillow's: (1 1 1; 1 5 1; 1 1 1) / 13, the outermost pixels stay.
    """
    height, width, channels = pixels.shape
    if min(height, width) < 3:
        return pixels
    planes = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    kernel = torch.full((channels, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = planes.clone()
    smooth[:, 1:-1, 1:-1] = F.conv2d(planes[None], kernel, groups=int(channels))[0].round()
    return pixels_of(torch.lerp(smooth, planes, factor).reshape(channels, -1), pixels)


def _through_tables(pixels: Tensor, table: Callable[[Tensor], Tensor]) -> Tensor:
    planes = [table(plane).to(torch.uint8)[plane.long()] for plane in pixels.unbind(-1)]
    return torch.stack(planes, -1)


def _photometric(sample: Sample, draw: Draw, p: float, change: Callable[[Tensor], Tensor]) -> Sample:
    if not draw.chance(p):
        return sample
    return sample.with_picture(change(sample.picture.pixels), sample.target)
