"""Teachers for `train`: where they come from, and how their classes become the student's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from opticus.losses.distillation import Distilled, Kind, check
from opticus.losses.supervised import Supervised
from opticus.structures import CapabilityError, Error, Objective, Prepare, UsageError
from opticus.verbs.evaluate import label_map
from opticus.verbs.models import Card, Model, load

SETTINGS = ("teacher", "distill", "temperature", "share")  # the words of `train` that concern a teacher


@dataclass(frozen=True)
class Teaching:
    """A teacher and how it teaches: the words `teacher`, `distill`, `temperature` and `share` of `train`."""

    teacher: str | Path | nn.Module
    distill: Kind = "hard"
    temperature: float = 3.0
    share: float = 0.5

    def __post_init__(self) -> None:
        check(self.distill, self.temperature, self.share)

    @staticmethod
    def take(options: MutableMapping[str, Any]) -> Teaching | None:
        """Take the words of a teacher out of `options`; None without one. UsageError for a teacher that has no form known here."""
        if options.get("teacher") is None:
            options.pop("teacher", None)
            return None
        found = {key: options.pop(key) for key in SETTINGS if key in options}
        if isinstance(found["teacher"], Mapping):
            name = cast("Mapping[str, Any]", found["teacher"]).get("object")
            raise UsageError(
                f"the run was distilled from a model object ({name}), which its folder cannot name; give teacher= again"
            )
        if not isinstance(found["teacher"], (str, Path, nn.Module)):
            raise UsageError(
                f"teacher must be a run folder, a model's name with its weights or a model, found {found['teacher']!r}"
            )
        return Teaching(**found)

    def stored(self) -> str | dict[str, str]:
        """How a run's arguments name the teacher: the words that load it again, or what object it was."""
        if isinstance(self.teacher, nn.Module):
            return {"object": _name_of(self.teacher)}
        return str(self.teacher)

    def objective(self, base: Objective, student: Model, names: Sequence[str]) -> Distilled:
        """The student's objective `base` with this teacher beside it; `names` are the student's classes.

        Raises UsageError or CapabilityError (no such teacher, not a classifier, unlike classes, a method without logits).
        """
        if student.card.task != "classify" or not isinstance(base, Supervised):
            raise CapabilityError(
                f"{student.card.name} cannot be distilled: only classifiers that learn by a criterion on logits can"
            )
        teacher = self._opened()
        columns = columns_of(teacher, names)
        made = Distilled(
            base, teacher, kind=self.distill, temperature=float(self.temperature), share=float(self.share), columns=columns
        )
        digest = str(made.settings["teacher"])
        student.card.provenance = {
            **student.card.provenance,
            "teacher": {"name": _name_of(teacher), "digest": digest, "distill": self.distill, "share": self.share},
        }
        return made

    def _opened(self) -> Model:
        """The teacher's model. An object is copied: it keeps its mode, its gradients and its place."""
        if isinstance(self.teacher, nn.Module):
            found = copy.deepcopy(self.teacher)
            if not isinstance(getattr(found, "card", None), Card) or not isinstance(getattr(found, "prepare", None), Prepare):
                raise CapabilityError("teacher takes a model made by opticus.create or opticus.load, or the words that load one")
        else:
            try:
                found = load(self.teacher, quiet=True)
            except Error as error:
                raise UsageError(f"teacher={str(self.teacher)!r}: {error}") from error
        model = cast("Model", found)
        if model.card.task != "classify":
            raise CapabilityError(f"the teacher {model.card.name} does {model.card.task}; a teacher is a classifier")
        return model


def columns_of(teacher: Model, names: Sequence[str]) -> list[int] | None:
    """For each class of the student the teacher's output of the same name; None where they are the same in the same order.

    Raises UsageError naming the classes that the teacher does not know or knows twice, or, where it has no names, unlike numbers.
    """
    card = teacher.card
    if card.labels is None:
        count = getattr(teacher.config, "classes", None)
        if count != len(names):
            raise UsageError(f"the teacher {card.name} has {count} classes without names, the data has {len(names)}")
        return None
    try:
        places = label_map(card, names)
    except UsageError as error:
        raise UsageError(f"the teacher cannot teach this data: {error}") from error
    if places is None:
        return None
    found = [[raw for raw, place in enumerate(places) if place == label] for label in range(len(names))]
    twice = [name for name, raws in zip(names, found) if len(raws) != 1]
    if twice:
        raise UsageError(f"the teacher {card.name} has several outputs for the class {twice[0]!r}")
    return [raws[0] for raws in found]


def _name_of(model: nn.Module) -> str:
    card = getattr(model, "card", None)
    return card.name if isinstance(card, Card) else type(model).__name__
