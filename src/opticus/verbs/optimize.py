"""`optimize`: the same network, faster to run: norms folded, layers fused, weights prepacked, bfloat16 or torch.compile on request."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opticus.structures import Autoencoder, CapabilityError, Error, Images, Prepare, UnknownNameError, UsageError
from opticus.verbs import fusion

TOLERANCE = 1e-4  # of float32 outputs, relative to the largest value of each output
OUTSIDE = ("results", "pictures", "train", "save")  # methods that do not compute with the network's layers
Call = tuple[str, tuple[Any, ...]]  # a method and what it is called with
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def optimize(
    model: nn.Module, *, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False, example: Tensor | None = None
) -> nn.Module:
    """A copy of `model` for inference: batch norms folded, (transposed) conv/linear + activation + addition fused (oneDNN) where possible.

    The copy keeps class, config, prepare, methods and bound verbs, takes any input size that `model` takes, and refuses training.
    `precision="bf16"` computes layers in bfloat16 except those right before an output, and returns float32. `compile=True` hands the
    folded network to torch.compile instead of oneDNN (needs a C++ compiler; slow first call per shape). `example` (B, C, H, W) is what the
    copy is checked and measured on (default: noise in the size of `model.prepare`, B = 1); a network whose forward takes something else,
    such as latents, gets what its paper makes of such pictures, or an example of another rank as it is.

    The copy's `error` is the largest difference from `model` on the example relative to the output's largest value (`features`
    included; of an autoencoder that of `encode` and of `decode`), `fused` the number of rewritten layers. On a CPU,
    torch version or device without the fused operators the same copy
    runs in plain operations. Raises UsageError (unknown precision, model already optimised), CapabilityError (the model cannot run
    the example, no compiler) and Error if float32 outputs differ by more than 1e-4.
    """
    if precision not in _TYPES:
        raise UnknownNameError("precision", precision, _TYPES)
    if any(isinstance(module, fusion.FusedConv | fusion.FusedLinear | fusion.FusedInstanceNorm) for module in model.modules()):
        raise UsageError("optimize: this model is already optimised; call it on the plain one")
    result: Any = copy.deepcopy(model).eval().requires_grad_(False)
    inputs = _inputs(result, _example(result) if example is None else example)
    with torch.inference_mode(), _named_failure("the model could not run the example"):
        calls = _calls(result, inputs)
        wanted = _outputs(result, calls)
    with torch.inference_mode(), _callers(result) as callers:
        _outputs(result, [("forward", inputs), *calls])
    exact = last_layers(result, *inputs) | _first_layer(result) if precision == "bf16" else set[nn.Module]()
    count = fusion.rewrite(result, callers, lambda module: torch.float32 if module in exact else _TYPES[precision])
    result.train = MethodType(_train, result)
    result.save = MethodType(_save, result)
    if precision == "bf16":
        for name, function in _methods(type(result)):
            setattr(result, name, MethodType(_mixed(function), result))
    with torch.inference_mode(), _named_failure("torch.compile failed" if compile else "the optimised model failed"):
        if compile:
            result.compile(options={"freezing": True})
        error = difference(_outputs(result, calls), wanted)
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


def _methods(kind: type[nn.Module]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of a network that compute with its layers: forward, features, encode, sample, ..."""
    for name, function in inspect.getmembers(kind, inspect.isfunction):
        if name == "forward" or not (name.startswith("_") or name in OUTSIDE or hasattr(nn.Module, name)):
            yield name, function


def _mixed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run in bfloat16 where torch's autocast does so (layers that were not rewritten included), and return float32."""

    @functools.wraps(function)
    def call(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        kind = next((parameter.device.type for parameter in self.parameters()), "cpu")
        with torch.autocast(kind, torch.bfloat16):
            out = function(self, *inputs, **options)
        return pytree.tree_map(
            lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf, out
        )

    return call


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


def _inputs(model: nn.Module, example: Tensor) -> tuple[Any, ...]:
    """What `forward` takes for pictures: themselves, or what the paper's file says (`inputs`), such as latents or times beside them."""
    own = getattr(sys.modules.get(type(model).__module__), "inputs", None)
    if own is None or example.ndim != 4:
        return (example,)
    sizes = tuple((int(example.shape[2]), int(example.shape[3])) for _ in example)
    return own(model, Images(example, None, torch.eye(3).expand(len(example), 3, 3), sizes))


def _calls(model: Any, inputs: tuple[Any, ...]) -> list[Call]:
    """What is checked: `forward`, or the two halves of an autoencoder (codes of nearly the same latents may be others), and what else
    has layers of its own: `features`, `decoded` (latents to pictures) and `cycle` (there and back)."""
    calls: list[Call] = [("forward", inputs)]
    if isinstance(model, Autoencoder):
        calls = [("encode", inputs), ("decode", (model.encode(*inputs),))]
    calls += [("features", inputs)] if hasattr(model, "features") else []
    for name in ("decoded", "cycle"):
        if hasattr(model, name):
            try:
                getattr(model, name)(inputs[0])
            except CapabilityError:  # of a network that has the method, but not the part for it
                continue
            calls.append((name, inputs[:1]))
    return calls


def _outputs(model: Any, calls: list[Call]) -> list[Tensor]:
    """Every tensor that the calls return, without those of other types than floats."""
    outputs = [getattr(model, name)(*given) if name != "forward" else model(*given) for name, given in calls]
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


def last_layers(model: nn.Module, *inputs: Any) -> set[nn.Module]:
    """The convolutions and linear maps with no other one between them and an output of `forward`: found in autograd's graph.

    Rounding in them is not averaged by anything after it, and they cost little: bfloat16 leaves them in float32.
    """
    owners = {m.weight: m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)}
    trained = [weight for weight in owners if not weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            leaves = pytree.tree_leaves(model(*inputs))
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


def _first_layer(model: nn.Module) -> set[nn.Module]:
    """The layer whose type a sampler's starting points take: bfloat16 there would round all that is drawn, and every step of it."""
    first = next(iter(model.parameters()), None) if hasattr(model, "latents") else None
    return {m for m in model.modules() if first is not None and any(p is first for p in m.parameters(recurse=False))}


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
