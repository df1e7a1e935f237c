"""Optimisers with parameter groups, and schedules of any group field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from opticus.ops import schedules as curves
from opticus.structures import Objective, UnknownNameError, UsageError
from opticus.training.lars import LARS
from opticus.training.recipe import Group, Optim, Schedule


def build(objective: Objective, phase: str, rule: Optim, factors: Mapping[int, float] | None = None) -> torch.optim.Optimizer:
    """The optimiser of one phase over `objective.parameters_of(phase)`; every parameter ends in exactly one group.

    `factors` scale the learning rate of single parameters, by id.
    Raises UsageError if the phase has no trainable parameter or a group's pattern matches none.
    """
    wanted = {id(p) for p in objective.parameters_of(phase)}
    named = [(name, p) for name, p in _named(objective) if id(p) in wanted]
    used: set[str] = set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        group = next((g for g in rule.groups if re.search(g.pattern, name)), None)
        if group is not None:
            used.add(group.pattern)
            if group.frozen:
                parameter.requires_grad_(False)
        if parameter.requires_grad:
            scale, decay = _settings(parameter, rule, group)
            scale *= (factors or {}).get(id(parameter), 1.0)
            groups.setdefault((scale, decay), []).append(parameter)
    for group in rule.groups:
        if group.pattern not in used:
            raise UsageError(f"optimiser group {group.pattern!r} matches no parameter of phase {phase!r}")
    if not groups:
        raise UsageError(f"phase {phase!r} has no trainable parameter")
    rows: list[dict[str, Any]] = [
        {"params": parameters, "lr": rule.lr * scale, "weight_decay": decay} for (scale, decay), parameters in groups.items()
    ]
    optimiser = _make(rows, rule)
    for row in optimiser.param_groups:
        for key in ("lr", "weight_decay", "momentum"):
            if key in row:
                row[f"base_{key}"] = row[key]
    return optimiser


def _named(objective: Objective) -> Iterable[tuple[str, nn.Parameter]]:
    if not isinstance(objective, nn.Module):
        raise UsageError(f"an Objective must be an nn.Module, found {type(objective).__name__}")
    return objective.named_parameters()


def _settings(parameter: nn.Parameter, rule: Optim, group: Group | None) -> tuple[float, float]:
    decay = rule.weight_decay if parameter.ndim > 1 or rule.decay_vectors else 0.0
    if group is not None and group.weight_decay is not None:
        decay = group.weight_decay
    return (1.0 if group is None else group.factor), decay


def _make(rows: list[dict[str, Any]], rule: Optim) -> torch.optim.Optimizer:
    if rule.kind == "sgd":
        return torch.optim.SGD(rows, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov, foreach=True)
    if rule.kind == "lars":
        return LARS(rows, rule.lr, momentum=rule.momentum)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}.get(rule.kind)
    if kind is None:
        raise UsageError(f"unknown optimiser kind {rule.kind!r}; known: adamw, adam, sgd, lars")
    return kind(rows, lr=rule.lr, betas=rule.betas, foreach=True)


def apply_schedules(optimiser: torch.optim.Optimizer, schedules: Iterable[Schedule], fraction: float) -> None:
    """Set every scheduled field of every group to its base value times the schedule's factor at `fraction` of the run."""
    for schedule in schedules:
        value = factor_at(schedule, fraction)
        for row in optimiser.param_groups:
            base = row.get(f"base_{schedule.field}")
            if base is not None:
                row[schedule.field] = base * value


def factor_at(schedule: Schedule, fraction: float) -> float:
    """The schedule's factor at `fraction` in [0, 1]."""
    shape = {
        "constant": partial(curves.constant, value=schedule.start),
        "linear": partial(curves.linear, start=schedule.start, end=schedule.end),
        "cosine": partial(curves.cosine, start=schedule.start, end=schedule.end),
        "step": partial(curves.multistep, milestones=schedule.milestones, factor=schedule.gamma),
    }.get(schedule.kind)
    if shape is None:
        raise UnknownNameError("schedule", schedule.kind, ("constant", "linear", "cosine", "step"))
    if schedule.kind == "step":
        return curves.held(fraction, share=schedule.warmup, then=shape)
    if schedule.hold:
        shape = partial(curves.pieces, ends=(schedule.hold, 1.0), parts=(partial(curves.constant, value=schedule.start), shape))
    return curves.warmup(fraction, share=schedule.warmup, then=shape)
