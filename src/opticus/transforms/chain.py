"""A chain of transforms is a plain sequence; this is what one is, how a chain is run and how it is written down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from opticus.structures import Sample
from opticus.transforms.draw import Draw


class Transform(Protocol):
    """A frozen dataclass whose fields are its parameters; called with a sample and its draw, it returns a new sample."""

    def __call__(self, sample: Sample, draw: Draw, /) -> Sample: ...


def apply(transforms: Iterable[Transform], sample: Sample, draw: Draw) -> Sample:
    """`sample` through each transform in turn; all draw from the one stream of `draw`, in order."""
    for transform in transforms:
        sample = transform(sample, draw)
    return sample


def described(value: Any) -> Any:
    """A JSON-ready description of a transform or a chain: its name and its parameters, nested ones alike.

    It is written into run folders so that one can read and compare protocols; nothing is ever constructed from it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"transform": type(value).__name__, **{f.name: described(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [described(item) for item in value]
    return value
