"""What a masked autoencoder makes of the patches that it does not see: triplets of the masked picture, the reconstruction, the original.

He et al., CVPR 2022, arXiv 2111.06377, figures 2 to 4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from opticus.matching.masking import RandomMask, RegionMask
from opticus.ops.boxes import map_boxes, map_points
from opticus.plot.panels import Panel, panels
from opticus.structures import Batch, Images, Instances, Prepare, Target, UsageError
from opticus.verbs.explain_request import Answer, Request, Values, as_pixels, at_least, batch_of, need

HIDDEN = 128  # the grey of patches that are not shown


def masks(
    request: Request,
    *,
    ratio: float = 0.75,
    limit: int = 6,
    index: int = 0,
    visible: Literal["predicted", "pasted"] = "predicted",
    hide: Literal["random", "boxes", "keypoints"] = "random",
) -> Answer:
    """A row per picture: masked, reconstructed, as it is. `visible` patches are the network's too, or "pasted" over the prediction.

    `hide` takes patches under a data set's boxes or keypoints away before others. Raises CapabilityError for a network without
    `reconstruct`, UsageError for a ratio that hides all or nothing and for pictures without the boxes or keypoints to hide.
    """
    at_least("limit", limit, 1)
    network = request.model
    need(network, "reconstruct", "masks", "to fill in hidden patches")
    if request.source is None and request.data is not None:
        request.items(1, index)  # checks the index
        data = request.dataset()
        samples = [data[i] for i in range(index, min(index + limit, len(data)))]
        names, pictures, targets = [s.id for s in samples], [s.picture for s in samples], [s.target for s in samples]
    else:
        items = request.items(limit, index)
        names, pictures, targets = [item.id for item in items], [item.picture for item in items], [None] * len(items)
    rows: list[list[Panel | None]] = []
    table: list[dict[str, Any]] = []
    for i, (name, picture, target) in enumerate(zip(names, pictures, targets, strict=True)):
        images = batch_of(network, [picture])
        generator = torch.Generator().manual_seed(request.seed * 1_000_003 + i)
        hidden = _hidden(name, images, target, network.grid_of(images.pixels), ratio, hide, generator)
        row, figures = _triplet(network, images, hidden, name, visible, request.rule)
        rows.append(row)
        table.append({"id": name, **figures})
    share = f"{100 * table[0]['hidden'] / table[0]['patches']:.0f} %"
    picture = panels(
        rows,
        cell=240,
        title=f"{request.title}: {share} of the patches hidden",
        column_titles=["masked", "reconstruction", "original"],
    )
    mean = {key: float(np.mean([row[key] for row in table])) for key in ("error", "baseline")}
    notes = [
        f"Mean squared error on hidden patches {mean['error']:.4g}, of the mean visible patch {mean['baseline']:.4g} "
        f"(in the units of the network's target, {len(table)} pictures)."
    ]
    if getattr(network.config, "normalise", False):
        notes.append("The network predicts patches up to their mean and contrast; these are taken from the original.")
    words = {"predicted": "also where the patch was visible", "pasted": "with the visible patches laid over it"}
    return Answer(
        picture,
        f"Left: what the encoder sees; middle: what the decoder predicts, {words[visible]}; right: the picture.",
        {"ratio": ratio, "hide": hide, "visible": visible, "mean": mean, "pictures": table},
        notes,
        {"Reconstruction": table},
    )


def _hidden(
    name: str, images: Images, target: Target | None, grid: tuple[int, int], ratio: float, hide: str, generator: torch.Generator
) -> Tensor:
    """The mask (1, N) of one picture on its network's device."""
    device = images.pixels.device
    if hide == "random":
        return RandomMask(ratio)(Batch(images, (target,), (name,)), *grid, generator).to(device)
    if not isinstance(target, Instances):
        raise UsageError(
            f"{name}: hide={hide!r} needs data= with {hide}, found {type(target).__name__ if target is not None else 'none'}"
        )
    matrix = images.to_input[0]
    moved = replace(target, boxes=map_boxes(target.boxes.double(), matrix).float(), masks=None)
    if target.keypoints is not None:
        places = map_points(target.keypoints[..., :2].double(), matrix)
        moved = replace(moved, keypoints=torch.cat([places, target.keypoints[..., 2:].double()], -1).float())
    kind = cast(Literal["boxes", "keypoints"], hide)
    return RegionMask(ratio, kind)(Batch(images, (moved,), (name,)), *grid, generator).to(device)


def _triplet(
    network: Any, images: Images, hidden: Tensor, name: str, visible: str, rule: Prepare
) -> tuple[list[Panel | None], dict[str, Any]]:
    pixels, grid = images.pixels, network.grid_of(images.pixels)
    with torch.no_grad():
        guess = network.reconstruct(pixels, hidden)
        errors = network.errors(network(pixels, mask=hidden).prediction, pixels)
        target = network.target(pixels)
        mean = target[~hidden].mean(0)
        baseline = (target - mean).square().mean(2)
    whole = np.kron(hidden[0].reshape(grid).cpu().numpy(), np.ones((network.patch, network.patch), np.bool_)).astype(np.bool_)
    original, restored = (as_pixels(one[0], rule).copy() for one in (pixels, guess))
    masked = original.copy()
    masked[whole] = HIDDEN
    if visible == "pasted":
        restored[~whole] = original[~whole]
    count, patches = int(hidden.sum()), hidden.shape[1]
    figures = {
        "patches": patches,
        "hidden": count,
        "error": float(errors[hidden].mean()),
        "baseline": float(baseline[hidden].mean()),
        "psnr": _psnr(restored[whole], original[whole]),
    }
    captions = (
        f"{count} of {patches} patches hidden",
        f"error {figures['error']:.3g} (mean patch {figures['baseline']:.3g})",
        name,
    )
    return [Panel(_shown(one), words) for one, words in zip((masked, restored, original), captions, strict=True)], figures


def _psnr(found: Values, true: Values) -> float:
    """Peak signal-to-noise ratio in dB of grey levels 0-255."""
    error = np.square(found.astype(np.float64) - true).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _shown(pixels: Values) -> Values:
    """Tiny pictures enlarged by a whole factor, so that patches keep their edges."""
    factor = max(1, 240 // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)
