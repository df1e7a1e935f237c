"""The probes of places: one method at a time, handed on with the options that it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from opticus.structures import UnknownNameError, UsageError
from opticus.verbs.attention_masks import AttentionMasks, attention_masks
from opticus.verbs.propagate import Propagation, propagate

VERBS: dict[str, Callable[..., Propagation | AttentionMasks]] = {"propagation": propagate, "attention-mask": attention_masks}


def probe_dense(model: nn.Module, data: Any, methods: Sequence[str], *, split: str, **options: Any) -> Propagation | AttentionMasks:
    """The one dense method of `methods`; its split is "val" where the data has no "test". UsageError for several methods at once."""
    if len(methods) > 1:
        raise UsageError(f"{', '.join(methods)}: methods on places of pictures are probed one at a time")
    verb = VERBS[methods[0]]
    known = list(inspect.signature(verb).parameters)[2:]
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of {methods[0]}", key, known)
    return verb(model, data, split=None if split == "test" else split, **options)


__all__ = ["VERBS", "probe_dense"]
