"""Parts that a recipe trains on their own first, on other data, before the whole network (an ImageNet backbone in small)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from opticus import zoo
from opticus.data.open import open_data
from opticus.structures import Part, TrainError, UsageError
from opticus.training.recipe import Recipe, to_json
from opticus.verbs.models import Model, create
from opticus.verbs.parts import load_part


def pretrain(network: Model, field: str, recipe: Recipe, folder: Path, train: Callable[..., Any], *, quiet: bool) -> None:
    """Train what the part `field` of `network` is made of as `recipe` says, into `folder`, and start the part from the result.

    `train` is the train verb. The part sees pictures of the size that the recipe's transforms give them. A finished folder is used
    as it is, an interrupted one is resumed; one that was made by another recipe is refused (TrainError).
    """
    part = getattr(cast(Any, network).config, field, None)
    if not isinstance(part, Part):
        raise UsageError(f"{network.card.name}: {field} is not a part, so it cannot be trained first")
    begun = (folder / "args.json").is_file()
    if begun and json.loads((folder / "args.json").read_text("utf-8"))["recipe"] != json.loads(json.dumps(to_json(recipe))):
        raise TrainError(f"{folder}: holds a {field} trained by another recipe; remove it, or use another out=")
    if not (folder / "passport.json").is_file():
        changes = {key: value for key, value in part.changes.items() if key != "classes"}
        if "classes" in type(zoo.config_of(part.name)).__dataclass_fields__:
            changes["classes"] = len(open_data(recipe.data, "train").names)
        inner = create(part.name, **changes)
        cast(Any, inner).prepare = dataclasses.replace(inner.prepare, resize="none", crop=None)
        train(inner, recipe.data, recipe=recipe, out=folder, resume=begun, quiet=quiet)
    load_part(network, field, folder)
    network.card.provenance = {**network.card.provenance, f"{field}_weights": f"{part.name} trained on {recipe.data}"}
