"""darknet's `.cfg`: the layers of a network as text, and which arrays of which shapes they keep in a `.weights` file.

Layer 3 of the cfg (counted from 0, without [net]) owns "3.bn.bias", "3.bn.weight", "3.bn.running_mean", "3.bn.running_var",
"3.conv.weight", in the order of the file; a convolution without norm "3.conv.bias", "3.conv.weight"; [connected] and [local]
layers "3.connected.bias", "3.connected.weight", "3.local.bias", "3.local.weight".
Facts: pjreddie/darknet (public domain), src/parser.c and the layers' own files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from opticus.structures import WeightsError

Shapes = dict[str, tuple[int, ...]]
LARGEST = 4 << 20  # bytes
_ALIASES = {"network": "net", "conv": "convolutional", "conn": "connected", "max": "maxpool", "avg": "avgpool", "soft": "softmax"}
_PARTIAL = ("dontload", "dontloadscales", "numload")  # options that leave arrays out of the file


class Section(NamedTuple):
    """One section of a cfg: its `kind` ("convolutional"), its options as text, and the `line` it begins at, from 1."""

    kind: str
    options: Mapping[str, str]
    line: int


class Cfg(NamedTuple):
    """A network as darknet describes it: the options of [net] and the layers in order."""

    path: Path
    net: Section
    layers: tuple[Section, ...]

    def to_json(self) -> str:
        """[[kind, options], ...], [net] first."""
        return json.dumps([[section.kind, dict(section.options)] for section in (self.net, *self.layers)])


class Map(NamedTuple):
    """The size of a layer's output: channels, height, width."""

    channels: int
    height: int
    width: int

    @property
    def numbers(self) -> int:
        """Numbers of the whole output."""
        return math.prod(self)


def read_cfg(path: Path) -> Cfg:
    """The sections of a cfg file. WeightsError names the file and the line of what is no cfg."""
    try:
        if path.stat().st_size > LARGEST:
            raise WeightsError(f"{path}: larger than a darknet cfg can be")
        text = path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_cfg(text, path)


