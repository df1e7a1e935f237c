"""CornerNet's and ExtremeNet's networks imported from clones; the compiled corner pools replaced by running maxima (the same rule)."""

import sys
import types

from clones import clone

POOLS = {"top_pool": (2, True), "bottom_pool": (2, False), "left_pool": (3, True), "right_pool": (3, False)}


def _pool(axis, backwards):
    def forward(x):
        x = x.flip(axis) if backwards else x
        x = x.cummax(axis).values
        return [x.flip(axis) if backwards else x]

    return forward


def stub(name, **content):
    """A module that the authors' code imports by name, with our content."""
    sys.modules[name] = types.ModuleType(name)
    for key, value in content.items():
        setattr(sys.modules[name], key, value)


def cornernet():
    """The authors' `kp`, their CornerNet `model`, and their layers `utils`."""
    for name, (axis, backwards) in POOLS.items():
        stub(name, forward=_pool(axis, backwards))
    with clone("CornerNet"):
        from models.py_utils import kp, utils

        from models import CornerNet

        return kp, CornerNet.model, utils


def extremenet():
    """The authors' `exkp`, their ExtremeNet `model`, their layers `utils` and their decoder; what draws pictures is left out."""
    for name, (axis, backwards) in POOLS.items():
        stub(name, forward=_pool(axis, backwards))
    stub("utils")
    stub("utils.debugger", Debugger=None)
    with clone("ExtremeNet"):
        from models.py_utils import exkp, kp_utils, utils

        from models import ExtremeNet

        plain = kp_utils._topk  # it takes a view of what a transposition gave
        kp_utils._topk = lambda scores, K: plain(scores.contiguous(), K)
        found = exkp, ExtremeNet.model, utils, kp_utils._exct_decode
    for name in ("utils", "utils.debugger"):
        del sys.modules[name]
    return found
