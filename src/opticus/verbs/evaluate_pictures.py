"""evaluate for systems whose answers are pictures: how close restored ones are, how well drawn ones cover real ones."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from opticus.losses.classify import logits_of
from opticus.losses.pictures import pictures
from opticus.metrics.pictures import CHANNELS, Channel, Restoration
from opticus.metrics.samples import class_figures, distances
from opticus.structures import (
    Autoencoder,
    CapabilityError,
    DataError,
    Dataset,
    Density,
    Embedder,
    Picture,
    Prepare,
    Sampler,
    UnknownNameError,
    UsageError,
)
from opticus.transforms.prepare import place as placed
from opticus.transforms.prepare import prepare
from opticus.verbs.models import load
from opticus.verbs.predict import autocast, infer, place
from opticus.verbs.sample import sample

SAMPLES = 500  # drawn where the caller does not say
LOOKED_AT = 64  # pictures that go through a network together


def has_answers(dataset: Dataset) -> bool:
    """Whether the data says what the right picture is."""
    return len(dataset) > 0 and isinstance(dataset.target_of(0), Picture)


# --- restored pictures -----------------------------------------------------------------------------------------------------


def restored(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    *,
    batch: int,
    device: str | None,
    precision: str,
    count: int,
    metric: str | None,
    quiet: bool,
    keep: int,
) -> tuple[Restoration, dict[str, Any]]:
    """PSNR, SSIM and MAE of a translator against the data's target pictures, or of an autoencoder against its own input.

    Pictures are compared in the frame of the target; where the network works at a fixed size (autoencoders always) in the network's
    own, to which the right picture is brought by the network's own rule. Returns the metric and the first `keep` answers by id.
    """
    if metric is not None and metric not in CHANNELS:
        raise UnknownNameError("metric", metric, CHANNELS)
    network, codes = cast(Any, model), network_codes(model)
    if not codes and not has_answers(dataset):
        raise CapabilityError(
            f"{network.card.name} answers pictures by pictures: it is scored on data with target pictures, such as sketches"
        )
    own = codes or network.prepare.resize != "none"
    rule: Prepare = network.prepare if codes else getattr(network, "produces", network.prepare)
    border = int(getattr(network, "scale", 1)) if metric == "y" else 0
    channel: Channel = "y" if metric == "y" else "rgb"
    scorer = Restoration(channel=channel, border=border, frame="network" if own else "target", data=dataset.hash, split=split)
    kept: dict[str, Any] = {}
    bar: Any = tqdm(total=count, unit="img", desc=f"evaluate {split}", file=sys.stderr, disable=quiet, leave=False)
    with bar:
        for first in range(0, count, batch):
            samples = [dataset[i] for i in range(first, min(first + batch, count))]
            shown = [sample.picture for sample in samples]
            answers = reconstructions(model, shown, device, precision) if codes else infer(model, shown, device, precision)
            for sample, answer in zip(samples, answers):
                right = sample.picture if codes else sample.target
                if not isinstance(right, Picture):
                    raise DataError(f"{sample.id}: has no target picture, so it cannot be scored")
                scorer.update(answer, Picture(placed(right.pixels, rule, sample.id).pixels) if own else right, sample.id)
                if len(kept) < keep:
                    kept[sample.id] = answer
            bar.update(len(samples))
    return scorer, kept


def network_codes(model: nn.Module) -> bool:
    """Whether the system is scored by what comes back from its code."""
    return cast(Any, model).card.task == "reconstruct" and isinstance(model, Autoencoder)


def reconstructions(model: nn.Module, batch: list[Picture], device: str | None = None, precision: str = "fp32") -> list[Picture]:
    """What comes back from the codes of pictures, in the network's own frame; CapabilityError for other networks."""
    network = cast(Any, model)
    if not isinstance(model, Autoencoder):
        raise CapabilityError(f"{network.card.name} has no encode() and decode(): it restores nothing from a code")
    where = place(model, device)
    images = prepare(batch, network.prepare).to(where)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(where, precision):
            out = model.decode(model.encode(images.pixels)).float()
    finally:
        model.train(training)
    found = pictures(out, network.prepare)
    if images.valid is None:
        return found
    ends = [(int(v.any(1).sum()), int(v.any(0).sum())) for v in images.valid]
    return [Picture(one.pixels[:h, :w].contiguous()) for one, (h, w) in zip(found, ends)]


# --- drawn pictures --------------------------------------------------------------------------------------------------------


