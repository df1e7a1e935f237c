"""What centring and sharpening do to a teacher's answers (DINO, Caron et al. 2021, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opticus.losses.collapse import entropies
from opticus.plot.centring import answer_bars
from opticus.transforms.prepare import prepare
from opticus.verbs.explain_request import Answer, Request, at_least
from opticus.verbs.features import embed

SHARP = 0.04


def centring(request: Request, *, outputs: int = 24, limit: int = 64, temperature: float = SHARP) -> Answer:
    """Answers of a head with random weights about the first `limit` pictures, plain, centred, sharpened, and both.

    A common direction is added to the head's logits, as it grows in training when nothing holds it: sharpened alone, it makes one
    output take all pictures; centring removes it, and alone leaves answers that are nearly uniform. Upper bars: the answer about one
    picture; lower bars: the mean over all pictures. Shows entropy and information in nats (log K at most).
    """
    at_least("outputs", outputs, 2)
    samples = request.samples(limit)
    at_least("limit", len(samples), 2)
    images = prepare([sample.picture for sample in samples], request.rule)
    with torch.no_grad():
        vectors = embed(request.model, images.pixels)
    generator = torch.Generator().manual_seed(request.seed)
    logits = _logits(vectors, outputs, generator)
    centre = logits.mean(0, keepdim=True)
    ways = {
        "plain": logits.softmax(1),
        "centred": (logits - centre).softmax(1),
        "sharpened": (logits / temperature).softmax(1),
        "centred and sharpened": ((logits - centre) / temperature).softmax(1),
    }
    numbers: dict[str, Any] = {}
    shown: dict[str, tuple[Any, Any, float, float]] = {}
    for name, probs in ways.items():
        found = entropies(probs)
        numbers[name] = {"entropy": float(found.each), "information": float(found.information)}
        shown[name] = (probs[0].numpy(), probs.mean(0).numpy(), float(found.each), float(found.information))
    first = samples[0].id
    caption = (
        f"Answers of {outputs} outputs about {len(samples)} pictures. Above: about {first}; below: the mean over all. Only centred and "
        f"sharpened answers are sure of a picture and differ between pictures; log K is {torch.tensor(float(outputs)).log():.2f} nats."
    )
    notes = [
        "The head has random weights and a common direction of logits; what a trained head does is in the curves of a run's report."
    ]
    return Answer(answer_bars(shown, temperature), caption, numbers, notes)


def _logits(vectors: Tensor, outputs: int, generator: torch.Generator) -> Tensor:
    """Cosines with random prototypes of what tells the vectors apart, plus one direction that all share."""
    centred = vectors - vectors.mean(0, keepdim=True)
    units = torch.nn.functional.normalize(centred, dim=1)
    prototypes = torch.nn.functional.normalize(torch.randn(outputs, vectors.shape[1], generator=generator), dim=1)
    common = torch.randn(1, outputs, generator=generator).abs()
    own = units @ prototypes.T
    return own / own.std().clamp(min=1e-6) * 0.2 + common
