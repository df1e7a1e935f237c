"""Reducing the Dimensionality of Data with Neural Networks (the autoencoder), with its denoising and its sparse form.

Hinton and Salakhutdinov, Science 2006. Denoising: Vincent, Larochelle, Bengio and Manzagol, ICML 2008. Sparse: Ng, CS294A notes 2011.
Reference: phlippe/uvadlc_notebooks tutorial 9 (MIT) for the convolutional layout, whose weights are published; the dense layout has no
reference that runs, its parity is with a plain stack of the paper's layers.

*Differs*: trained from random weights by gradient descent at once, where the paper first trains a stack of Boltzmann machines; squared
error and pixels in [-1, 1] instead of cross-entropy in [0, 1]. Two decoders on one encoder (the scheme of face swapping) are not in
the papers.
*Map*: figure 1 (unrolled and fine-tuned) -> `Autoencoder`, `dense`; the paper's 784-1000-500-250-30 and its 2-D code -> `VARIANTS`;
Vincent 2008 section 2.3 -> `corrupted`; Obj = L(x, x^) + lambda sum_i |a_i| -> `Reconstruction`; strided transposed convolutions ->
`Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.pictures import mean, pictures, pixels_of, view_of
from opticus.structures import Batch, Images, Picture, Prepare, Progress, Task, UnknownNameError, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "reconstruct"
PREPARE = Prepare(resize="fixed", size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
ROLES = ("a", "b", "c", "d")  # the domains of several decoders, as the views of a batch call them
Noisy = Literal["none", "gaussian", "masking", "tone"]
NOISES: tuple[Noisy, ...] = get_args(Noisy)
FAINT = 0.01  # a unit is active where it is above this share of the batch's largest activation


@dataclass(frozen=True)
class Config:
    """`widths`: the layers (dense) or stages that halve the picture (convolutional) before the code; the decoder mirrors them.

    `refine` puts a further 3x3 convolution between two stages; `rectified` codes are never negative, so that a unit can be silent;
    `bounded` outputs go through tanh; `decoders` share the encoder, one for each domain.
    """

    layout: Literal["dense", "convolutional"] = "convolutional"
    size: int = 64
    channels: int = 3
    code: int = 128
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    activation: Literal["relu", "gelu", "sigmoid"] = "relu"
    refine: bool = False
    rectified: bool = False
    bounded: bool = True
    decoders: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.layout not in ("dense", "convolutional"):
            raise UnknownNameError("layout", self.layout, ("dense", "convolutional"))
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, ACTIVATIONS)
        if min(self.size, self.channels, self.code, *self.widths) < 1 or not 1 <= self.decoders <= len(ROLES):
            raise UsageError(
                f"autoencoder: size, channels, code and widths must be at least 1 and decoders in 1..{len(ROLES)}, found "
                f"{self.size}, {self.channels}, {self.code}, {self.widths} and {self.decoders}"
            )
        if self.layout == "convolutional" and (not self.widths or self.size % 2 ** len(self.widths)):
            raise UsageError(
                f"autoencoder: {len(self.widths)} stages halve the picture, so size {self.size} must be a multiple of "
                f"{2 ** len(self.widths)} and there must be one stage at least"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a picture (C, H, W)."""
        return self.channels, self.size, self.size


# --- network -----------------------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """Fully connected layers of the given widths, with an activation between them: (B, ...) -> (B, widths[-1])."""

    def __init__(self, widths: tuple[int, ...], activation: type[nn.Module], *, last: nn.Module | None = None) -> None:
        super().__init__()
        layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), activation())]
        self.net = nn.Sequential(*layers[:-1], *([] if last is None else [last]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))


