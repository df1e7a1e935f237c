"""Made clips of moving discs, on which the measures of DAVIS were recorded."""

import numpy as np


def blobs(seed: int, frames: int, size: tuple[int, int], objects: int, void: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction (T, H, W): discs that move, at the borders too, and a noisy, shifted version of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    truth, said = np.zeros((frames, *size), np.uint8), np.zeros((frames, *size), np.uint8)
    for k in range(1, objects + 1):
        centre, speed, radius = rng.uniform(0, size, 2), rng.normal(0, 3, 2), rng.uniform(4, min(size) / 3)
        for t in range(frames):
            at = centre + t * speed
            at = np.abs(at) % np.array(size) if t else np.clip(at, radius / 2, np.array(size) - radius / 2)
            truth[t][(y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2] = k
            off = at + rng.normal(0, 2, 2)
            if rng.random() > 0.1:  # an object may be missed
                said[t][(y - off[0]) ** 2 + (x - off[1]) ** 2 < (radius * rng.uniform(0.7, 1.2)) ** 2] = k
    noise = rng.random(said.shape) < 0.01
    said[noise] = rng.integers(0, objects + 1, int(noise.sum()))
    if void:
        truth[:, : size[0] // 5] = 255
    return truth, said