class Features(NamedTuple):
    """The space that pictures are compared in: vectors (N, D), what the classifier says (N, K) or None, and the passport's words."""

    vectors: npt.NDArray[np.float32]
    probs: npt.NDArray[np.float32] | None
    protocol: dict[str, Any]


def features_of(shown: list[Picture], network: nn.Module | None, rule: Prepare) -> Features:
    """Vectors of pictures: a network's embedding, or (None) the pixels in the frame of `rule`, in [0, 1]."""
    if network is None:
        rows = [placed(picture.pixels, rule).pixels.flatten().float() / 255 for picture in shown]
        return Features(torch.stack(rows).numpy(), None, {"features": "pixels", "size": list(rule.size), "channels": rule.channels})
    model = cast(Any, network)
    if not isinstance(network, Embedder):
        raise CapabilityError(
            f"features={model.card.name}: the network has no embed(); a classifier or a trained encoder is needed"
        )
    vectors: list[torch.Tensor] = []
    probs: list[torch.Tensor] = []
    network.eval()
    with torch.inference_mode():
        for first in range(0, len(shown), LOOKED_AT):
            pixels = prepare(shown[first : first + LOOKED_AT], model.prepare).pixels
            vectors.append(network.embed(pixels))
            if model.card.task == "classify" and getattr(model.config, "classes", 0):
                probs.append(logits_of(network(pixels)).softmax(1))
    state = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        state.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    words = {"features": model.card.name, "weights": state.hexdigest()[:16], "prepare": model.prepare.to_json()}
    return Features(torch.cat(vectors).numpy(), torch.cat(probs).numpy() if probs else None, words)


def feature_network(features: str | Path | nn.Module | None) -> nn.Module | None:
    """The network that `features` names: None or "pixels" is no network."""
    if features is None or (isinstance(features, str) and features == "pixels"):
        return None
    return features if isinstance(features, nn.Module) else load(features, quiet=True)


def drawn(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    *,
    count: int,
    batch: int,
    device: str | None,
    quiet: bool,
    features: str | Path | nn.Module | None = None,
    samples: int | None = None,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """FID, KID, precision, recall, density and coverage of drawn pictures against the data's; bits a dimension where there are any.

    A feature network with classes adds what it says about the drawn pictures, and whether class-conditional ones show their class.
    Returns figures, protocol and some drawn pictures by name.
    """
    network = cast(Any, model)
    if not isinstance(model, Sampler):
        raise CapabilityError(f"{network.card.name} draws no pictures: it has no sample()")
    number = samples or min(SAMPLES, max(count, 2))
    if number < 6 or count < 6:
        raise UsageError(f"at least 6 drawn and 6 real pictures are needed to compare them, found {number} and {count}")
    rule: Prepare = getattr(network, "produces", network.prepare)
    space = feature_network(features)
    classes = int(getattr(network.config, "classes", 0) or 0)
    labels = torch.arange(number) % classes if classes else None
    accepts = steps is not None and "steps" in inspect.signature(model.sample).parameters
    made = sample(
        model, number, seed=seed, batch=batch, device=device, quiet=quiet, condition=labels, steps=steps if accepts else None
    )
    real = [Picture(placed(dataset[i].picture.pixels, rule).pixels) for i in range(count)]
    seen, true = features_of(made.pictures, space, rule), features_of(real, space, rule)
    values = distances(true.vectors, seen.vectors)
    if seen.probs is not None:
        values |= class_figures(seen.probs)
        if labels is not None and seen.probs.shape[1] == classes:
            values["class accuracy"] = float((seen.probs.argmax(1) == labels.numpy()).mean())
    if isinstance(model, Density):
        values["bits/dim"] = bits(model, real, rule, device)
    protocol = {
        "metric": "samples",
        **true.protocol,
        "frame": {"size": list(rule.size), "channels": rule.channels, "resize": rule.resize},
        "samples": number,
        "real": count,
        "seed": seed,
        "steps": steps,
        "data": dataset.hash,
        "split": split,
    }
    return values, protocol, {f"sample {i}": picture for i, picture in enumerate(made.pictures)}


def bits(model: nn.Module, real: list[Picture], rule: Prepare, device: str | None) -> float:
    """-log2 p(x) a value of a picture, averaged over pictures that are in the network's frame."""
    where, total = place(model, device), 0.0
    size = real[0].pixels.numel()
    model.eval()
    for first in range(0, len(real), LOOKED_AT):
        pixels = prepare(real[first : first + LOOKED_AT], rule).pixels.to(where)
        with torch.no_grad():
            total -= float(cast(Density, model).log_likelihood(pixels).double().sum())
    return total / (len(real) * size * math.log(2))
