"""sample: new pictures from any system that draws them; every picture is a function of the seed and of its own number."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from opticus.losses.pictures import pictures
from opticus.structures import CapabilityError, Latent, Noise, Picture, Prepare, Sampler, UnknownNameError, UsageError
from opticus.structures.files import write_atomic
from opticus.verbs.models import Card
from opticus.verbs.predict import autocast, place

if TYPE_CHECKING:
    from PIL.Image import Image

OWN = ("noise", "latents", "condition", "steps", "progress")
Conditions = int | str | Tensor | Sequence[int | str]


@dataclass
class Samples:
    """Drawn pictures: `pixels` (N, C, H, W) as the network gives them, `pictures` uint8, `labels` (N,) of class-conditional systems."""

    pixels: Tensor
    pictures: list[Picture]
    labels: Tensor | None
    columns: int

    def __len__(self) -> int:
        return len(self.pictures)

    def plot(self, *, enlarge: int | None = None, gap: int = 2) -> Image:
        """All pictures on one sheet, row after row; `enlarge` is a whole factor (None: so that a picture has at least 64 pixels)."""
        from opticus.plot.sheet import sheet

        return sheet([picture.pixels.numpy() for picture in self.pictures], self.columns, enlarge=enlarge, gap=gap)

    def save(self, path: str | Path) -> Path:
        """The sheet as a picture file, or, where `path` has no suffix, every picture as a PNG in that folder."""
        path = Path(path)
        if path.suffix:
            from opticus.verbs.results import picture_format

            kind = picture_format(path)
            return write_atomic(path, lambda part: self.plot().save(part, kind))
        from PIL import Image as image_module

        for number, picture in enumerate(self.pictures):
            pixels = picture.pixels.numpy()
            image = image_module.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            write_atomic(path / f"{number:05d}.png", lambda part, image=image: image.save(part, "PNG"))
        return path


def sample(
    model: nn.Module,
    n: int = 16,
    *,
    seed: int = 0,
    first: int = 0,
    steps: int | None = None,
    condition: Conditions | None = None,
    between: int | None = None,
    batch: int = 64,
    device: str | None = None,
    precision: str = "fp32",
    quiet: bool = True,
    **options: Any,
) -> Samples:
    """Draw `n` pictures. Picture i depends on (seed, first + i) alone: it is the same in any batch, to rounding.

    `steps` of an iterative sampler; `condition` is a class (number or name), one per picture, or what else the system takes;
    `between=k` walks from each starting point to the next in k pictures (on the sphere), n rows of them. `options` go to the network's
    own sampler (guidance=, truncation=, temperature=, ...).

    Raises CapabilityError if the model draws nothing or cannot walk, UnknownNameError for an option it does not have, UsageError.
    """
    name = getattr(getattr(model, "card", None), "name", type(model).__name__)
    if not isinstance(model, Sampler):
        raise CapabilityError(f"{name} draws no pictures: it has no sample()")
    for word, value in (("n", n), ("batch", batch), ("steps", steps), ("between", between)):
        if value is not None and value < 1:
            raise UsageError(f"{word} must be at least 1, found {value}")
    if between is not None and not isinstance(model, Latent):
        raise CapabilityError(f"{name} cannot walk between pictures: it has no latents() and render()")
    function: Any = model.sample if between is None else cast(Any, model).render
    accepted = _check_options(name, function, options)
    where = place(model, device)
    labels = labels_of(model, condition, n)
    count = n if between is None else n * between
    bar: Any = tqdm(total=count, unit="img", desc="sample", file=sys.stderr, disable=quiet, leave=False)
    parts: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with bar, torch.no_grad(), autocast(where, precision):
            points = None if between is None else _walk(cast(Any, model), seed, first, n, between)
            for start in range(0, count, batch):
                rows = slice(start, min(start + batch, count))
                given: dict[str, Any] = {**options, "steps": steps, "condition": _rows(labels, rows, between, where)}
                if "progress" in accepted and not quiet:
                    given["progress"] = _steps_bar()
                if points is None:
                    drawn: Tensor = cast(Any, model).sample(
                        Noise(seed, rows.stop - start, first=first + start, device=where), **given
                    )
                else:
                    drawn = function(points[rows].to(where), **given)
                parts.append(drawn.float().cpu())
                bar.update(rows.stop - start)
    finally:
        for module, training in modes.items():
            module.training = training
    pixels = torch.cat(parts)
    rule = cast(Prepare, getattr(model, "produces", cast(Any, model).prepare))
    columns = between if between is not None else math.ceil(len(pixels) ** 0.5)
    return Samples(pixels, pictures(pixels, rule), labels if between is None else None, columns)


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> set[str]:
    known = {word: one for word, one in inspect.signature(function).parameters.items() if word not in ("self",)}
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for word in options:
        if word in OWN or (word not in known and not free):
            raise UnknownNameError(f"option of {name}'s sampler", word, [w for w in known if w not in OWN])
    return set(known)


def labels_of(model: nn.Module, condition: Any, n: int) -> Any:
    """The condition with a row per picture; class names and single classes become labels (n,) int64."""
    if condition is None or (isinstance(condition, Tensor) and condition.is_floating_point()):
        if isinstance(condition, Tensor) and len(condition) != n:
            raise UsageError(f"{n} pictures need {n} conditions, found {len(condition)}")
        return condition
    classes = int(getattr(cast(Any, model).config, "classes", 0) or 0)
    card: Card | None = getattr(model, "card", None)
    name = type(model).__name__ if card is None else card.name
    if classes == 0:
        raise CapabilityError(f"{name} draws without classes, but condition={condition!r} was given")
    asked: list[Any] = condition.tolist() if isinstance(condition, Tensor) else condition  # type: ignore[assignment]
    asked = [asked] if isinstance(asked, (int, str)) else list(asked)
    names = () if card is None or card.labels is None else card.labels
    found: list[int] = []
    for one in asked:
        if isinstance(one, str) and one in names:
            found.append(names.index(one))
        elif isinstance(one, str) and not one.isdigit():
            raise UnknownNameError("class", one, names)
        elif not 0 <= int(one) < classes:
            raise UsageError(f"{name} has the classes 0..{classes - 1}, found {one}")
        else:
            found.append(int(one))
    if len(found) not in (1, n):
        raise UsageError(f"{n} pictures need one class or {n} of them, found {len(found)}")
    return torch.tensor(found if len(found) == n else found * n)


def _rows(labels: Any, rows: slice, between: int | None, where: torch.device) -> Any:
    if not isinstance(labels, Tensor):
        return labels
    picked = labels[rows] if between is None else labels.repeat_interleave(between, 0)[rows]
    return picked.to(where)


def _walk(model: Any, seed: int, first: int, n: int, between: int) -> Tensor:
    """(n * between, ...): from starting point i to point i + 1, the last back to the first."""
    points = model.latents(Noise(seed, n, first=first)).float()
    ends = points.roll(-1, 0)
    shares = torch.arange(between, dtype=points.dtype) / between
    return torch.stack([slerp(points, ends, float(share)) for share in shares], 1).flatten(0, 1)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Points between two (N, ...), on the great circle through each pair (Shoemake 1985): their length changes evenly."""
    a, b = one.flatten(1), other.flatten(1)
    cosine = (nn.functional.normalize(a, dim=1) * nn.functional.normalize(b, dim=1)).sum(1, keepdim=True).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    straight = sine < 1e-4
    left = torch.where(straight, torch.full_like(angle, 1 - share), ((1 - share) * angle).sin() / sine.clamp(min=1e-8))
    right = torch.where(straight, torch.full_like(angle, share), (share * angle).sin() / sine.clamp(min=1e-8))
    return (left * a + right * b).reshape(one.shape)


def _steps_bar() -> Callable[..., None]:
    """A second bar for the steps of an iterative sampler, which tells how many of all are done (and, perhaps, what it sees)."""
    bar: Any = None

    def progress(done: int, total: int, *_: Any) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit="step", desc="steps", file=sys.stderr, leave=False, position=1)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return progress
