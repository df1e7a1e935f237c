"""Frames of a video file, one at a time, through PyAV (the extra `video`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from opticus.data.decode import PIXEL_BUDGET
from opticus.structures import ImageError, MissingPackageError, Picture

SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"})


def frames(path: str | Path, *, budget: int = PIXEL_BUDGET) -> Iterator[Picture]:
    """The frames of the first video stream as (H, W, 3) uint8 RGB, in order of presentation and in constant memory.

    Raises MissingPackageError without PyAV; ImageError naming the file if it is missing, holds no video, a frame is larger than
    `budget` pixels, or the stream is damaged.
    """
    av = _library()
    if not Path(path).is_file():
        raise ImageError(f"{path}: there is no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(f"{path}: the file has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.width * stream.height > budget:
                raise ImageError(f"{path}: frames of {stream.width}x{stream.height} pixels, more than the budget of {budget}")
            for frame in container.decode(stream):
                yield Picture(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{path}: the video cannot be decoded ({error})") from error


def rate(path: str | Path) -> float | None:
    """Frames per second as the container states them, None if it does not; raises like `frames`."""
    av = _library()
    try:
        with av.open(str(path)) as container:
            streams = container.streams.video
            return float(streams[0].average_rate) if streams and streams[0].average_rate else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(f"{path}: the video cannot be opened ({error})") from error


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("av", "video", "reading a video") from error
    return av
