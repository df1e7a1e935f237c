"""Pictures by themselves: what a recipe's transforms do to one, and a picture as the numbers that it is."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from opticus.data.subset import Samples
from opticus.plot.draw import draw as draw_result
from opticus.plot.draw import to_pixels
from opticus.plot.panels import Panel, number_grid, panels
from opticus.structures import CapabilityError, Classes, Dataset, Instances, Sample
from opticus.transforms.chain import described
from opticus.transforms.draw import Draw, draw_for
from opticus.transforms.pixels import channelled, resize
from opticus.verbs.explain_layers import title_of
from opticus.verbs.explain_request import Answer, Request, at_least


def augmentations(request: Request, *, columns: int = 6, index: int = 0) -> Answer:
    """What the model's recipe does to one picture: a row per transform, each on top of those before it, `columns` draws beside
    each other. Boxes move along."""
    at_least("columns", columns, 1)
    data, sample = _one(request, index)
    name = title_of(request.model)
    if request.recipe is None:
        raise CapabilityError("explain augmentations needs recipes, which the public verb opticus.explain brings")
    recipe: Any = request.recipe(name, data)
    chain = tuple(recipe.transforms)
    if not chain:
        raise CapabilityError(f"the recipe of {name} has no transforms to show")
    rows: list[list[Panel | None]] = [[Panel(_drawn(sample, data), f"{sample.size[1]} x {sample.size[0]}")]]
    titles = ["the picture"]
    for count in range(1, len(chain) + 1):
        row: list[Panel | None] = []
        for column in range(columns):
            out = sample
            draws = _draws(request, column, data)
            for transform in chain[:count]:
                out = transform(out, draws)
            row.append(Panel(_drawn(out, data), f"{out.size[1]} x {out.size[0]}"))
        rows.append(row)
        titles.append(("+ " if count > 1 else "") + _words(chain[count - 1]))
    picture = panels(rows, cell=150, title=f"{name}: the transforms of its recipe on {sample.id}", row_titles=titles)
    return Answer(
        picture,
        "Each row adds one transform to those above; a column keeps its random draw.",
        {
            "model": name,
            "data": recipe.data,
            "id": sample.id,
            "transforms": described(chain),
            "columns": columns,
            "seed": request.seed,
        },
        [f"Recipe of {name}: {len(chain)} transforms." + (f" {recipe.note}." if recipe.note else ""), *_mixed(request, chain)],
        {"Transforms": [{"transform": type(one).__name__, "parameters": _parameters(one)} for one in chain]},
    )


def _mixed(request: Request, chain: tuple[Any, ...]) -> list[str]:
    """A note for recipes that mix pictures where there is only one."""
    mixing = [type(one).__name__ for one in chain if type(one).__name__ in ("MixUp", "CutMix", "Mosaic")]
    return (
        [f"{', '.join(mixing)}: mixed with the picture itself; name data= for others."] if mixing and request.data is None else []
    )


def numbers(request: Request, *, size: int = 32, index: int = 0) -> Answer:
    """A picture as the grid of its grey levels; a picture in colour as three grids, red, green and blue.

    Pictures whose longer side is above `size` are shrunk to it first.
    """
    at_least("size", size, 2)
    item = request.items(1, index)[0]
    pixels = item.picture.pixels
    height, width = item.picture.size
    ratio = min(1.0, size / max(height, width))
    if ratio < 1:
        pixels = resize(pixels, (max(1, round(height * ratio)), max(1, round(width * ratio))))
    values = to_pixels(pixels)
    grey = bool((values[..., :1] == values).all())
    planes = [("grey levels", values[..., 0], (255, 255, 255))] if grey else [
        (word, values[..., i], tint)
        for i, (word, tint) in enumerate((("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (80, 120, 255))))
    ]  # fmt: skip
    cell = 30 if grey else 24
    grids = [Panel(number_grid(plane, tint, cell), word) for word, plane, tint in planes]
    side = cell * max(values.shape[:2]) + 1
    shown = Panel(
        np.asarray(to_pixels(pixels)),
        f"{item.id}: {width} x {height} pixels" + ("" if ratio == 1 else f", shrunk to {values.shape[1]} x {values.shape[0]}"),
    )
    cells = [shown, *grids]
    picture = panels(
        [cells] if grey else [cells[:2], cells[2:]],
        cell=side,
        title=f"A picture is {values.size if not grey else values[..., 0].size} numbers from 0 (black) to 255",
    )
    return Answer(
        picture,
        "Left: what we see; right: what the computer is given.",
        {
            "id": item.id,
            "size": [height, width],
            "channels": 1 if grey else 3,
            "values": (values[..., 0] if grey else values).tolist(),
        },
    )


def _one(request: Request, index: int) -> tuple[Dataset, Sample]:
    """The sample to transform and a data set that it can be mixed with: its own, else one of the picture alone."""
    if request.source is None and request.data is not None:
        request.items(1, index)  # checks the index
        data = request.dataset()
        return data, data[index]
    item = request.items(1)[0]
    task = getattr(getattr(request.model, "card", None), "task", "classify")
    # a target of the kind that the recipe's mixing transforms expect
    target = Classes(torch.tensor([0])) if task == "classify" else Instances.empty(item.picture.size) if task == "detect" else None
    if request.data is not None:
        channels = int(request.dataset()[0].picture.pixels.shape[2])
        return request.dataset(), Sample.of(channelled(item.picture.pixels, channels, item.id), target, item.id)
    sample = Sample.of(item.picture.pixels, target, item.id)
    return Samples([sample]), sample


def _draws(request: Request, column: int, data: Dataset) -> Draw:
    def another(rng: np.random.Generator) -> Sample:
        return data[int(rng.integers(len(data)))]

    return draw_for(request.seed, 0, column, another)


def _drawn(sample: Sample, data: Dataset) -> Any:
    """The picture, with its boxes where it has any."""
    if isinstance(sample.target, Instances) and len(sample.target):
        boxes = replace(sample.target, masks=None, keypoints=None)
        return draw_result(sample.picture, boxes, data.names, scale=3, text=1.6)
    return sample.picture


def _words(transform: Any) -> str:
    return f"{type(transform).__name__}\n{_parameters(transform, 4)}"


def _parameters(transform: Any, limit: int = 20) -> str:
    """ "degrees 10, scale 0.85..1.15": what differs from the class's defaults first."""
    if not is_dataclass(transform) or isinstance(transform, type):
        return ""
    words: list[str] = []
    for one in fields(transform):
        value = getattr(transform, one.name)
        if value == one.default or (isinstance(value, tuple) and value and not isinstance(value[0], (int, float))):
            continue
        words.append(f"{one.name} {_text(value)}")
    return ", ".join(words[:limit])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        whole = all(isinstance(part, int) for part in value)
        return ("x" if whole else "..").join(_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
