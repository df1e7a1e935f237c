"""What the recipes of systems that draw small pictures in turns with a discriminator share."""

from __future__ import annotations

from typing import Any, Literal

from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.geometry import Affine, Resize


def drawings(
    model: str, channels: int, size: int, *, steps: int, batch: int, lr: float, ratio: float = 1.0,
    betas: tuple[float, float] = (0.5, 0.99), precision: Literal["fp32", "bf16"] = "bf16", options: dict[str, Any] | None = None,
    note: str = "two to five minutes on one core",
) -> Recipe:  # fmt: skip
    """Pictures slightly turned, scaled and shifted; the discriminator learns `ratio` times as fast as the generator."""
    slow, fast = (Optim("adam", lr=rate, weight_decay=0.0, betas=betas) for rate in (lr, lr * ratio))
    turned = Affine(degrees=6, translate=(0.03, 0.03), scale=(0.93, 1.07), fill=0 if channels == 1 else 114)
    return Recipe(
        model, "digits" if channels == 1 else "crops", changes={"channels": channels}, options=options or {},
        transforms=(turned, Resize((size, size))), batch=batch, steps=steps, optim={"g": slow, "d": fast},
        schedules=(Schedule("linear", end=0.1),), average=0.995, precision=precision, evaluate_every=0, log_every=50, workers=1,
        note=note,
    )  # fmt: skip
