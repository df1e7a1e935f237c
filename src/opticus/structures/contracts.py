"""The contracts between rooms (DESIGN 5): what a network, an objective, a data set and a metric promise each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from opticus.structures.batch import Batch, Images, Sample
from opticus.structures.errors import UnknownNameError
from opticus.structures.noise import Noise
from opticus.structures.targets import Result, Target

# "generate": new pictures are drawn; "translate": a picture is answered by a picture; "reconstruct": a code and back
Task = Literal["classify", "detect", "segment", "panoptic", "pose", "embed", "generate", "translate", "reconstruct", "caption"]


@dataclass(frozen=True, slots=True)
class Prepare:
    """How a picture becomes a network input: data, never code. It travels with every checkpoint.

    `resize`: "none" | "fixed" (to `size` = (H, W)) | "shortest" (shorter side to size[0], longer side at most size[1], 0 = no
    limit) | "scaled" (the same aim, but both sides times one factor and floored, as torchvision's detectors do: sides may end one
    pixel short) | "rounded" (the same, both sides rounded, as Detectron2 does) | "letterbox" (fit into `size`, pad with `fill`).
    `crop` (H, W) is a centre crop after the resize. `scale`, `mean` and `std` act as (pixel * scale - mean) / std per channel in
    `order`. `stride`: batches are padded (right, bottom) to a multiple.
    """

    channels: int = 3
    resize: Literal["none", "fixed", "shortest", "scaled", "rounded", "letterbox"] = "fixed"
    size: tuple[int, int] = (224, 224)
    crop: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    order: Literal["rgb", "bgr"] = "rgb"
    fill: float = 0.0
    stride: int = 1

    def with_channels(self, channels: int) -> Prepare:
        """The same rule for another number of channels, all with the average mean and deviation."""
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / len(values),) for values in (self.mean, self.std))
        return replace(self, channels=channels, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Prepare:
        """Rebuild from `to_json`; an unknown key is an error."""
        known = Prepare.__dataclass_fields__
        for key in values:
            if key not in known:
                raise UnknownNameError("prepare key", key, known)
        decoded: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Prepare(**decoded)


@dataclass(frozen=True)
class Part:
    """A Config field that names another network: `Part("resnet/50", norm="frozen", classes=0)`.

    `zoo.create` resolves it into a module and hands that to the constructor; keywords override fields of that network's Config.
    """

    name: str
    changes: Mapping[str, Any]

    def __init__(self, name: str, **changes: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "changes", dict(changes))

    def __hash__(self) -> int:
        return hash((self.name, repr(sorted(self.changes.items()))))


@dataclass(frozen=True)
class Weights:
    """One published checkpoint: where it is, what it is, under which licence. Unknown facts stay None, never guessed."""

    url: str
    format: str  # a key of the paper's FORMATS
    license: str
    source: str  # the page or file these facts were copied from
    prepare: Prepare
    digest: str | None = None  # sha256 of the file, or its published prefix (torchvision's eight hex digits)
    labels: str | None = None  # a label table shipped in opticus/weights/labels, e.g. "imagenet1k"
    classes: int | None = None  # width of the published head where it differs from the variant's
    reports: Mapping[str, float] = field(default_factory=dict[str, float])
    size: int | None = None  # bytes


# --- capabilities of networks ------------------------------------------------------------------------------------------


@runtime_checkable
class Predictor(Protocol):
    """A network that turns pictures into results."""

    prepare: Prepare

    def results(self, out: Any, images: Images) -> list[Result]:
        """Results in original pixel coordinates, one per picture, from `forward`'s output."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A network whose intermediate maps can carry another one; `strides` and `widths` describe `features`' maps."""

    strides: tuple[int, ...]
    widths: tuple[int, ...]

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps (B, widths[i], ceil(H / strides[i]), ceil(W / strides[i])), fine to coarse."""
        ...


