"""What a denoiser predicts, and how one kind of answer becomes another.

With x = a x_0 + b e: "eps" is e (Ho 2020), "x0" the picture, "v" is a e - b x_0 (Salimans 2022, arXiv 2202.00512; a^2 + b^2 = 1) and "flow"
the velocity e - x_0 of the straight path (a + b = 1; Lipman 2022, 2210.02747).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from opticus.structures import UnknownNameError

KINDS = ("eps", "x0", "v", "flow")
Number = float | Tensor  # a factor for all pictures, or (B, 1, ...)


class Parts(NamedTuple):
    """What a noisy picture is made of: the picture and the noise, both shaped like it."""

    picture: Tensor
    noise: Tensor


def noisy(picture: Tensor, noise: Tensor, signal: Number, amount: Number) -> Tensor:
    """signal x_0 + amount e."""
    return signal * picture + amount * noise


def target(kind: str, picture: Tensor, noise: Tensor, signal: Number, amount: Number) -> Tensor:
    """What a network of that kind should answer; UnknownNameError for a kind that is none of KINDS."""
    if kind == "eps":
        return noise
    if kind == "x0":
        return picture
    if kind == "v":
        return signal * noise - amount * picture
    if kind == "flow":
        return noise - picture
    raise UnknownNameError("kind of prediction", kind, KINDS)


def parts(kind: str, answer: Tensor, x: Tensor, signal: Number, amount: Number) -> Parts:
    """Picture and noise that a network's answer to `x` stands for; `signal` must not be 0 for "eps", `amount` not for "x0"."""
    if kind == "eps":
        return Parts((x - amount * answer) / signal, answer)
    if kind == "x0":
        return Parts(answer, (x - signal * answer) / amount)
    if kind == "v":
        return Parts(signal * x - amount * answer, signal * answer + amount * x)
    if kind == "flow":
        return Parts(x - amount * answer, x + signal * answer)
    raise UnknownNameError("kind of prediction", kind, KINDS)