class Encoder(nn.Module):
    """Strided convolutions, then a linear layer to the code: (B, C, H, W) -> (B, code)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        activation, last = ACTIVATIONS[config.activation], len(config.widths) - 1
        layers: list[nn.Module] = []
        for stage, (before, width) in enumerate(pairwise((config.channels, *config.widths))):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), activation()]
            if config.refine and stage < last:
                layers += [nn.Conv2d(width, width, 3, padding=1), activation()]
        side = config.size // 2 ** len(config.widths)
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(config.widths[-1] * side**2, config.code))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.net(x)


class Decoder(nn.Module):
    """The code is projected, reshaped to a small map, and enlarged by transposed convolutions of stride 2: (B, code) -> (B, C, H, W)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        activation, last = ACTIVATIONS[config.activation], len(config.widths) - 1
        self.side = config.size // 2 ** len(config.widths)
        self.linear = nn.Sequential(nn.Linear(config.code, config.widths[-1] * self.side**2), activation())
        layers: list[nn.Module] = []
        for stage, (before, width) in enumerate(pairwise((*config.widths[::-1], config.channels))):
            layers += [nn.ConvTranspose2d(before, width, 3, stride=2, padding=1, output_padding=1)]
            if stage < last:
                layers += [activation()]
            if config.refine and stage < last:
                layers += [nn.Conv2d(width, width, 3, padding=1), activation()]
        self.net = nn.Sequential(*layers, *([nn.Tanh()] if config.bounded else []))

    def forward(self, codes: Float[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        return self.net(self.linear(codes).unflatten(1, (-1, self.side, self.side)))


class Autoencoder(nn.Module):
    """x -> code -> x^. `forward` returns the reconstruction (B, C, H, W), in the network's own normalisation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rule = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(rule.channels, "fixed", (config.size, config.size), mean=rule.mean, std=rule.std)
        places, activation = config.channels * config.size**2, ACTIVATIONS[config.activation]
        if config.layout == "dense":
            self.encoder: nn.Module = Dense((places, *config.widths, config.code), activation)
            back = (config.code, *config.widths[::-1], places)
            made = [Dense(back, activation, last=nn.Tanh() if config.bounded else None) for _ in range(config.decoders)]
        else:
            self.encoder = Encoder(config)
            made = [Decoder(config) for _ in range(config.decoders)]
        self.decoders = nn.ModuleList(made)

    def encode(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The code; UsageError for pictures of another shape."""
        if tuple(pixels.shape[1:]) != self.config.shape:
            raise UsageError(f"autoencoder: pictures must have shape {self.config.shape}, found {tuple(pixels.shape[1:])}")
        code = self.encoder(pixels)
        return code.relu() if self.config.rectified else code

    def decode(self, latents: Float[Tensor, "B D"], domain: int = 0) -> Float[Tensor, "B C H W"]:
        """The pictures of codes, drawn by the decoder of a domain; UsageError for codes of another length or an unknown domain."""
        if latents.ndim != 2 or latents.shape[1] != self.config.code:
            raise UsageError(f"autoencoder: codes must have shape (B, {self.config.code}), found {tuple(latents.shape)}")
        if not 0 <= domain < len(self.decoders):
            raise UsageError(f"autoencoder: there are {len(self.decoders)} decoders, counted from 0; found domain {domain}")
        return self.decoders[domain](latents).reshape(-1, *self.config.shape)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        return self.decode(self.encode(pixels))

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The code."""
        return self.encode(pixels)

    def swap(self, pixels: Float[Tensor, "B C H W"], to: int = 1) -> Float[Tensor, "B C H W"]:
        """Pictures of any domain, drawn again by the decoder of domain `to`."""
        return self.decode(self.encode(pixels), to)

    def results(self, out: Tensor, images: Images) -> list[Picture]:
        """The reconstructions as pictures."""
        return pictures(out, self.prepare)


NETWORK = Autoencoder


# --- objective ---------------------------------------------------------------------------------------------------------


def corrupted(pixels: Tensor, kind: Noisy, amount: float, chance: Tensor, dark: float = -1.0) -> Tensor:
    """What the encoder is shown instead of a picture (Vincent 2008, section 2.3).

    `chance` (B, C, H, W) are standard normal numbers for "gaussian" (deviation `amount`, in the network's normalisation) and uniform
    ones for the others. "masking": a share `amount` of the pixels becomes `dark`. "tone" (for [-1, 1] pixels, an augmentation of face
    swapping): a share of the contrast, at most `amount`, is lost, what is left lies anywhere in [-1, 1], and half the pictures are negatives.
    """
    if kind == "gaussian":
        return pixels + amount * chance
    if kind == "masking":
        return torch.where(chance < amount, torch.full_like(pixels, dark), pixels)
    if kind == "tone":
        flat = chance.flatten(1)
        first, last = (flat[:, i].reshape(-1, 1, 1, 1) for i in (0, -1))
        gain = 1 - amount * (2 * first % 1)
        return torch.where(first < 0.5, pixels, -pixels) * gain + (2 * last - 1) * (1 - gain)
    return pixels


def active(codes: Float[Tensor, "B D"]) -> Tensor:
    """The share of units that are active: above `FAINT` times the largest activation of the batch."""
    sizes = codes.detach().abs()
    return (sizes > FAINT * sizes.max()).float().mean()


class Reconstruction(nn.Module):
    """Obj = L(x, x^) + lambda sum_i |a_i|: squared error (the mean over pixels) and a penalty on the code's activations a_i.

    The encoder sees x, or x with noise; L always compares with the clean x. A network of several decoders sees each domain's pictures
    (the views "a", "b", ... of a batch) and reconstructs them by that domain's decoder.
    """

    def __init__(
        self, network: Autoencoder, *, noise: Noisy = "none", amount: float = 0.0,
        sparsity: float = 0.0, penalty: Literal["l1", "l2"] = "l1",
    ) -> None:  # fmt: skip
        super().__init__()
        if noise not in NOISES:
            raise UnknownNameError("noise", noise, NOISES)
        if penalty not in ("l1", "l2"):
            raise UnknownNameError("penalty", penalty, ("l1", "l2"))
        if amount < 0 or sparsity < 0 or (noise in ("masking", "tone") and amount >= 1):
            raise UsageError(
                f"autoencoder: amount and sparsity must not be negative and a share is below 1, found {amount} and {sparsity}"
            )
        self.network, self.amount = network, amount
        self.noise: Noisy = noise
        self.sparsity, self.penalty = sparsity, penalty
        self._codes: Tensor | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The error of every domain ("error", or "error/a", ...), and "sparsity" where it is asked for."""
        count = self.network.config.decoders
        given = {"error": pixels_of(batch)} if count == 1 else {f"error/{r}": view_of(batch, r) for r in ROLES[:count]}
        terms: dict[str, Tensor] = {}
        codes: list[Tensor] = []
        for domain, (name, pixels) in enumerate(given.items()):
            codes.append(self.network.encode(self.corrupt(pixels)).float())
            restored = self.network.decode(codes[-1].to(pixels.dtype), domain)
            terms[name] = mean((restored - pixels).float().square().flatten(1).mean(1), batch)
        if self.sparsity:
            sizes = [(code.abs() if self.penalty == "l1" else code.square()).sum(1) for code in codes]
            terms["sparsity"] = self.sparsity * torch.stack([mean(size, batch) for size in sizes]).mean()
        self._codes = torch.cat(codes).detach()
        return terms

    def corrupt(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pictures that the encoder sees in training; evaluation and use see the picture as it is."""
        if self.noise == "none":
            return pixels
        rule = self.network.prepare
        chance = torch.randn_like(pixels) if self.noise == "gaussian" else torch.rand_like(pixels)
        return corrupted(pixels, self.noise, self.amount, chance, dark=-rule.mean[0] / rule.std[0])

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Of the last batch: the share of active units, and the spread of the codes."""
        assert self._codes is not None, "figures follow a forward pass"
        return {"active": float(active(self._codes)), "spread": float(self._codes.std(0, unbiased=False).mean())}

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Codes that are the same for all pictures."""
        return None if figures["spread"] > 1e-6 else "every picture has the same code; lower sparsity= or the learning rate"


def objective(network: Autoencoder, **options: Any) -> Reconstruction:
    """`noise` ("none", "gaussian", "masking", "tone") of an `amount`, `sparsity` (lambda) with its `penalty` ("l1", "l2")."""
    return Reconstruction(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

_TINY = Config(size=16, channels=1, code=16, widths=(32, 64), activation="gelu", refine=True)
_DIGITS = {"layout": "dense", "size": 28, "channels": 1, "activation": "sigmoid", "widths": (1000, 500, 250)}
VARIANTS: dict[str, Config] = {
    "tiny": _TINY,
    "tiny-2d": Config("dense", 16, 1, 2, (256, 128, 64)),
    "tiny-sparse": Config("dense", 16, 1, 256, (), rectified=True),
    "tiny-swap": Config("dense", 16, 1, 32, (256, 128), decoders=2),
    "mnist-30": Config(code=30, **cast(Any, _DIGITS)),
    "mnist-2": Config(code=2, **cast(Any, _DIGITS)),
    **{f"cifar-{code}": Config("convolutional", 32, 3, code, (32, 64, 64), "gelu", refine=True) for code in (64, 128, 256, 384)},
    "64": Config(),
}
PARAMETERS: dict[str, int] = {
    "cifar-128": 468_227,
    "cifar-256": 730_499,
    "cifar-384": 992_771,
    "cifar-64": 337_091,
    "mnist-2": 2_823_286,
    "mnist-30": 2_837_314,
}
FORMATS: dict[str, Names] = {
    "uvadlc": Names(
        rename(r"encoder\.(net\..+)", r"encoder.\1"),
        rename(r"decoder\.((?:linear|net)\..+)", r"decoders.0.\1"),
    ),
    "sequential": Names(  # encoder and decoder as plain stacks of layers
        rename(r"encoder\.(\d+\.\w+)", r"encoder.net.\1"),
        rename(r"decoder\.(\d+\.\w+)", r"decoders.0.net.\1"),
    ),
}
WEIGHTS: dict[
    str, Weights
] = {}  # the notebooks' checkpoints name classes of theirs beside the tensors, so they are refused as they are
