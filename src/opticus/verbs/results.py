"""What `predict` returns: a typed result together with the picture it belongs to and the names of its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opticus.structures import CapabilityError, Classes, Instances, Picture, Result, UnknownNameError
from opticus.structures.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_format(path: Path) -> str:
    """Pillow's name of the kind of file that a suffix means; UnknownNameError for one that cannot be written."""
    from PIL import Image  # not needed to predict

    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise UnknownNameError("picture suffix", path.suffix, (".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif"))
    return known[path.suffix.lower()]


@dataclass(frozen=True)
class Prediction:
    """One picture's result. Attributes of the result (`boxes`, `labels`, `scores`, ...) are attributes of the prediction."""

    result: Result
    id: str
    names: tuple[str, ...] | None
    label_ids: tuple[int, ...] | None
    source: Callable[[], Picture]  # decodes again when a picture is asked for: memory stays flat

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.result, name)

    def __len__(self) -> int:
        return len(self.result) if isinstance(self.result, (Instances, Classes)) else 1

    @property
    def picture(self) -> Picture:
        """The picture that was looked at."""
        return self.source()

    def name_of(self, label: int) -> str:
        """The name of a label, or its number."""
        return self.names[label] if self.names is not None and 0 <= label < len(self.names) else str(label)

    def plot(self, threshold: float = 0.0) -> Image:
        """The picture with its result drawn on it, instances below `threshold` left out."""
        from opticus.plot.draw import draw

        result = self.result
        if isinstance(result, Picture):  # the answer is a picture itself
            return draw(result, None, scale=1)
        if isinstance(result, Instances) and result.scores is not None and threshold > 0:
            result = result[result.scores >= threshold]
        return draw(self.picture, result, self.names or ())

    def save(self, path: str | Path) -> Path:
        """Write the plot as a picture file of the kind that its suffix names; returns its path."""
        path = Path(path)
        kind = picture_format(path)
        return write_atomic(path, lambda part: self.plot().save(part, kind))

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """COCO results records: image_id, category_id in the data set's own ids, bbox xywh, score."""
        from opticus.metrics.convert import to_coco

        return to_coco(self._instances("to_coco"), self.id if image_id is None else image_id, self.label_ids)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`; needs the extra `supervision`."""
        from opticus.metrics.convert import to_supervision

        return to_supervision(self._instances("to_supervision"), self.names or ())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record: the id and, per object or class, name, score and box."""
        result = self.result
        if isinstance(result, Instances):
            scores = torch.ones(len(result)) if result.scores is None else result.scores
            rows = [
                {"name": self.name_of(label), "label": label, "score": round(score, 6), "box": [round(v, 3) for v in box]}
                for label, score, box in zip(result.labels.tolist(), scores.tolist(), result.boxes.tolist())
            ]
            return {"id": self.id, "size": list(result.size), "objects": rows}
        if isinstance(result, Classes):
            scores = torch.ones(len(result)) if result.scores is None else result.scores
            pairs = zip(result.labels.tolist(), scores.tolist())
            return {"id": self.id, "classes": [{"name": self.name_of(k), "label": k, "score": round(s, 6)} for k, s in pairs]}
        if isinstance(result, Picture):
            return {"id": self.id, "size": list(result.size)}
        fields: dict[str, Any] = {k: getattr(result, k) for k in result.__dataclass_fields__}
        return {"id": self.id, **{k: v.tolist() if isinstance(v, Tensor) else v for k, v in fields.items() if v is not None}}

    def _instances(self, verb: str) -> Instances:
        if not isinstance(self.result, Instances):
            raise CapabilityError(f"{verb} needs detected objects, {self.id} has {type(self.result).__name__}")
        return replace(self.result)
