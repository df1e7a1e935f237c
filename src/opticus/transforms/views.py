"""Several views of one picture: what methods compare that learn without labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opticus.structures import Sample, UsageError
from opticus.transforms.chain import Transform, apply
from opticus.transforms.colour import Blur, ColourJitter, Grayscale, Solarise
from opticus.transforms.draw import Draw
from opticus.transforms.geometry import Flip, RandomResizedCrop, windowed
from opticus.transforms.targets import KEEP

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class View:
    """`count` views of the role `role`, each through its own draw of `transforms`."""

    role: str
    transforms: tuple[Transform, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Views:
    """Replace the picture by views of it, in the order of `views`; all are made from the picture as it was.

    The sample keeps target, id and earlier views (`Jigsaw`) and loses its picture, unless `keep`; every view has its own matrix.
    """

    views: tuple[View, ...]
    keep: bool = False

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if not self.views or min(view.count for view in self.views) < 0:
            raise UsageError(f"views: expected at least one kind of view and counts >= 0, found {self.views}")
        bare = replace(sample, views=())
        made = tuple((view.role, apply(view.transforms, bare, draw)) for view in self.views for _ in range(view.count))
        inputs = sample.inputs if self.keep else {name: value for name, value in sample.inputs.items() if name != "image"}
        return replace(sample, inputs=inputs, views=sample.views + made)


@dataclass(frozen=True, slots=True)
class Jigsaw:
    """Add views of the role "patch": grid x grid cells of a random part of the picture, a window of each, in random order.

    The part, of `scale` of the area and mirrored with probability `flip`, is resized to squares of `cell` pixels, from each of which a
    window of `size` pixels is taken at a random place (PIRL, Misra and van der Maaten 2020, arXiv 1912.01991; defaults of PyContrast).
    The picture stays, for `Views` to follow.
    """

    grid: int = 3
    cell: int = 85
    size: int = 64
    scale: Range = (0.6, 1.0)
    flip: float = 0.5

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if self.grid < 1 or not 1 <= self.size <= self.cell:
            raise UsageError(f"jigsaw: expected grid >= 1 and 1 <= size <= cell, found {self}")
        side = self.grid * self.cell
        bare = replace(sample, views=())
        whole = apply((RandomResizedCrop((side, side), self.scale), Flip(self.flip)), bare, draw)
        made: list[tuple[str, Sample]] = []
        for place in draw.rng.permutation(self.grid**2).tolist():
            top, left = (self.cell * at + draw.integer(0, self.cell - self.size + 1) for at in divmod(place, self.grid))
            made.append(("patch", windowed(whole, top, left, (self.size, self.size), 0, KEEP)))
        return replace(sample, views=(*sample.views, *made))


def multi_crop(
    size: int = 224,
    small: int = 96,
    locals: int = 8,
    *,
    scale: Range = (0.4, 1.0),
    small_scale: Range = (0.05, 0.4),
    sigma: Range = (0.1, 2.0),
    flip: float = 0.5,
) -> Views:
    """Two global views of `size` pixels and `locals` local ones of `small` pixels, augmented as DINO's (Caron et al. 2021).

    Bicubic crops of `scale` of the area, mirrored with probability `flip`; jitter (0.4, 0.4, 0.2, 0.1) with 0.8; grey with 0.2; blur of
    `sigma` pixels with 1, 0.1 and 0.5 (first and second global, local views); solarised with 0.2 (second global view).
    """
    jitter = (ColourJitter(0.4, 0.4, 0.2, 0.1, p=0.8), Grayscale(0.2))

    def crop(side: int, share: Range) -> tuple[Transform, ...]:
        return RandomResizedCrop((side, side), share, interpolation="bicubic"), Flip(flip)

    views = (
        View("global", (*crop(size, scale), *jitter, Blur(sigma, p=1.0))),
        View("global", (*crop(size, scale), *jitter, Blur(sigma, p=0.1), Solarise(p=0.2))),
        View("local", (*crop(small, small_scale), *jitter, Blur(sigma, p=0.5)), locals),
    )
    return Views(tuple(view for view in views if view.count))


def two_views(
    size: int = 224,
    *,
    scale: Range = (0.2, 1.0),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    sigma: Range = (0.1, 2.0),
    blur: tuple[float, float] = (0.5, 0.5),
    solarise: tuple[float, float] = (0.0, 0.0),
    flip: float = 0.5,
) -> Views:
    """Two views of `size` pixels; `blur` and `solarise` are the probabilities in the first and the second.

    The defaults are MoCo v2's (Chen et al. 2020, arXiv 2003.04297): jitter with probability 0.8, grey with 0.2.
    """

    def view(which: int) -> View:
        chain: tuple[Transform, ...] = (
            RandomResizedCrop((size, size), scale),
            ColourJitter(*jitter, p=0.8),
            Grayscale(0.2),
            *((Blur(sigma, p=blur[which]),) if blur[which] else ()),
            *((Solarise(p=solarise[which]),) if solarise[which] else ()),
            Flip(flip),
        )
        return View("global", chain)

    return Views((view(0), view(1)))


def assigned_crops(
    size: int = 224,
    small: int = 96,
    locals: int = 6,
    *,
    scale: Range = (0.14, 1.0),
    small_scale: Range = (0.05, 0.14),
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2),
    sigma: Range = (0.1, 2.0),
    flip: float = 0.5,
) -> Views:
    """Two global views of `size` pixels and `locals` local ones of `small` pixels, augmented alike as SwAV's (Caron et al. 2020).

    Bilinear crops of `scale` of the area, mirrored with probability `flip`; `jitter` with 0.8, grey with 0.2, blur of `sigma` pixels
    with 0.5. Without local views the authors' global ones have a `scale` of (0.08, 1).
    """

    def crop(side: int, share: Range) -> tuple[Transform, ...]:
        colours = (ColourJitter(*jitter, p=0.8), Grayscale(0.2), Blur(sigma, p=0.5))
        return RandomResizedCrop((side, side), share), Flip(flip), *colours

    views = View("global", crop(size, scale), 2), View("local", crop(small, small_scale), locals)
    return Views(tuple(view for view in views if view.count))


@dataclass(frozen=True, slots=True)
class Patches:
    """Add `count` views of the role "local": some of `grid` x `grid` overlapping patches of one augmented crop (OBoW, 2012.11552).

    `transforms` make the crop; patches of `size` pixels start where they are spread evenly plus up to `jitter` pixels. The picture
    goes; what made earlier views must have kept it (`Views(..., keep=True)`).
    """

    transforms: tuple[Transform, ...]
    count: int = 5
    size: int = 96
    jitter: int = 24
    grid: int = 3

    def __call__(self, sample: Sample, draw: Draw) -> Sample:
        if self.grid < 2 or not 1 <= self.count <= self.grid**2 or self.jitter < 0:
            raise UsageError(f"patches: expected grid >= 2, 1 <= count <= grid * grid and jitter >= 0, found {self}")
        whole = apply(self.transforms, replace(sample, views=()), draw)
        steps = [(side - self.size - self.jitter) // (self.grid - 1) for side in whole.size]
        if min(steps) < 0:
            raise UsageError(f"patches of {self.size} + {self.jitter} pixels do not fit into a crop of {whole.size}")
        made: list[tuple[str, Sample]] = []
        for place in draw.rng.permutation(self.grid**2)[: self.count].tolist():
            top, left = (step * at + draw.integer(0, self.jitter + 1) for step, at in zip(steps, divmod(place, self.grid)))
            made.append(("local", windowed(whole, top, left, (self.size, self.size), 0, KEEP)))
        inputs = {name: value for name, value in sample.inputs.items() if name != "image"}
        return replace(sample, inputs=inputs, views=(*sample.views, *made))
