"""`open_data`: one door to all data. A name, a path whose format is found by looking at it, or an iterable of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opticus.data.records import Source
from opticus.structures import DataError, Sample, UsageError

OnBad = Literal["raise", "quarantine", "keep"]
EMBEDDED = ("digits", "scenes")
_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


class Format(NamedTuple):
    """One readable format: what is looked for, whether a path looks like it, and the reader."""

    name: str
    looks_for: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, str], Source]


def open_data(
    source: str | Path | Iterable[Sample],
    split: str = "train",
    *,
    on_bad: OnBad = "raise",
    quarantine: str | Path | None = None,
    **options: Any,
) -> Source:
    """The data set `source`: "digits", "scenes", a folder or file in a known format, or an iterable of `Sample`.

    `split` is "train", "val" or "test" (with the usual aliases). Annotations are checked (boxes finite, non-empty and inside,
    categories known, ids unique): `on_bad="raise"` stops with a DataError that names the first bad record, "quarantine" leaves bad
    records out and lists them with their reasons in the result's `quarantined`, "keep" passes them on. `quarantine` is a CSV
    written by the doctor whose records are left out. Further options go to embedded sets (`masks=True`). Raises DataError when
    nothing matches.
    """
    if on_bad not in ("raise", "quarantine", "keep"):
        raise UsageError(f"on_bad must be 'raise', 'quarantine' or 'keep', found {on_bad!r}")
    split = _ALIASES.get(split, split)
    if isinstance(source, str) and source in EMBEDDED:
        return _embedded(source, split, options)
    raise DataError(f"{source}: neither an embedded data set ({', '.join(EMBEDDED)}) nor a path that exists")


def _embedded(name: str, split: str, options: dict[str, Any]) -> Source:
    from opticus.data.embedded.digits import Digits
    from opticus.data.embedded.scenes import Scenes

    makers: dict[str, Callable[..., Source]] = {"digits": Digits, "scenes": Scenes}
    splits = ("train", "val", "test")
    if split not in splits:
        raise DataError(f"{name} has the splits {', '.join(splits)}, found {split!r}")
    try:
        return makers[name](split, **options)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from error
