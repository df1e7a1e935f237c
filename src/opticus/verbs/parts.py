"""Pretrained parts: a detector that starts from a trained classifier, say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from opticus import zoo
from opticus.structures import Part, UsageError, WeightsError
from opticus.verbs.models import Model, create, load, save


def load_part(network: Model, field: str, source: str | Path) -> None:
    """Fill the part `field` of `network` from `source`: a run folder, published weights ("resnet/50:imagenet1k_v2"), or a file.

    Every tensor of the part must be in the source with its shape; what the source has beyond that (a classifier's head) is left
    out and named on stderr. Raises UsageError if `field` is no part, WeightsError if the source does not fit.
    """
    part = getattr(cast(Any, network).config, field)
    if not isinstance(part, Part):
        raise UsageError(f"{network.card.name}: {field} is not a part, so {field}_weights= means nothing")
    inner = cast(nn.Module, getattr(network, field))
    trained = _trained(part, source)
    if trained.card.task == "embed" and isinstance(inner_of := getattr(trained, "backbone", None), nn.Module):
        trained = inner_of  # what a method without labels learned is its backbone
    state = trained.state_dict()
    wanted = inner.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}" for key in wanted
                 if key in state and state[key].shape != wanted[key].shape]  # fmt: skip
    if missing or misshapen:
        faults = [f"missing {', '.join(missing[:4])} ({len(missing)} in all)"] * bool(missing)
        faults += [f"misshapen {'; '.join(misshapen[:4])} ({len(misshapen)} in all)"] * bool(misshapen)
        raise WeightsError(f"{source}: does not fit the {field} {part.name} of {network.card.name}: {'; '.join(faults)}")
    inner.load_state_dict(cast("dict[str, Tensor]", {key: state[key] for key in wanted}))
    extra = [key for key in state if key not in wanted]
    network.card.provenance = {**network.card.provenance, f"{field}_weights": str(source)}
    if extra:
        print(f"opticus: {source}: left out of the {field}: {', '.join(extra[:6])}", file=sys.stderr)  # noqa: T201 - rule 7


def save_part(network: Model, field: str, path: Path) -> None:
    """Write the part `field` of `network` as a network of its own, which every verb takes; nothing if the network has no such part."""
    part = getattr(cast(Any, network).config, field, None)
    if not isinstance(part, Part):
        return
    alone = create(part.name, **part.changes)
    alone.load_state_dict(cast(nn.Module, getattr(network, field)).state_dict())
    alone.prepare = network.prepare
    card = network.card
    alone.card = replace(card, name=part.name, task=alone.card.task, labels=None, label_ids=None,
                         provenance={**card.provenance, "part": f"{field} of {card.name}"})  # fmt: skip
    save(alone, path)


def _trained(part: Part, source: str | Path) -> Model:
    path = Path(source)
    if not path.exists() and ":" in str(source):
        return load(str(source), quiet=True)
    if path.is_dir() or path.suffix == ".safetensors":
        try:
            return load(path, quiet=True)
        except WeightsError:
            if path.is_dir():
                raise
    fields = set(type(zoo.config_of(part.name)).__dataclass_fields__)
    changes = {key: value for key, value in part.changes.items() if key in fields and key != "classes"}
    return load(part.name, path, quiet=True, **changes)
