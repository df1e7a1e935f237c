"""How close restored pictures are to the right ones: PSNR, SSIM and mean absolute error.

PSNR = 10 log10(255^2 / MSE). SSIM (Wang et al. 2004) is scikit-image's with the paper's 11x11 Gaussian window of deviation 1.5 and
biased covariances. On "rgb" all channels count alike; "y" compares ITU-R BT.601 luma, 16 + (65.481 R + 128.553 G + 24.966 B) / 255,
as papers of super-resolution do, without `border` pixels at each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opticus.structures import MetricError, Picture, Result, Target, UnknownNameError

CAP = 100.0  # dB, of equal pictures, whose PSNR is infinite
WINDOW = 11
Channel = Literal["rgb", "y"]
CHANNELS: tuple[Channel, ...] = ("rgb", "y")
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def luma(pixels: Pixels) -> Floats:
    """(H, W) luma in 16..235 of (H, W, 3) uint8; grey pictures (H, W, 1) as they are."""
    if pixels.shape[2] == 1:
        return pixels[..., 0].astype(np.float64)
    return 16 + pixels.astype(np.float64) @ np.asarray([65.481, 128.553, 24.966]) / 255


def psnr(error: float) -> float:
    """dB of a mean squared error in grey levels."""
    return CAP if error == 0 else min(CAP, float(10 * np.log10(255.0**2 / error)))


def ssim(one: Floats | Pixels, other: Floats | Pixels) -> float:
    """Structural similarity of two pictures (H, W) or (H, W, C) with values in 0..255; both sides must have at least 11 pixels."""
    from skimage.metrics import structural_similarity  # slow to import

    if min(one.shape[:2]) < WINDOW:
        raise MetricError(f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, found {one.shape[0]} x {one.shape[1]}")
    axis = None if one.ndim == 2 else 2
    found: Any = structural_similarity(
        one, other, data_range=255, channel_axis=axis, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(found)


class Restoration:
    """Picture by picture figures of a data set; every id counts once."""

    names: tuple[str, ...] = ()

    def __init__(
        self, *, channel: Channel = "rgb", border: int = 0, frame: str = "target", data: str = "", split: str = ""
    ) -> None:
        if channel not in CHANNELS:
            raise UnknownNameError("metric", channel, CHANNELS)
        self.channel, self.border, self.frame, self.data, self.split = channel, border, frame, data, split
        self._rows: dict[str, tuple[float, float, float]] = {}  # id -> squared error, SSIM, absolute error

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable."""
        return {
            "metric": "restoration",
            "channel": self.channel,
            "border": self.border,
            "frame": self.frame,
            "ssim": {"window": WINDOW, "sigma": 1.5, "covariance": "biased"},
            "cap": CAP,
            "data": self.data,
            "split": self.split,
            "samples": len(self),
        }

    def update(self, prediction: Result, target: Target, id: str) -> None:
        """Score one picture; MetricError naming it if sizes or channels differ."""
        if not isinstance(prediction, Picture) or not isinstance(target, Picture):
            raise MetricError(f"{id}: two pictures are needed, found {type(prediction).__name__} and {type(target).__name__}")
        one, other = prediction.pixels.numpy(), target.pixels.numpy()
        if one.shape != other.shape:
            raise MetricError(f"{id}: the answer has the shape {one.shape}, the right picture {other.shape}")
        if id in self._rows:
            return
        if self.border:
            one, other = (p[self.border : -self.border, self.border : -self.border] for p in (one, other))
        if not one.size:
            raise MetricError(f"{id}: nothing is left of the picture without {self.border} pixels at each side")
        if self.channel == "y":
            gap = luma(one) - luma(other)
            similar = ssim(luma(one), luma(other))
        else:
            gap = one.astype(np.float64) - other
            similar = ssim(one, other) if one.shape[2] > 1 else ssim(one[..., 0], other[..., 0])
        self._rows[id] = (float(np.square(gap).mean()), similar, float(np.abs(gap).mean()))

    @property
    def ids(self) -> list[str]:
        """The ids of the scored pictures, sorted."""
        return sorted(self._rows)

    def samples(self) -> dict[str, Floats]:
        """Per picture, in the order of `ids`: PSNR, SSIM, MAE."""
        rows = np.asarray([self._rows[id] for id in self.ids], np.float64).reshape(-1, 3)
        return {"PSNR": np.asarray([psnr(e) for e in rows[:, 0]]), "SSIM": rows[:, 1], "MAE": rows[:, 2]}

    def compute(self) -> dict[str, float]:
        """The means over pictures; NaN without pictures."""
        return {name: float(values.mean()) if len(values) else float("nan") for name, values in self.samples().items()}

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The pictures with the lowest PSNR: (id, dB)."""
        found = self.samples()["PSNR"]
        return [(self.ids[i], float(found[i])) for i in np.argsort(found, kind="stable")[:count]]

    def per_class(self) -> Sequence[dict[str, Any]]:
        """Nothing: pictures have no classes here."""
        return ()

    def state(self) -> Any:
        """What other processes merge."""
        return dict(self._rows)

    def merge(self, state: Any) -> None:
        """Add the pictures of another process."""
        self._rows |= state


def resampled(arrays: dict[str, npt.NDArray[Any]], draws: Floats) -> dict[str, Floats]:
    """Every figure over bootstrap draws (R, N)."""
    return {name: draws @ values / draws.sum(1) for name, values in arrays.items()}
