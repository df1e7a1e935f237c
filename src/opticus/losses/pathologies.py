"""What goes wrong between a generator and its discriminator: figures for the log, and the sentence that warns.

Mode collapse (everything drawn is alike, or known modes are missing), a discriminator so good that the generator is told nothing any
more, and pictures that go round in circles instead of settling. Coverage is that of Naeem et al. 2020 (arXiv 2002.09797).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.adversarial import per_picture
from opticus.ops.collectives import all_reduce
from opticus.structures import UsageError

WINDOW = 64  # generator updates over which pictures can be seen to go round
EARLY = 20  # generator updates whose gradient is the level that later ones are compared with
KEPT = 8  # side that pictures are averaged down to before they are compared
NEIGHBOURS = 5
WARNS = "adversarial training goes wrong"
LEAST_SPREAD = 0.3  # of the real pictures' deviation
LEAST_NEAREST = 0.05  # of the distance between a real picture and its nearest neighbour
LEAST_COVERAGE = 1 / 3  # of the best coverage so far
LEAST_RECALL = 0.75  # of known modes
LEAST_PULL = 0.05  # of the generator's early gradient
TOLD_APART = 0.98
MOST_SWING = 0.35  # of the real pictures' deviation
RHYTHM = 0.5


@torch.no_grad()
def recall(points: Float[Tensor, "N D"], modes: Float[Tensor, "K D"], near: float) -> Tensor:
    """The share of known modes that at least one point lies closer to than `near`."""
    return (torch.cdist(points, modes).amin(0) < near).to(points.dtype).mean()


@torch.no_grad()
def precision(points: Float[Tensor, "N D"], modes: Float[Tensor, "K D"], near: float) -> Tensor:
    """The share of points that lie closer than `near` to a mode."""
    return (torch.cdist(points, modes).amin(1) < near).to(points.dtype).mean()


@torch.no_grad()
def spread(fake: Float[Tensor, "N D"], real: Float[Tensor, "M D"]) -> Tensor:
    """The deviation of drawn pictures about their mean, that of real ones being 1."""
    return (variance(fake) / variance(real).clamp(min=1e-12)).sqrt()


def variance(rows: Float[Tensor, "N D"]) -> Tensor:
    """The mean squared distance from the mean."""
    return (rows - rows.mean(0)).square().sum(1).mean()


@torch.no_grad()
def nearest(fake: Float[Tensor, "N D"], real: Float[Tensor, "M D"]) -> Tensor:
    """The mean distance of a drawn picture to the most alike other one, that between real ones being 1; 0 for duplicates."""
    return distances(fake, 1).mean() / distances(real, 1).mean().clamp(min=1e-12)


@torch.no_grad()
def coverage(fake: Float[Tensor, "N D"], real: Float[Tensor, "M D"], neighbours: int = NEIGHBOURS) -> Tensor:
    """The share of real pictures that have a drawn one nearer than their own `neighbours`-th real neighbour (Naeem 2020, eq. 6)."""
    radius = distances(real, min(neighbours, len(real) - 1))
    return (torch.cdist(real, fake).amin(1) < radius).to(real.dtype).mean()


def distances(rows: Float[Tensor, "N D"], neighbour: int) -> Float[Tensor, "N"]:
    """The distance of every row to its `neighbour`-th nearest other row."""
    return torch.cdist(rows, rows).fill_diagonal_(torch.inf).kthvalue(neighbour, dim=1).values


@torch.no_grad()
def told_apart(real: Float[Tensor, "N"], fake: Float[Tensor, "M"]) -> Tensor:
    """How often a real picture has a higher score than a drawn one: 1 = always, 0.5 = by chance (area under the ROC curve)."""
    difference = real[:, None] - fake[None]
    return (difference > 0).to(real.dtype).mean() + (difference == 0).to(real.dtype).mean() / 2


@torch.no_grad()
def rhythm(track: Float[Tensor, "T D"]) -> Tensor:
    """How much a path returns to its other side: minus the least autocorrelation, over all lags, of the path about its straight line.

    Near 1 for a circle or a swing, near 0 for a random walk's steps, a straight drift or a path that rests.
    """
    count = len(track)
    place = torch.linspace(-1, 1, count, dtype=track.dtype, device=track.device)[:, None]
    rest = track - track.mean(0)
    rest = rest - place * (place * rest).sum(0) / place.square().sum()
    power = rest.square().sum()
    if not bool(power > 1e-24 * track.square().sum().clamp(min=1e-12)):
        return track.new_zeros(())
    spectrum = torch.fft.rfft(rest, 2 * count, dim=0)
    correlation = torch.fft.irfft(spectrum.abs().square().sum(1), 2 * count)[:count]
    return -correlation.amin() / power


def thumbnails(pictures: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
    """Pictures averaged down to at most 8x8, as rows of float32."""
    height, width = pictures.shape[2:]
    return F.adaptive_avg_pool2d(pictures.detach().float(), (min(KEPT, height), min(KEPT, width))).flatten(1)


class Health(nn.Module):
    """Looks on while two networks play and says how they are.

    Known `modes` (K points) that lie apart by more than `near` make collapse a count; else the drawn pictures are compared with the real
    ones of the same batch. What is remembered (the early gradient, the best coverage, the path of the mean picture) is in buffers, so
    that a resumed run says the same.
    """

    pull: Tensor
    early: Tensor
    updates: Tensor
    best: Tensor
    track: Tensor

    def __init__(self, size: Sequence[int], *, modes: Sequence[Sequence[float]] = (), near: float = 0.0) -> None:
        super().__init__()
        if modes and near <= 0:
            raise UsageError(f"near must be positive where modes are given, found {near}")
        self.near = near
        self.modes = tuple(tuple(float(v) for v in mode) for mode in modes)
        channels, height, width = size
        self.register_buffer("pull", torch.zeros(()))
        self.register_buffer("early", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("best", torch.zeros(()))
        self.register_buffer("track", torch.zeros(WINDOW, channels * min(KEPT, height) * min(KEPT, width)))
        self._pictures: tuple[Tensor, Tensor] | None = None
        self._scores: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def saw(self, real: Tensor, fake: Tensor, real_scores: Tensor, fake_scores: Tensor) -> None:
        """What the discriminator was shown, pictures (B, C, H, W), and what it said of each."""
        self._pictures = real.detach(), fake.detach()
        self._scores = per_picture(real_scores.detach().float()), per_picture(fake_scores.detach().float())

    @torch.no_grad()
    def drew(self, fake: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """One update of the generator: what it drew, and its parameters with their gradients."""
        squares = [p.grad.detach().float().square().sum() for p in parameters if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt() if squares else self.pull.new_zeros(())
        count = float(self.updates)
        self.pull += (norm.to(self.pull) - self.pull) * max(0.1, 1 / (count + 1))
        if count < EARLY:
            self.early += (norm.to(self.early) - self.early) / (count + 1)
        self.track[int(count) % WINDOW] = thumbnails(fake).mean(0).to(self.track)
        self.updates += 1

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Of the last step: `spread`, `nearest`, `coverage` (and `recall` of known modes) of what is drawn, `told apart`, the `pull` on the
        generator (1 = as at first), and, once 64 updates were made, the `swing` of the mean picture with its `rhythm`."""
        if self._pictures is None or self._scores is None:
            return {}
        real, fake = (thumbnails(pictures) for pictures in self._pictures)
        found = {"told apart": told_apart(*self._scores)}
        if min(len(real), len(fake)) > 1:
            found |= {"spread": spread(fake, real), "nearest": nearest(fake, real), "coverage": coverage(fake, real)}
        if self.modes:
            modes = real.new_tensor(self.modes)
            found |= {"recall": recall(fake, modes, self.near), "precision": precision(fake, modes, self.near)}
        if float(self.updates) > 0:
            found["pull"] = self.pull / self.early.clamp(min=1e-12)
        if float(self.updates) >= WINDOW:
            path = self.track.roll(-(int(self.updates) % WINDOW), 0).float()
            found |= {"swing": (variance(path) / variance(real).clamp(min=1e-12)).sqrt(), "rhythm": rhythm(path)}
        values = all_reduce(torch.stack([value.float() for value in found.values()]), "mean").tolist()
        named = dict(zip(found, values))
        self.best.fill_(max(float(self.best), named.get("coverage", 0.0)))
        return named

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """The first thing that is wrong, in words that follow `WARNS`."""
        return _silence(figures) or self._collapse(figures) or _circles(figures)

    def _collapse(self, figures: Mapping[str, float]) -> str | None:
        if self.modes:
            count = round(figures.get("recall", 1.0) * len(self.modes))
            few = count < LEAST_RECALL * len(self.modes)
            return f"mode collapse: only {count} of {len(self.modes)} known modes are drawn" if few else None
        if figures.get("spread", 1.0) < LEAST_SPREAD:
            return f"mode collapse: what is drawn spreads {figures['spread']:.2f} as far as the real pictures"
        if figures.get("nearest", 1.0) < LEAST_NEAREST:
            return f"mode collapse: duplicates; drawn pictures lie {figures['nearest']:.3f} as far apart as real ones"
        best = float(self.best)
        if best > 0.3 and figures.get("coverage", 1.0) < LEAST_COVERAGE * best:
            return f"mode collapse: {figures['coverage']:.2f} of the real pictures have a drawn one near them, {best:.2f} had one before"
        return None


def _silence(figures: Mapping[str, float]) -> str | None:
    if figures.get("told apart", 0.5) > TOLD_APART and figures.get("pull", 1.0) < LEAST_PULL:
        return (
            f"vanishing gradient: the discriminator knows {figures['told apart']:.0%} of the pairs apart and tells the generator "
            f"{figures['pull']:.4f} of what it told at first"
        )
    return None


def _circles(figures: Mapping[str, float]) -> str | None:
    if figures.get("swing", 0.0) > MOST_SWING and figures.get("rhythm", 0.0) > RHYTHM:
        return (
            f"oscillation: the mean of what is drawn swings by {figures['swing']:.2f} of the real pictures' deviation and returns "
            f"(rhythm {figures['rhythm']:.2f})"
        )
    return None
