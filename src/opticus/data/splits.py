"""Names of splits: how "val", "valid", "validation" and "val2017" find each other."""

from __future__ import annotations

import re
from collections.abc import Iterable

from opticus.structures import DataError

_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test", "eval": "val"}
_KNOWN = ("trainval", "train", "val", "test")


def canonical(name: str) -> str:
    """ "val2017" -> "val", "validation" -> "val"; other names in lower case."""
    word = re.sub(r"[-_ ]?(19|20)\d\d$", "", name.lower())
    return _ALIASES.get(word, word)


def is_split(name: str) -> bool:
    """Whether a folder or file of this name holds a split."""
    return canonical(name) in _KNOWN


def split_in(text: str) -> str | None:
    """The split that a file name such as "instances_val2017" speaks of, as written there ("val2017")."""
    for word in re.split(r"[-_. ]", text):
        if is_split(word):
            return word
    return None


def resolve(wanted: str, available: Iterable[str], where: str) -> str:
    """The member of `available` that `wanted` means; DataError naming what exists otherwise."""
    names = sorted(set(available))
    if wanted in names:
        return wanted
    alike = [name for name in names if canonical(name) == canonical(wanted)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise DataError(f"{where}: the split {wanted!r} could be any of {', '.join(alike)}; name one of them")
    raise DataError(f"{where}: there is no split {wanted!r}; there is {', '.join(names) or 'none'}")
