"""Random numbers that belong to samples, not to batches: what a generative system draws from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from opticus.structures.errors import UsageError


class Noise:
    """A stream of random numbers for each of N samples: row i depends on `seed`, on the sample's index and on what was drawn before.

    So sample 5 of a seed is the same whether it is drawn alone or in a batch of 64. Numbers are made on the CPU and moved to `device`.
    """

    def __init__(self, seed: int, count: int, *, first: int = 0, device: torch.device | str = "cpu") -> None:
        if count < 1 or first < 0:
            raise UsageError(f"noise: at least one sample and a first index of at least 0 are needed, found {count} and {first}")
        self.device = torch.device(device)
        self.indices = tuple(range(first, first + count))
        self._streams = [_generator(seed, index) for index in self.indices]

    def __len__(self) -> int:
        return len(self._streams)

    def to(self, device: torch.device | str) -> Noise:
        """The same streams (they go on where they are) with numbers moved to `device`."""
        moved = Noise.__new__(Noise)
        moved.device, moved.indices, moved._streams = torch.device(device), self.indices, self._streams
        return moved

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape) standard normal numbers."""
        return self._each(lambda stream: torch.randn(shape, generator=stream, dtype=torch.float32)).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, *shape) numbers, uniform in [0, 1)."""
        return self._each(lambda stream: torch.rand(shape, generator=stream, dtype=torch.float32)).to(dtype)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(N, *shape) int64, uniform in 0..high-1."""
        return self._each(lambda stream: torch.randint(high, shape, generator=stream))

    def choice(self, probs: Tensor) -> Tensor:
        """(N,) int64: one index per sample from the rows of `probs` (N, K), which need not sum to one."""
        sums = probs.double().cumsum(1)
        drawn = self.uniform(1, dtype=torch.float64).to(probs.device) * sums[:, -1:]
        return torch.searchsorted(sums, drawn, right=True).squeeze(1).clamp(max=probs.shape[1] - 1)

    def _each(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        return torch.stack([draw(stream) for stream in self._streams]).to(self.device)


def _generator(seed: int, index: int) -> Generator:
    key = np.random.SeedSequence([seed & 0xFFFF_FFFF_FFFF_FFFF, index]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(key[0]) & 0x7FFF_FFFF_FFFF_FFFF)