@runtime_checkable
class Patchwise(Protocol):
    """A backbone on patches that can look at some of them alone: a class token, then `grid` x `grid` positions in `pos_embed`."""

    strides: tuple[int, ...]
    widths: tuple[int, ...]
    grid: int
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The embedded patches (B, N, D) with their positions, row by row, and their grid (rows, columns)."""
        ...

    def through(self, patches: Tensor) -> Tensor:
        """The normalised tokens (B, 1 + M, D) of M patches, the class token first."""
        ...

    def features(self, pixels: Tensor) -> list[Tensor]:
        """As a Backbone's."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A network that describes a picture by one vector: a classifier's last hidden layer, which probes and neighbours use."""

    def embed(self, pixels: Tensor) -> Tensor:
        """One vector per picture, (B, D); a classifier's head is a function of it."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """A network that draws new data."""

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None) -> Tensor:
        """One picture per sample of `noise`, (N, C, H, W) in the network's own normalisation; a function of the noise alone.

        `condition` is what the paper's pictures depend on, such as class labels (N,) int64; a network that has classes draws them
        from the noise where it is None. `steps` is the number of steps of an iterative sampler; UsageError where there is none.
        """
        ...


@runtime_checkable
class Latent(Protocol):
    """A sampler whose pictures are a fixed function of a starting point: what interpolation and path length walk through."""

    def latents(self, noise: Noise) -> Tensor:
        """The starting points (N, ...)."""
        ...

    def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
        """The pictures (N, C, H, W) of starting points, without further chance."""
        ...


@runtime_checkable
class Density(Protocol):
    """A network that says how likely a picture is."""

    def log_likelihood(self, pixels: Tensor) -> Tensor:
        """log p(x) (B,) in nats of pictures (B, C, H, W), or a lower bound of it, as a probability of 8-bit (or `levels`) pictures."""
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """A network that maps pictures to a code and back; without chance: of a distribution the code is its mean."""

    def encode(self, pixels: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


@runtime_checkable
class Promptable(Protocol):
    """A network that encodes a picture once and answers many prompts."""

    def encode(self, images: Images) -> Any: ...
    def results(self, out: Any, images: Images) -> list[Result]: ...


@runtime_checkable
class TextGenerator(Protocol):
    """A network that writes text."""

    def generate(self, inputs: Any, *, limit: int, beams: int = 1, generator: Generator | None = None) -> list[Result]: ...


# --- training ----------------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """Where a run is: optimiser steps and epochs done so far, their totals, the present phase, and the epoch's last step."""

    step: int
    epoch: int
    steps: int
    epochs: int
    phase: str = "all"
    last_of_epoch: bool = False

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / max(self.steps, 1)


@runtime_checkable
class Objective(Protocol):
    """Losses and training-only state of a method. It is an nn.Module; `network` is what is saved, evaluated and averaged."""

    network: nn.Module

    def phases(self, step: int) -> tuple[str, ...]:
        """The phases of optimiser step `step`, all on one batch: ("all",), or ("d", "g"), or ("d",) four times then ("d", "g")."""
        ...

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that `phase` trains; there is one optimiser per phase name and the others are frozen meanwhile."""
        ...

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The weighted terms of `at.phase`; the loss is their sum."""
        ...

    def before_update(self, at: Progress) -> None:
        """Between backward and the optimiser's step: cancel or clip gradients."""
        ...

    def after_step(self, at: Progress) -> None:
        """After the step: moving averages, queues, clustering."""
        ...


@runtime_checkable
class Watched(Protocol):
    """An objective that may collapse: its figures go into the log beside the loss, and it knows when they are bad.

    What follows "step N:" before an alarm is its attribute `warns`, if it has one, else "the representation collapses".
    """

    def figures(self) -> dict[str, float]:
        """Figures of the last step, such as entropies; called by all processes at the same steps."""
        ...

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """What is wrong, in words that follow `warns` and a colon, or None."""
        ...


class Metric(Protocol):
    """An official number, built up over a data set and mergeable across processes."""

    protocol: Mapping[str, Any]  # everything that must be equal for two numbers to be comparable

    def update(self, prediction: Result, target: Target, id: str) -> None: ...
    def compute(self) -> dict[str, float]: ...
    def state(self) -> Any: ...
    def merge(self, state: Any) -> None: ...


class Dataset(Protocol):
    """A random-access data set. Pictures are decoded in `__getitem__`, never before; annotations sit in flat arrays."""

    task: Task
    names: tuple[str, ...]  # class names; labels are indices into it
    label_ids: tuple[int, ...]  # the data set's own category ids, parallel to `names`
    hash: str  # changes whenever the content (or the generator of embedded data) does

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...
    def id_of(self, index: int) -> str: ...
    def target_of(self, index: int) -> Target | None:
        """The target alone, without decoding the picture."""
        ...
