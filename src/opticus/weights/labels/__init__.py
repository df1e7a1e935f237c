"""Class names of published weights, shipped as text: one name per line, in the order of the head's outputs.

The names are those of torchvision (BSD-3-Clause, `torchvision.models._meta`), which made the ImageNet ones unique. The WordNet
ids beside them ("imagenet1k_synsets", the folder names of ImageNet) are those of timm (Apache-2.0). "voc20" is data/voc.names of
pjreddie/darknet (public domain), the classes of Pascal VOC in the order of their names.
"""

from __future__ import annotations

import functools
from importlib import resources

from opticus.structures import UnknownNameError


def label_tables() -> tuple[str, ...]:
    """The names of the tables that ship with the package."""
    folder = resources.files("opticus.weights.labels")
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")))


@functools.cache
def labels(name: str) -> tuple[str, ...]:
    """The class names of a table such as "imagenet1k"; UnknownNameError with the nearest names if there is none.

    "coco91" is indexed by COCO's own category ids, 0 and the ten unused ids being "N/A"; "coco80" holds the 80 used ones in order.
    """
    if name not in label_tables():
        raise UnknownNameError("label table", name, label_tables())
    text = resources.files("opticus.weights.labels").joinpath(f"{name}.txt").read_text("utf-8")
    return tuple(text.removesuffix("\n").split("\n"))
