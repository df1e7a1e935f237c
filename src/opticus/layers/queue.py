"""A first-in first-out memory of vectors from earlier batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.ops.collectives import all_gather
from opticus.structures import UsageError


class Queue(nn.Module):
    """`rows` (size, width), at first random unit vectors, the oldest of which `push` replaces; part of the state of a run.

    Every process pushes its share and keeps the same queue. `filled` is the number of rows that were ever pushed.
    """

    rows: Tensor
    place: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"a queue holds at least 1 vector, found size={size}")
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "B D"]) -> None:
        """Store the rows of all processes in rank order; of more rows than the queue holds only the last stay."""
        fresh = all_gather(rows.detach()).reshape(-1, rows.shape[1])[-len(self.rows) :]
        start = int(self.place)
        where = (torch.arange(len(fresh), device=fresh.device) + start) % len(self.rows)
        self.rows[where] = fresh.to(self.rows)
        self.place.fill_((start + len(fresh)) % len(self.rows))
        self.filled.fill_(min(int(self.filled) + len(fresh), len(self.rows)))
