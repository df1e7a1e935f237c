"""How alike the class and the distillation token of a DeiT are, layer by layer (Touvron et al. 2021, section 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.data.open import EMBEDDED, open_data
from opticus.plot.figures import profile
from opticus.structures import CapabilityError, DataError, Dataset, Picture, UsageError
from opticus.structures.files import write_text
from opticus.transforms.prepare import prepare
from opticus.verbs.predict import pictures

FILE = "token_cosine.json"


class Cosine(NamedTuple):
    """Cosine of the two tokens at one place: the mean over the pictures and its standard deviation."""

    layer: str  # "tokens" (the learned vectors), "input" (with their positions), "block 1", ..., "output" (normalised)
    cosine: float
    spread: float


def token_cosine(model: nn.Module, data: Any, *, split: str = "test", limit: int | None = 500, batch: int = 32) -> list[Cosine]:
    """The cosine between class and distillation token in every layer, averaged over pictures.

    `data` is a data set, an embedded one's name ("crops"), or what `predict` takes (a picture, a folder, a list); `limit` takes the
    first so many. The paper's DeiT-B has 0.06 between the learned tokens and 0.93 in the last layer; two class tokens 0.999.
    Raises CapabilityError for a network without a distillation token, DataError if there is no picture.
    """
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    if not has_tokens(model):
        raise CapabilityError(f"{type(model).__name__} has no distillation token beside its class token")
    network, first = cast(Any, model), next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found: list[Tensor] = []
    try:
        stream = islice(_pictures(data, split), limit)
        while chunk := list(islice(stream, batch)):
            images = prepare(chunk, network.prepare).to(first.device, first.dtype)
            with torch.inference_mode():
                tokens: Tensor = network.token_layers(images.pixels)
                found.append(F.cosine_similarity(tokens[:, :, 0], tokens[:, :, 1], dim=-1).cpu())  # (layers, pictures)
    finally:
        for module, training in modes.items():
            module.training = training
    if not found:
        raise DataError("there is no picture to look at")
    with torch.inference_mode():
        learned = float(F.cosine_similarity(network.cls_token.flatten(), network.dist_token.flatten(), dim=0))
    table = torch.cat(found, 1).double()
    names = ["input", *(f"block {i + 1}" for i in range(table.shape[0] - 2)), "output"]
    rows = zip(names, table.mean(1).tolist(), table.std(1, correction=0).tolist())
    return [Cosine("tokens", learned, 0.0), *(Cosine(*row) for row in rows)]


def has_tokens(model: nn.Module) -> bool:
    """Whether a network carries a distillation token that `token_cosine` can follow."""
    return hasattr(model, "token_layers") and getattr(model, "dist_token", None) is not None


def keep_tokens(folder: Path, model: nn.Module, data: Dataset) -> tuple[str, str, str]:
    """Write token_cosine.json of a run into `folder`; returns the section of its report (anchor, heading, HTML)."""
    rows = token_cosine(model, data)
    write_text(folder / FILE, json.dumps([row._asdict() for row in rows], indent=1))
    drawn = profile([row.layer for row in rows], [row.cosine for row in rows], [row.spread for row in rows], "cosine")
    cells = "".join(
        f"<tr><td>{row.layer}</td><td class='n'>{row.cosine:.3f}</td><td class='n'>{row.spread:.3f}</td></tr>" for row in rows
    )
    table = f"<table><thead><tr><th>layer</th><th class='n'>cosine</th><th class='n'>spread</th></tr></thead><tbody>{cells}</tbody></table>"
    said = (
        "Cosine between the class token and the distillation token, mean and standard deviation over the pictures: the learned tokens, "
        "with their positions, after every block, and normalised. In the paper 0.06 between the learned tokens and 0.93 in the last layer."
    )
    return (
        "tokens",
        "Class and distillation token",
        f'<p class="soft">{said}</p><div class="wide">{drawn}</div><div class="wide">{table}</div>',
    )


def _pictures(data: Any, split: str) -> Iterator[Picture]:
    if isinstance(data, str) and data in EMBEDDED:
        data = open_data(data, split)
    if all(hasattr(data, name) for name in ("target_of", "names", "task")):
        dataset = cast(Dataset, data)
        return (dataset[i].picture for i in range(len(dataset)))
    return (item.picture for item in pictures(data))
