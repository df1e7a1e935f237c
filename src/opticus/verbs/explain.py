"""explain: what a model looks for, where it looks, and how its pictures lie: a PNG, a self-contained page and the numbers behind it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from torch import nn

from opticus.plot.report import Figure, write_page
from opticus.structures import CapabilityError, DataError, UnknownNameError, UsageError
from opticus.structures.files import write_atomic, write_text
from opticus.verbs.explain_activations import activations
from opticus.verbs.explain_attention import attention, rolled_out
from opticus.verbs.explain_attention_masks import attention_mask, attention_point
from opticus.verbs.explain_boxes import anchors, focal, gallery, objectness, suppression
from opticus.verbs.explain_centring import centring
from opticus.verbs.explain_cycle import cycle
from opticus.verbs.explain_denoising import denoising
from opticus.verbs.explain_field import receptive_field
from opticus.verbs.explain_gradcam import gradcam
from opticus.verbs.explain_layers import title_of
from opticus.verbs.explain_masks import masks
from opticus.verbs.explain_pictures import augmentations, numbers
from opticus.verbs.explain_queries import decoder_attention, encoder_attention, slots
from opticus.verbs.explain_request import Answer, Request, at_least, one_of
from opticus.verbs.explain_restoration import restored
from opticus.verbs.explain_space import neighbours, tsne
from opticus.verbs.explain_styles import style_mixing, truncation_strip
from opticus.verbs.explain_surface import surface
from opticus.verbs.explain_weights import filters, templates
from opticus.verbs.models import Model, create, load
from opticus.verbs.predict import place

if TYPE_CHECKING:
    from PIL.Image import Image


WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", tuple: "a list of whole numbers"}


class Kind(NamedTuple):
    """A kind of explanation: what makes it, whether it takes one model, many, maybe one or none, and what its page is called."""

    make: Callable[..., Answer]
    models: str
    heading: str


KINDS: dict[str, Kind] = {
    "filters": Kind(filters, "one", "First-layer filters"),
    "activations": Kind(activations, "one", "Strongest patches and their projections"),
    "tsne": Kind(tsne, "one", "t-SNE of a data set"),
    "surface": Kind(surface, "many", "Loss surface"),
    "templates": Kind(templates, "one", "Class templates"),
    "neighbours": Kind(neighbours, "maybe", "Nearest neighbours"),
    "gradcam": Kind(gradcam, "one", "Grad-CAM"),
    "attention": Kind(attention, "one", "Attention of the class token"),
    "attention-mask": Kind(attention_mask, "many", "Masks of the class token's attention"),
    "attention-point": Kind(attention_point, "one", "Attention of a point"),
    "rollout": Kind(rolled_out, "one", "Attention rollout"),
    "receptive-field": Kind(receptive_field, "one", "Receptive field"),
    "augmentations": Kind(augmentations, "one", "Augmentations of a recipe"),
    "numbers": Kind(numbers, "none", "A picture as numbers"),
    "masks": Kind(masks, "one", "Hidden patches restored"),
    "denoising": Kind(denoising, "one", "Noise added and taken away"),
    "anchors": Kind(anchors, "one", "Anchors"),
    "objectness": Kind(objectness, "one", "Objectness of the proposal network"),
    "nms": Kind(suppression, "one", "Before and after suppression"),
    "focal": Kind(focal, "none", "Focal loss"),
    "slots": Kind(slots, "one", "Where each query answers"),
    "decoder-attention": Kind(decoder_attention, "one", "What each detected object looks at"),
    "encoder-attention": Kind(encoder_attention, "one", "What places of the picture look at"),
    "centring": Kind(centring, "one", "Centring and sharpening"),
    "cycle": Kind(cycle, "one", "There and back"),
    "gallery": Kind(gallery, "many", "Detections"),
    "restoration": Kind(restored, "many", "Restored pictures"),
    "style-mixing": Kind(style_mixing, "one", "Styles of two pictures mixed"),
    "truncation": Kind(truncation_strip, "one", "Styles on the way to the mean"),
}


@dataclass(frozen=True)
class Explanation:
    """A finished explanation: its picture, the numbers behind it, and the files that hold them."""

    kind: str
    picture: Image
    numbers: dict[str, Any]
    notes: tuple[str, ...]
    png: Path
    page: Path
    json: Path

    def to_json(self) -> dict[str, Any]:
        """Where the files are and what to know about them; JSON-ready."""
        return {"kind": self.kind, "png": str(self.png), "page": str(self.page), "json": str(self.json), "notes": list(self.notes)}


def options_of(kind: str) -> list[str]:
    """The keywords that a kind takes. Raises UnknownNameError with the nearest kinds."""
    if kind not in KINDS:
        raise UnknownNameError("kind of explanation", kind, KINDS)
    signature = inspect.signature(KINDS[kind].make)
    return [name for name, one in signature.parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]


def explain(
    kind: str,
    model: str | Path | nn.Module | Sequence[str | Path | nn.Module] | None = None,
    source: Any = None,
    *,
    data: Any = None,
    split: str = "test",
    weights: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    recipe: Callable[..., Any] | None = None,
    **options: Any,
) -> Explanation:
    """Explain a model, a picture or a data set: `explain("gradcam", "runs/classify/x", "street.jpg")`.

    `kind` is one of `KINDS`; `model` a name, a run folder, a weights file or an object (several for "surface"; none for "numbers",
    whose first word is the picture); `source` a picture in any form that `predict` takes, or, with `data` alone, record `index=` of its
    `split`. Options are those of the kind (`options_of(kind)`). Writes <kind>.png, <kind>.html (self-contained) and <kind>.json into
    `out` (default runs/explain/<model>). The same `seed` gives the same picture.

    Raises UnknownNameError for a kind, option or layer (with the nearest names), CapabilityError naming what the model lacks,
    DataError or ImageError for a missing or broken picture, UsageError for other bad values.
    """
    known = options_of(kind)
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of explain {kind}", key, [*known, "data", "split", "weights", "out", "seed", "device"])
    _check_types(kind, options)
    at_least("seed", seed, 0)
    given: list[Any] = list(model) if isinstance(model, (list, tuple)) else [] if model is None else [model]
    if KINDS[kind].models == "none":
        if source is not None and given:
            raise UsageError(f"explain {kind} needs no model, only a picture; found {title_or_name(given[0])} and a picture")
        source, given = source if source is not None else (given[0] if given else None), []
    if len(given) > 1 and KINDS[kind].models != "many":
        raise UsageError(f"explain {kind} takes one model, found {len(given)}")
    if isinstance(source, (str, Path)) and not Path(source).expanduser().exists():
        raise DataError(f"{source}: no such file or folder")
    opened, titles, fresh = _open(kind, given, weights, device)
    request = Request(kind, opened, titles, source, data, split, seed, recipe)
    answer = _made(request, options)
    if fresh and kind not in ("augmentations", "receptive-field") and not (kind == "neighbours" and "embed" not in answer.caption):
        answer.notes.append(f"{' and '.join(fresh)}: fresh random weights, nothing was trained.")
    name = "-".join(title.removesuffix(" (random weights)") for title in titles)
    folder = Path(out) if out is not None else Path("runs") / "explain" / _folder_name(name)
    return _written(folder, request, answer, options)


def _check_types(kind: str, options: dict[str, Any]) -> None:
    """UsageError for the first option whose value is not of its annotated type; lists become tuples."""
    hints = get_type_hints(KINDS[kind].make)
    for key, value in options.items():
        if isinstance(value, list):
            value = options[key] = tuple(cast("list[Any]", value))
        choices = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
        if get_origin(choices[0]) is Literal:
            one_of(key, str(value), get_args(choices[0]))
            continue
        kinds = tuple(get_origin(choice) or choice for choice in choices)
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, kinds) or isinstance(value, bool):
            words = " or ".join(WORDS[one] for one in kinds if one in WORDS and not (one is int and float in kinds))
            raise UsageError(f"{key} must be {words}, found {value!r}")


def title_or_name(model: Any) -> str:
    """How a model that was given is called in a sentence."""
    return title_of(model) if isinstance(model, nn.Module) else str(model)


def _open(
    kind: str, given: Sequence[Any], weights: str | Path | None, device: str | None
) -> tuple[list[nn.Module], list[str], list[str]]:
    """The models, their titles, and the titles of those with fresh weights."""
    opened: list[nn.Module] = []
    titles: list[str] = []
    fresh: list[str] = []
    for one in given:
        if isinstance(one, nn.Module):
            network, title = one, title_of(one)
        else:
            network = _named(str(one), weights)
            title = network.card.name if Path(str(one)).exists() or ":" not in str(one) else str(one)
            if Path(str(one)).is_dir() and len(given) > 1:
                title = f"{title} ({Path(str(one)).name})"
            if network.card.provenance == {"source": "random"}:
                fresh.append(title)
                title += "" if kind == "augmentations" else " (random weights)"
        if not hasattr(network, "prepare"):
            raise CapabilityError(f"{title} has no `prepare`: explain must know how the network wants its pictures")
        place(network, device)
        opened.append(network)
        titles.append(title)
    return opened, titles, fresh


def _named(name: str, weights: str | Path | None) -> Model:
    if weights is not None or ":" in name or Path(name).exists() or name.startswith(("runs/", "./", "/", "../", "~")):
        return load(name, weights, quiet=True)
    return create(name)


def _made(request: Request, options: dict[str, Any]) -> Answer:
    modes = [{module: module.training for module in model.modules()} for model in request.models]
    for model in request.models:
        model.eval()
    try:
        return KINDS[request.kind].make(request, **options)
    finally:
        for mode in modes:
            for module, training in mode.items():
                module.training = training


def _written(folder: Path, request: Request, answer: Answer, options: dict[str, Any]) -> Explanation:
    kind = request.kind
    asked = {
        "kind": kind,
        "model": list(request.titles),
        "picture": _word(request.source),
        "data": _word(request.data),
        "split": request.split if request.data is not None else None,
        "seed": request.seed,
        **options,
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    png = write_atomic(folder / f"{kind}.png", lambda part: answer.picture.save(part, "PNG"))
    record = {**asked, "caption": answer.caption, "notes": answer.notes, "numbers": answer.numbers}
    numbers_file = write_text(folder / f"{kind}.json", json.dumps(record, default=str))
    heading = KINDS[kind].heading + (f": {', '.join(request.titles)}" if request.titles else "")
    page = write_page(
        folder / f"{kind}.html",
        title=heading,
        notes=answer.notes,
        figures=[Figure(answer.picture, answer.caption)],
        tables=answer.tables,
        details={"Asked": {key: value for key, value in asked.items() if key != "kind"}},
    )
    return Explanation(kind, answer.picture, answer.numbers, tuple(answer.notes), png, page, numbers_file)


def _word(value: Any) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, (str, Path)) else f"a {type(value).__name__}"


def _folder_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[:80] or "pictures"


__all__ = ["KINDS", "Explanation", "explain", "options_of"]