def parse_cfg(text: str, path: Path = Path("cfg")) -> Cfg:
    """`read_cfg` of a text: blanks count nowhere, lines that start with # or ; are comments."""
    found: list[tuple[str, dict[str, str], int]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = "".join(raw.split())
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            kind = line.strip("[]").lower()
            found.append((_ALIASES.get(kind, kind), {}, number))
            continue
        key, equals, value = line.partition("=")
        if not equals or not found:
            raise WeightsError(f"{path}, line {number}: expected [section] or key=value, found {raw.strip()[:40]!r}")
        found[-1][1][key] = value
    if len(found) < 2 or found[0][0] != "net":
        first = f"[{found[0][0]}]" if found else "nothing"
        raise WeightsError(f"{path}: a darknet cfg begins with [net], followed by layers; it begins with {first}")
    net, *layers = (Section(*row) for row in found)
    return Cfg(path, net, tuple(layers))


# --- shapes ------------------------------------------------------------------------------------------------------------


def cfg_shapes(cfg: Cfg) -> Shapes:
    """Key -> shape of every array in the network's `.weights` file, in the order of the file.

    Raises:
        WeightsError: a section whose arrays are not known, an option that is no number, a layer that does not exist.
    """
    shapes: Shapes = {}
    walker = _Walker(cfg)
    for index in range(len(cfg.layers)):
        shapes |= {f"{index}.{name}": shape for name, shape in walker.step(index)}
    return shapes


class _Walker:
    """Follows the sizes of the layers' outputs; one method per kind of layer gives the output's size and the layer's arrays."""

    def __init__(self, cfg: Cfg) -> None:
        self.cfg = cfg
        self.maps: list[Map] = []
        self.section = cfg.net
        self.input = Map(self._int("channels", 0), self._int("height", 0), self._int("width", 0))

    def step(self, index: int) -> list[tuple[str, tuple[int, ...]]]:
        self.section = self.cfg.layers[index]
        kind = self.section.kind
        method = getattr(self, f"_{kind}", None)
        if kind in _SAME:
            out, arrays = self._before(), []
        elif kind in _KNOWN and method is not None:
            out, arrays = method()
        else:
            known = ", ".join(sorted((*_KNOWN, *_SAME)))
            raise self._error(f"sections whose arrays are not known cannot be read; known: {known}")
        for option in _PARTIAL:
            if self._int(option, 0):
                raise self._error(f"{option}={self.section.options[option]} is not read, it leaves arrays out of the file")
        if min(out) < 1:
            raise self._error(f"its output would be {out.channels}x{out.height}x{out.width}")
        self.maps.append(out)
        return arrays

    def _error(self, what: str) -> WeightsError:
        return WeightsError(f"{self.cfg.path}, line {self.section.line}: [{self.section.kind}]: {what}")

    def _int(self, key: str, default: int) -> int:
        text = self.section.options.get(key)
        try:
            return default if text is None else int(text)
        except ValueError:
            raise self._error(f"{key} must be a whole number, found {text!r}") from None

    def _positive(self, key: str, default: int = 1) -> int:
        value = self._int(key, default)
        if value < 1:
            raise self._error(f"{key} must be at least 1, found {value}")
        return value

    def _before(self) -> Map:
        return self.maps[-1] if self.maps else self.input

    def _at(self, text: str) -> Map:
        """The output of a layer named absolutely, or relatively by a negative number."""
        try:
            index = int(text)
        except ValueError:
            raise self._error(f"a layer is named by a whole number, found {text!r}") from None
        place = index + len(self.maps) if index < 0 else index
        if not 0 <= place < len(self.maps):
            raise self._error(f"there is no layer {text} before it")
        return self.maps[place]

    def _convolutional(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        before, filters, size = self._before(), self._positive("filters"), self._positive("size")
        stride, groups = self._positive("stride"), self._positive("groups")
        pad = size // 2 if self._int("pad", 0) else self._int("padding", 0)
        if before.channels % groups:
            raise self._error(f"{groups} groups do not divide {before.channels} channels")
        arrays: list[tuple[str, tuple[int, ...]]] = [("conv.bias", (filters,))]
        if self._int("batch_normalize", 0):
            arrays = [(f"bn.{name}", (filters,)) for name in ("bias", "weight", "running_mean", "running_var")]
        arrays.append(("conv.weight", (filters, before.channels // groups, size, size)))
        height, width = ((side + 2 * pad - size) // stride + 1 for side in before[1:])
        return Map(filters, height, width), arrays

    def _connected(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        outputs = self._positive("output")
        arrays: list[tuple[str, tuple[int, ...]]] = [
            ("connected.bias", (outputs,)),
            ("connected.weight", (outputs, self._before().numbers)),
        ]
        if self._int("batch_normalize", 0):
            arrays += [(f"bn.{name}", (outputs,)) for name in ("weight", "running_mean", "running_var")]
        return Map(outputs, 1, 1), arrays

    def _local(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        before, filters, size, stride = self._before(), self._positive("filters"), self._positive("size"), self._positive("stride")
        shrink = 1 if self._int("pad", 0) else size
        height, width = ((side - shrink) // stride + 1 for side in before[1:])
        out = Map(filters, height, width)
        # a kernel per place: places, filters, then channels x rows x columns of the patch
        kernel = (height * width, filters, before.channels * size * size)
        return out, [("local.bias", (out.numbers,)), ("local.weight", kernel)]

    def _maxpool(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        before, stride = self._before(), self._positive("stride")
        size = self._positive("size", stride)
        padding = self._int("padding", size - 1)
        height, width = ((side + padding - size) // stride + 1 for side in before[1:])
        return Map(before.channels, height, width), []

    def _avgpool(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        return Map(self._before().channels, 1, 1), []

    def _upsample(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        before, stride = self._before(), self._positive("stride", 2)
        return Map(before.channels, before.height * stride, before.width * stride), []

    def _reorg(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        before, stride = self._before(), self._positive("stride")
        if self._int("reverse", 0) or self._int("extra", 0):
            raise self._error("reverse and extra are not read")
        return Map(before.channels * stride * stride, before.height // stride, before.width // stride), []

    def _route(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        maps = [self._at(text) for text in self.section.options.get("layers", "").split(",")]
        groups = self._positive("groups")  # AlexeyAB/darknet: one of several equal parts of each map
        if len({found[1:] for found in maps}) > 1 or any(found.channels % groups for found in maps):
            raise self._error(f"the maps {', '.join('x'.join(map(str, found)) for found in maps)} do not fit side by side")
        return maps[0]._replace(channels=sum(found.channels // groups for found in maps)), []

    def _shortcut(self) -> tuple[Map, list[tuple[str, tuple[int, ...]]]]:
        self._at(self.section.options.get("from", ""))
        return self._before(), []


_KNOWN = ("convolutional", "connected", "local", "maxpool", "avgpool", "upsample", "reorg", "route", "shortcut")
_SAME = ("dropout", "softmax", "cost", "activation", "yolo", "region", "detection")  # no arrays, an output of the input's size
