"""Every error that opticus raises on purpose: one sentence naming the file, record or key, what was expected, what was found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 32


class Error(Exception):
    """Base of all opticus errors; `exit_code` is what the command line returns for it (DESIGN 4)."""

    exit_code = 3


class UsageError(Error):
    """The caller's words are wrong: unknown name, key or value."""

    exit_code = 2


class UnknownNameError(UsageError, KeyError):
    """A name that is not in a known list; the message ends with the nearest known names, or with all if they are few."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        known = list(known)
        self.nearest = nearest(name, known)
        listed = f"; known: {', '.join(known)}" if 0 < len(known) <= LISTED else ""
        hint = f"; did you mean {' or '.join(repr(n) for n in self.nearest)}?" if self.nearest else listed
        self.message = f"unknown {kind} {name!r}{hint}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class DataError(Error):
    """A data set, file or record is not what its format promises."""


class ImageError(DataError):
    """A picture cannot be decoded (corrupt, truncated, too large, not an image)."""


class WeightsError(Error):
    """A weights file cannot be fetched, read or matched to a network."""


class CapabilityError(UsageError):
    """A verb was asked of a model that lacks the capability (DESIGN 5), or of data without the needed target."""


class MetricError(Error):
    """A metric cannot be computed, or two numbers of unlike protocols were to be compared."""


class TrainError(Error):
    """Training stopped: non-finite loss, a resume under other conditions, an unwritable run folder."""


class MissingPackageError(UsageError):
    """An optional dependency is absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the package {package!r}; install it with: pip install 'opticus[{extra}]'")


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names closest to `name`, best first (ratio >= 0.5)."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
