"""Restored pictures beside the original, with PSNR and SSIM: the panel of super-resolution papers (Ledig 2017, figure 2)."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from opticus.plot.restoration import fidelity, restoration
from opticus.structures import CapabilityError, DataError, Picture, UsageError
from opticus.transforms.pixels import channelled, resize
from opticus.verbs.explain_request import Answer, Request, at_least
from opticus.verbs.predict import infer


def restored(request: Request, *, index: int = 0, limit: int = 4, border: int | None = None) -> Answer:
    """What several systems make of degraded pictures, beside bicubic enlargement (or the degraded picture) and the original.

    With `data` of pairs ("x4:photos", "grey:photos") from record `index` on; or of pictures (`source`), which are made smaller here for
    systems that enlarge. PSNR and SSIM are of the Y channel without `border` pixels at each side (default: the enlargement).

    Raises CapabilityError if a model does not answer a picture by a picture, UsageError for systems of unlike enlargement.
    """
    request.model  # noqa: B018 - raises without one
    scales = {int(getattr(network, "scale", 0)) for network in request.models}
    for network, title in zip(request.models, request.titles, strict=True):
        if not hasattr(network, "scale"):
            raise CapabilityError(f"{title} does not answer a picture by a picture: it has no `scale`")
    if len(scales) > 1:
        raise UsageError(f"explain {request.kind} compares systems of one enlargement, found {sorted(scales)}")
    scale = scales.pop()
    margin = scale if border is None else border
    at_least("border", margin, 0)
    pairs = _pairs(request, scale, index, limit)
    titles = [title if title not in request.titles[:i] else f"{title} ({i + 1})" for i, title in enumerate(request.titles)]
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for name, small, large in pairs:
        answers: dict[str, Any] = {"bicubic" if scale > 1 else "given": _same_size(small, large)}
        for title, network in zip(titles, request.models, strict=True):
            shown = channelled(small.pixels, cast(Any, network).prepare.channels, name)
            answers[title] = infer(network, [Picture(shown)])[0]
        rows.append(answers)
        for title, answer in answers.items():
            psnr, ssim = fidelity(answer, large, margin)
            found.append(
                {"id": name, "system": title, "PSNR": round(psnr, 3) if math.isfinite(psnr) else None, "SSIM": round(ssim, 4)}
            )
    means = [
        {"system": title, **{key: _mean([row[key] for row in found if row["system"] == title]) for key in ("PSNR", "SSIM")}}
        for title in rows[0]
    ]
    sheet = restoration(rows, [large for _, _, large in pairs], border=margin, title="Restored pictures")
    numbers = {"scale": scale, "border": margin, "pictures": found, "means": means}
    words = f"PSNR in dB and SSIM of the Y channel, {margin} pixels at each side left out; {len(pairs)} pictures."
    return Answer(sheet, words, numbers, [], {"Means": means, "Pictures": found})


def _mean(values: list[float | None]) -> float | None:
    """The mean of what is finite; None without any."""
    there = [value for value in values if value is not None]
    return round(float(np.mean(there)), 4) if there else None


def _pairs(request: Request, scale: int, index: int, limit: int) -> list[tuple[str, Picture, Picture]]:
    """(name, degraded picture, original) of the data's records, or of pictures that are made `scale` times smaller."""
    at_least("limit", limit, 1)
    if request.source is None:
        data = request.dataset()
        if not 0 <= index < len(data):
            raise UsageError(f"index must be in 0..{len(data) - 1} for this data, found {index}")
        chosen = [data[i] for i in range(index, min(index + limit, len(data)))]
        pairs: list[tuple[str, Picture, Picture]] = []
        for sample in chosen:
            if not isinstance(sample.target, Picture):
                raise DataError(f"{sample.id}: a pair of pictures is needed; put x{scale}:, grey: or noisy: before the data's name")
            if sample.target.size != (sample.size[0] * scale, sample.size[1] * scale):
                raise UsageError(
                    f"{sample.id}: {request.title} makes pictures {scale} times larger, the data's are {sample.target.size}"
                )
            pairs.append((sample.id, sample.picture, sample.target))
        return pairs
    if scale == 1:
        raise UsageError(f"{request.title} does not enlarge: give data= of pairs, such as grey:patches, instead of a picture")
    pairs = []
    for item in request.items(limit):
        height, width = (side // scale for side in item.picture.size)
        if min(height, width) < 1:
            raise UsageError(f"{item.id}: {item.picture.size} pixels are too few to be made {scale} times smaller")
        whole = item.picture.pixels[: height * scale, : width * scale].contiguous()
        pairs.append((item.id, Picture(resize(whole, (height, width), "bicubic", True)), Picture(whole)))
    return pairs


def _same_size(small: Picture, large: Picture) -> Picture:
    """The degraded picture at the original's size (bicubic), in its channels."""
    pixels = channelled(small.pixels, int(large.pixels.shape[2]), "picture")
    return Picture(resize(pixels, large.size, "bicubic", True))
