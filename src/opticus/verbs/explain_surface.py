"""The loss around trained weights, in a plane of filter-normalised random directions (Li et al., NeurIPS 2018, arXiv 1712.09913)."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from opticus import zoo
from opticus.data.collate import collate
from opticus.plot.landscape import Surface, landscape
from opticus.structures import Batch, CapabilityError, Prepare, Progress, Sample, UsageError
from opticus.transforms.chain import apply
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import CenterCrop, Resize
from opticus.verbs.explain_layers import title_of
from opticus.verbs.explain_request import Answer, Request, Values, at_least, rounded

BATCH = 128
Direction = dict[str, Tensor]


def filter_normalised(network: nn.Module, generator: torch.Generator) -> Direction:
    """A random direction: every filter (a row of each weight with two or more dimensions) has the norm of the network's own.

    Section 4: d_ij <- d_ij / ||d_ij|| * ||theta_ij||. Biases and the vectors of norm layers do not move.
    """
    direction: Direction = {}
    for name, parameter in network.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim < 2:
            direction[name] = torch.zeros_like(parameter)
            continue
        rows, own = drawn.flatten(1), parameter.detach().cpu().double().flatten(1)
        scaled = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) * own.norm(dim=1, keepdim=True)
        direction[name] = scaled.reshape(parameter.shape).to(parameter)
    return direction


@contextlib.contextmanager
def moved(network: nn.Module) -> Generator[Any]:
    """Yields `move(alpha, first, beta, second)`, which sets the weights to theta + alpha first + beta second; restores them."""
    kept = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def move(alpha: float, first: Direction, beta: float, second: Direction) -> None:
        for name, parameter in network.named_parameters():
            parameter.copy_(kept[name] + alpha * first[name] + beta * second[name])

    try:
        yield move
    finally:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(kept[name])


def batches_of(network: Any, samples: Sequence[Sample]) -> list[Batch]:
    """Samples as the network's own rule prepares them, targets moved along, in batches on its device."""
    chain = _framing(network.prepare)
    framed = [apply(chain, sample, draw_for(0, 0, i)) for i, sample in enumerate(samples)]
    found: list[Batch] = []
    for first in range(0, len(framed), BATCH):
        batch = collate(framed[first : first + BATCH], network.prepare)
        weight = next(network.parameters())
        found.append(batch.to(weight.device, torch.float64 if weight.dtype == torch.float64 else None))
    return found


def _framing(rule: Prepare) -> tuple[Any, ...]:
    if rule.resize == "none":
        return ()
    resize = Resize(
        rule.size,
        "shortest" if rule.resize in ("scaled", "rounded") else rule.resize,
        rule.interpolation,
        rule.antialias,
        rule.fill,
    )
    return (resize,) if rule.crop is None else (resize, CenterCrop(rule.crop, rule.fill))


def loss_of(objective: Any, batches: Sequence[Batch], seed: int = 0) -> float:
    """The objective's loss averaged over samples, without gradients; an objective that draws noise draws the same every time."""
    total, count = 0.0, 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in batches:
            terms = objective(batch, Progress(0, 0, 1, 1, objective.phases(0)[-1]))
            total += float(sum(terms.values())) * len(batch)
            count += len(batch)
    return total / count


def surface(request: Request, *, steps: int = 15, span: float = 1.0, limit: int = 256) -> Answer:
    """Contours of the loss in a plane around the weights of one or several models, and the cut through the middle.

    `steps` x `steps` losses over -span..span in both directions, on the first `limit` records of data=.
    """
    at_least("steps", steps, 3)
    if not span > 0:
        raise UsageError(f"span must be larger than 0, found {span}")
    _ = request.model  # a sentence if none was named
    samples = request.samples(limit)
    steps += (steps + 1) % 2  # an odd number, so that the weights themselves lie on the grid
    places = np.linspace(-span, span, steps)
    found: list[Surface] = []
    table: list[dict[str, Any]] = []
    for network, title in zip(request.models, request.titles):
        one = _surface(network, title, samples, places, request.seed)
        found.append(one)
        middle = steps // 2
        centre = float(one.losses[middle, middle])
        ring = np.hypot(*np.meshgrid(places, places, indexing="ij"))
        near = one.losses[(ring > 0) & (ring <= 0.5 * span)]
        table.append({
            "model": title, "loss at the weights": centre, "mean loss within half the span": float(np.nanmean(near)) if near.size else None,
            "largest loss": float(np.nanmax(one.losses)), "convex along the cut": _convex(one.line),
        })  # fmt: skip
    numbers = {
        "span": span,
        "records": len(samples),
        "models": [
            {"name": one.name, "alphas": rounded(one.alphas), "betas": rounded(one.betas), "losses": rounded(one.losses),
             "cut": {"places": rounded(one.places), "losses": rounded(one.line)}}
            for one in found
        ],
    }  # fmt: skip
    return Answer(
        landscape(found),
        "The cross is the trained network; colours are on one logarithmic scale, the graph cuts along the dashed line.",
        numbers,
        ["Li et al. 2018: random directions whose filters have the norms of the network's own; biases and norm layers stay. "
         f"The loss is that of training, in evaluation mode, on {len(samples)} records of the {request.split} split."],
        {"Surfaces": table},
    )  # fmt: skip


def _surface(network: nn.Module, title: str, samples: Sequence[Sample], places: Values, seed: int) -> Surface:
    card = getattr(network, "card", None)
    if card is None:
        raise CapabilityError(f"{title_of(network)} has no card: the loss of a network is known for those of create and load only")
    objective = zoo.paper(zoo.split(card.name)[0]).objective(network)
    objective.eval()
    batches = batches_of(network, samples)
    draw = torch.Generator().manual_seed(seed)
    first, second = filter_normalised(network, draw), filter_normalised(network, draw)
    losses = np.full((len(places), len(places)), np.nan)
    fine = np.linspace(float(places[0]), float(places[-1]), 2 * len(places) - 1)
    with moved(network) as move:
        bar: Any = tqdm(
            itertools.product(range(len(places)), repeat=2), total=losses.size, unit="loss", file=sys.stderr, disable=None
        )
        for i, j in bar:
            move(float(places[i]), first, float(places[j]), second)
            losses[i, j] = loss_of(objective, batches, seed)
        middle = losses[:, len(places) // 2]
        line = np.empty(len(fine))
        for i, alpha in enumerate(fine):
            if i % 2 == 0:
                line[i] = middle[i // 2]
                continue
            move(float(alpha), first, 0.0, second)
            line[i] = loss_of(objective, batches, seed)
    return Surface(title, places, places, losses, fine, line)


def _convex(line: Values) -> float:
    """Share of the cut's inner points at which the loss curves upwards."""
    bend = line[2:] - 2 * line[1:-1] + line[:-2]
    return float((bend >= 0).mean())
