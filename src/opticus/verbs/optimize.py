"""`optimize`: the same network, faster to run: norms folded, layers fused, weights prepacked, bfloat16 or torch.compile on request."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opticus.structures import CapabilityError, Error, Prepare, UnknownNameError, UsageError
from opticus.verbs import fusion

TOLERANCE = 1e-4  # of float32 outputs, relative to the largest value of each output
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def optimize(
    model: nn.Module, *, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False, example: Tensor | None = None
) -> nn.Module:
    """A copy of `model` for inference: batch norms folded, conv/linear + activation + addition fused (oneDNN) where possible.

    The copy keeps class, config, prepare, methods and bound verbs, takes any input size that `model` takes, and refuses training.
    `precision="bf16"` computes layers in bfloat16 except those right before an output, and returns float32. `compile=True` hands the
    folded network to torch.compile instead of oneDNN (needs a C++ compiler; slow first call per shape). `example` (B, C, H, W) is what the
    copy is checked and measured on (default: noise in the size of `model.prepare`, B = 1).

    The copy's `error` is the largest difference from `model` on the example relative to the output's largest value (`features`
    included), `fused` the number of rewritten layers. On a CPU, torch version or device without the fused operators the same copy
    runs in plain operations. Raises UsageError (unknown precision, model already optimised), CapabilityError (the model cannot run
    the example, no compiler) and Error if float32 outputs differ by more than 1e-4.
    """
    if precision not in _TYPES:
        raise UnknownNameError("precision", precision, _TYPES)
    if any(isinstance(module, fusion.FusedConv | fusion.FusedLinear) for module in model.modules()):
        raise UsageError("optimize: this model is already optimised; call it on the plain one")
    result: Any = copy.deepcopy(model).eval().requires_grad_(False)
    pixels = _example(result) if example is None else example
    with torch.inference_mode(), _named_failure("the model could not run the example"):
        wanted = _outputs(result, pixels)
    with torch.inference_mode(), _callers(result) as callers:
        _outputs(result, pixels)
    exact = last_layers(result, pixels) if precision == "bf16" else set[nn.Module]()
    count = fusion.rewrite(result, callers, lambda module: torch.float32 if module in exact else _TYPES[precision])
    result.train = MethodType(_train, result)
    result.save = MethodType(_save, result)
    if precision == "bf16":
        result.forward = MethodType(_mixed_forward, result)
        if hasattr(type(result), "features"):
            result.features = MethodType(_mixed_features, result)
    with torch.inference_mode(), _named_failure("torch.compile failed" if compile else "the optimised model failed"):
        if compile:
            result.compile(options={"freezing": True})
        error = difference(_outputs(result, pixels), wanted)
    if precision == "fp32" and not error <= TOLERANCE:
        raise Error(f"optimize: float32 outputs must stay within {TOLERANCE:g} of the plain model's, found {error:.1e}")
    result.error, result.fused, result.precision = error, count, precision
    return result


# --- what runs ---------------------------------------------------------------------------------------------------------


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces `train` of an optimised network: its norms are folded and its weights take no gradient."""
    if mode:
        raise CapabilityError(
            "an optimised model is for inference and cannot be trained; train the plain one and optimise it afterwards"
        )
    return nn.Module.train(self, False)


def _save(self: nn.Module, *inputs: Any, **options: Any) -> None:
    """Replaces the verb `save`: folded weights fit no network."""
    raise CapabilityError("an optimised model cannot be saved; save the plain one and optimise it after loading")


def _mixed_forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
    return _mixed(type(self).forward, self, *inputs, **options)


def _mixed_features(self: Any, *inputs: Any, **options: Any) -> Any:
    return _mixed(type(self).features, self, *inputs, **options)


def _mixed(function: Any, self: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Run in bfloat16 where torch's autocast does so (layers that were not rewritten included), and return float32."""
    kind = next((leaf.device.type for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), "cpu")
    with torch.autocast(kind, torch.bfloat16):
        out = function(self, *inputs, **options)
    return pytree.tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf, out)


# --- what is measured --------------------------------------------------------------------------------------------------


def _example(model: nn.Module) -> Tensor:
    """Noise (1, C, H, W) in the size that `prepare` makes; 256x320 where that is any size."""
    prepare = getattr(model, "prepare", None)
    if not isinstance(prepare, Prepare):
        raise CapabilityError(f"optimize: {type(model).__name__} has no `prepare` that tells its input size; pass example=")
    size = prepare.crop or (prepare.size if prepare.resize in ("fixed", "letterbox") else (256, 320))
    height, width = (-(-n // prepare.stride) * prepare.stride for n in size)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.randn(1, prepare.channels, height, width, generator=torch.Generator().manual_seed(0)).to(device)


def _outputs(model: Any, pixels: Tensor) -> list[Tensor]:
    """Every tensor that `forward` and, where there is one, `features` return, without those of other types than floats."""
    outputs = [model(pixels), model.features(pixels) if hasattr(model, "features") else None]
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference between two lists of outputs, each relative to the largest value wanted of it."""
    if [f.shape for f in found] != [w.shape for w in wanted]:
        raise Error("optimize: the outputs of the optimised model have other shapes than the plain model's")
    errors = [
        float((f.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1e-30))
        for f, w in zip(found, wanted)
        if w.numel()
    ]
    return max((e if e == e else float("inf") for e in errors), default=0.0)


def last_layers(model: nn.Module, pixels: Tensor) -> set[nn.Module]:
    """The convolutions and linear maps with no other one between them and an output of `forward`: found in autograd's graph.

    Rounding in them is not averaged by anything after it, and they cost little: bfloat16 leaves them in float32.
    """
    owners = {m.weight: m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    trained = [weight for weight in owners if not weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            leaves = pytree.tree_leaves(model(pixels))
    finally:
        for weight in trained:
            weight.requires_grad_(False)
    ahead = [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    found, seen = set[nn.Module](), set[Any](ahead)
    while ahead:
        before = [function for function, _ in ahead.pop().next_functions if function is not None]
        own = [owners[weight] for function in before for weight in _weights(function) if weight in owners]
        found.update(own)
        new = [] if own else [function for function in before if function not in seen]
        seen.update(new)
        ahead += new
    return found


def _weights(function: Any) -> list[Tensor]:
    """The parameter that a node of autograd's graph is, directly or transposed."""
    if hasattr(function, "variable"):
        return [function.variable]
    if type(function).__name__ in ("TBackward0", "TransposeBackward0", "PermuteBackward0"):
        return [f.variable for f, _ in function.next_functions if hasattr(f, "variable")]
    return []


@contextmanager
def _callers(model: nn.Module) -> Generator[dict[nn.Module, set[nn.Module]]]:
    """Record, while the model runs, from inside which modules each module is called."""
    stack = [model]
    callers: dict[nn.Module, set[nn.Module]] = {}

    def enter(module: nn.Module, inputs: Any) -> None:
        callers.setdefault(module, set()).add(stack[-1])
        stack.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    handles = [handle for m in model.modules() for handle in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        yield callers
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _named_failure(what: str) -> Generator[None]:
    try:
        yield
    except Error:
        raise
    except Exception as error:  # any code of the model or of the compiler may have raised anything
        raise CapabilityError(
            f"optimize: {what}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
