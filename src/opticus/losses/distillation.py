"""Knowledge distillation of classifiers (Hinton et al. 2015, 1503.02531; DeiT, Touvron et al. 2021, 2012.12877, eq. 2 and 3).

psi is the softmax, Z_s and Z_t are the logits of student and teacher, y the true label, y_t = argmax Z_t the teacher's:
hard: L = 1/2 CE(psi(Z_s), y) + 1/2 CE(psi(Z_s), y_t);   soft: L = (1 - share) CE(psi(Z_s), y) + share tau^2 KL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.losses.classify import cross_entropy, logits_of
from opticus.losses.supervised import Supervised, widened
from opticus.ops.collectives import all_reduce
from opticus.structures import Batch, CapabilityError, Prepare, Progress, TrainError, UnknownNameError, UsageError
from opticus.transforms.reprepare import reprepare

Kind = Literal["hard", "soft"]
KINDS: tuple[Kind, ...] = ("hard", "soft")


def hard(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], weights: Float[Tensor, "B"] | None = None
) -> Float[Tensor, ""]:
    """CE(psi(Z_s), y_t): cross-entropy with the teacher's own decision, averaged over the batch (`weights` scale a sample's term)."""
    label = F.one_hot(teacher.argmax(1), teacher.shape[1]).to(student.dtype)
    return cross_entropy(student, label, sample_weights=weights)


def soft(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    temperature: float = 3.0,
    weights: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """tau^2 KL(psi(Z_s / tau), psi(Z_t / tau)), averaged over the batch.

    The arguments stand in the paper's order, which is that of `torch.nn.functional.kl_div`: the sum is weighted by the teacher,
    sum_k p_t log(p_t / p_s), as in Hinton's paper and the authors' code. The authors divide by B K instead of B.
    """
    p, q = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    each = (p.exp() * (p - q)).sum(1)
    if weights is not None:
        each = each * weights
    count = all_reduce(each.new_tensor(float(each.shape[0])), "mean")
    return temperature**2 * each.sum() / count


class Distilled(nn.Module):
    """Trains a student on labels, as its own objective does, and on what a frozen teacher says about the same pictures.

    The terms are (1 - share) times those of the student's `criterion`, and share times `hard` or `soft` under the name "teacher".
    A student with a distillation token (`class_logits` and `distilled` in its output) learns the true label with the class head and
    the teacher's with the distillation head; any other learns both with its logits. The teacher's logits are computed without
    gradients, in eval mode, on the student's augmented batch as the teacher's own `prepare` wants it. `columns[k]` is the teacher's
    output for class k of the student; what else the teacher knows is left out before its softmax or argmax.

    The teacher is no submodule: its tensors are in no file of the run, nor in the state. The state keeps their digest and the
    settings; resuming with another teacher or other settings is a TrainError.
    """

    def __init__(
        self,
        base: Supervised,
        teacher: nn.Module,
        *,
        kind: Kind = "hard",
        temperature: float = 3.0,
        share: float = 0.5,
        columns: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        check(kind, temperature, share)
        self.network = base.network
        self.criterion = base.criterion
        self.held = (teacher.eval().requires_grad_(False),)  # in a tuple, so that it is not registered
        self.kind: Kind = kind
        self.temperature, self.share = float(temperature), float(share)
        self.columns = None if columns is None else torch.tensor(list(columns), dtype=torch.int64)
        self.settings: dict[str, Any] = {"teacher": fingerprint(teacher), "distill": kind, "share": self.share}
        self.settings |= {"temperature": self.temperature} if kind == "soft" else {}

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self.held[0]

    def phases(self, step: int) -> tuple[str, ...]:
        """("all",) at every step."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The student's parameters and its criterion's; never the teacher's."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The student's own terms and "teacher", weighted; CapabilityError if the batch has no images."""
        if batch.images is None:
            raise CapabilityError(f"{type(self.network).__name__} is trained on images, but batch {batch.ids[:1]} has none")
        out = widened(self.network(batch.images.pixels, batch.images.valid))
        truth, taught = _parts(out)
        terms = {name: (1 - self.share) * term for name, term in self.criterion(truth, batch).items()}
        said = self.says(batch.images.pixels, batch.images.valid).to(taught)
        if said.shape != taught.shape:
            raise UsageError(f"the teacher's logits have shape {tuple(said.shape)}, the student's {tuple(taught.shape)}")
        weights = None if batch.weights is None else batch.weights.to(taught)
        loss = hard(taught, said, weights) if self.kind == "hard" else soft(taught, said, self.temperature, weights)
        return {**terms, "teacher": self.share * loss}

    @torch.no_grad()
    def says(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        """The teacher's logits for pixels prepared for the student, in the student's classes."""
        teacher = self.teacher
        first = next((p for p in teacher.parameters()), None)
        if first is not None and (first.device, first.dtype) != (pixels.device, pixels.dtype):
            teacher.to(pixels.device, pixels.dtype)
        rule, own = (cast(Prepare, cast(Any, network).prepare) for network in (self.network, teacher))
        logits = logits_of(widened(teacher(reprepare(pixels, valid, rule, own))))
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]

    def before_update(self, at: Progress) -> None:
        """Nothing: gradients go to the optimiser as they are."""

    def after_step(self, at: Progress) -> None:
        """Nothing: the teacher stays as it is."""

    def get_extra_state(self) -> dict[str, Any]:
        """The settings and the teacher's digest, which a resumed run must share."""
        return self.settings

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is set; TrainError if the saved run had another teacher or other settings."""
        for key in dict.fromkeys((*state, *self.settings)):
            if state.get(key) != self.settings.get(key):
                what = "another teacher (its weights differ)" if key == "teacher" else f"{key}={state.get(key)}"
                now = "" if key == "teacher" else f", now {key}={self.settings.get(key)}"
                raise TrainError(f"the run was distilled with {what}{now}; resume needs them equal")


def check(kind: str, temperature: Any, share: Any) -> None:
    """UsageError for an unknown kind, a temperature that is not positive, or a share outside [0, 1]."""
    if kind not in KINDS:
        raise UnknownNameError("kind of distillation (distill)", str(kind), KINDS)
    for name, value in (("temperature", temperature), ("share", share)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{name} must be a number, found {value!r}")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature must be greater than 0, found {temperature}")
    if not 0 <= share <= 1:
        raise UsageError(f"share must be in [0, 1], found {share}")


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of a network's parameters and buffers."""
    state = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        state.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        state.update(plain.reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _parts(out: Any) -> tuple[Any, Tensor]:
    """What the criterion compares with the labels, and the logits that learn from the teacher."""
    first, second = getattr(out, "class_logits", None), getattr(out, "distilled", None)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first, second
    return out, logits_of(out)
