"""Rewriting an evaluation network in place: convolutions and linear maps swallow the norms, additions and activations after them.

A part of the network whose forward can be traced symbolically becomes a graph, in which conv -> norm -> (+ shortcut) -> activation and
linear -> activation or (+ residual) are one node each; doubling by nearest neighbour and the 3x3 convolution after it become one
transposed convolution, which multiplies less than half as often. A part that cannot be traced (a choice on shapes or masks) or whose inside is used
from outside keeps its class, methods and code: its children are treated one by one, and conv -> norm -> activation among its
direct children is found by tracing it with its children as black boxes.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from opticus.layers.norm import FrozenBatchNorm, SyncNorm
from opticus.ops import fused
from opticus.ops.fused import Activation, Window
from opticus.verbs.fused_layers import FusedConv, FusedInstanceNorm, FusedLinear

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm, SyncNorm)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)  # in evaluation


# --- what can be fused -------------------------------------------------------------------------------------------------


def window_of(conv: nn.Module) -> Window | None:
    """The window of a plain convolution, transposed or not; None for one that cannot be rewritten."""
    if type(conv) is nn.ConvTranspose2d and conv.groups == 1 and not isinstance(conv.padding, str) and not _watched(conv):
        values = (conv.padding, conv.stride, conv.dilation, conv.output_padding)
        padding, stride, dilation, grown = (_pair(value) for value in values)
        return Window(padding, stride, dilation, 1, grown)
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or _watched(conv):
        return None
    if isinstance(conv.padding, str):
        return Window((0, 0), _pair(conv.stride), _pair(conv.dilation), conv.groups) if conv.padding == "valid" else None
    return Window(_pair(conv.padding), _pair(conv.stride), _pair(conv.dilation), conv.groups)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _watched(module: nn.Module) -> bool:
    """Somebody hooked or parametrised the module: leave it as it is."""
    state = vars(module)
    return bool(state["_forward_hooks"] or state["_forward_pre_hooks"] or "parametrizations" in state["_modules"])


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, NORMS) and isinstance(getattr(module, "running_mean", None), Tensor) and not _watched(module)


_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: Activation("relu"),
    nn.ReLU6: lambda m: Activation("hardtanh", (0.0, 6.0)),
    nn.GELU: lambda m: Activation("gelu", (), m.approximate),
    nn.SiLU: lambda m: Activation("swish"),
    nn.Sigmoid: lambda m: Activation("sigmoid"),
    nn.Tanh: lambda m: Activation("tanh"),
    nn.Hardswish: lambda m: Activation("hardswish"),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", (m.negative_slope,)),
    nn.PReLU: lambda m: Activation("leaky_relu", (float(m.weight),)),  # of one slope
}
_FUNCTIONS: dict[Any, Activation] = {
    F.relu: Activation("relu"),
    torch.relu: Activation("relu"),
    torch.relu_: Activation("relu"),
    F.silu: Activation("swish"),
    torch.sigmoid: Activation("sigmoid"),
    torch.tanh: Activation("tanh"),
    "relu": Activation("relu"),
    "relu_": Activation("relu"),
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
}


def activation_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Activation | None:
    """The activation that a node of a graph computes, or None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        make = _MODULES.get(type(module))
        several = isinstance(module, nn.PReLU) and module.num_parameters > 1
        return None if make is None or several or _watched(module) else make(module)
    if node.op not in ("call_function", "call_method"):
        return None
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if node.target is F.gelu and len(node.args) == 1 and set(options) <= {"approximate"}:
        return Activation("gelu", (), str(options.get("approximate", "none")))
    return _FUNCTIONS.get(node.target) if len(node.args) == 1 and not options else None


# --- graphs ------------------------------------------------------------------------------------------------------------


def _tracer(shallow: bool) -> fx.Tracer:
    """A tracer that stops at torch's own modules, batch norms and watched modules; with `shallow` at every child."""
    tracer = fx.Tracer()
    usual = tracer.is_leaf_module

    def is_leaf(m: nn.Module, module_qualified_name: str) -> bool:
        return shallow or isinstance(m, NORMS) or _watched(m) or usual(m, module_qualified_name)

    tracer.is_leaf_module = is_leaf
    return tracer


def trace(module: nn.Module, *, shallow: bool = False, absent: str | None = None) -> fx.GraphModule | None:
    """The graph of a module's forward, None where it is not a fixed one; the argument named `absent` is None."""
    try:
        return fx.GraphModule(module, _tracer(shallow).trace(module, {} if absent is None else {absent: None}))
    except Exception:  # any code of the module may have failed on the symbolic input: then it is simply not traceable
        return None


def general_trace(module: nn.Module) -> fx.GraphModule | None:
    """The graph of a module's forward if it is the same for all tensors and for absent ones; None otherwise.

    A symbolic argument is never None, so a choice on that would be traced one-sidedly: arguments that may be None are tried both ways.
    """
    if (graph := trace(module)) is None:
        return None
    for argument in inspect.signature(module.forward).parameters.values():
        kind = "" if argument.annotation is argument.empty else str(argument.annotation)
        if argument.kind is not argument.POSITIONAL_OR_KEYWORD or (kind and "Tensor" not in kind):
            return None
        if "None" in kind or "Optional" in kind or not kind or argument.default is None:
            without = trace(module, absent=argument.name)
            if without is not None and _steps(without) != _steps(graph):
                return None
        if argument.default not in (argument.empty, None):
            return None
    return graph


def _steps(graph: fx.GraphModule) -> list[tuple[str, Any]]:
    """What a graph does, in order, without fx's own check that an absent argument is absent."""
    checks = ("_assert_is_none",)
    nodes = [n for n in graph.graph.nodes if n.op != "placeholder" and getattr(n.target, "__name__", "") not in checks]
    return [(node.op, node.target) for node in nodes if node.op != "output"]


def fuse_graph(graph: fx.GraphModule, dtype_of: Callable[[nn.Module], torch.dtype]) -> int:
    """Fuse every convolution and linear map of a graph with what follows it; returns how many nodes were rewritten."""
    modules: dict[str, nn.Module] = dict(graph.named_modules(remove_duplicate=False))
    for node in list(graph.graph.nodes):
        if (node.op == "call_module" and type(modules[str(node.target)]) in NOTHING) or _is_off(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    _name_linears(graph, modules)
    _name_norms(graph, modules)
    _widen(graph, modules)
    count = 0
    read = {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}  # used as they are
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or str(node.target) in read or _calls(graph, node) != 1 or len(node.args) != 1 or node.kwargs:
            continue
        if (new := begin(modules[str(node.target)], dtype_of)) is not None:
            _absorb(graph, node, new, modules)
            count += 1
    count += sum(_normalise(graph, node, modules) for node in list(graph.graph.nodes) if str(node.target) not in read)
    _overwrite(graph)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return count


def _name_linears(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """F.linear with weights that are parameters, or fixed slices of them, becomes a module, so that it can be fused like one."""
    for i, node in enumerate(list(graph.graph.nodes)):
        if node.op != "call_function" or node.target is not F.linear or len(node.args) + len(node.kwargs) != 3:
            continue
        x, weight, bias = (*node.args, *(node.kwargs[k] for k in ("weight", "bias") if k in node.kwargs))
        try:
            values = _constant(graph, weight), None if bias is None else _constant(graph, bias)
        except LookupError:
            continue
        layer = nn.Linear(values[0].shape[1], values[0].shape[0], values[1] is not None, device="meta").to(values[0].dtype)
        layer.weight = nn.Parameter(values[0].clone(), requires_grad=False)
        if values[1] is not None:
            layer.bias = nn.Parameter(values[1].clone(), requires_grad=False)
        name = f"linear_at_{i}"
        graph.add_module(name, layer)
        modules[name] = layer
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (x,)))
        graph.graph.erase_node(node)
    for node in reversed(list(graph.graph.nodes)):
        if not node.users and (node.op == "get_attr" or node.target is operator.getitem):
            graph.graph.erase_node(node)


def _name_norms(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """F.instance_norm with statistics of its input becomes a module."""
    words = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    for i, node in enumerate(list(graph.graph.nodes)):
        if node.op != "call_function" or node.target is not F.instance_norm:
            continue
        given = {**dict(zip(words, node.args)), **node.kwargs}
        if given.get("running_mean") is not None or given.get("use_input_stats", True) is not True:
            continue
        try:
            weight, bias = (None if given.get(k) is None else _constant(graph, given[k]) for k in ("weight", "bias"))
        except LookupError:
            continue
        name = f"norm_at_{i}"
        modules[name] = FusedInstanceNorm(given.get("eps", 1e-5), weight, bias)
        graph.add_module(name, modules[name])
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (given["input"],)))
        graph.graph.erase_node(node)


def _widen(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Doubling by nearest neighbour, then a 3x3 convolution of stride 1, become one transposed convolution (`fused.widening_kernel`)."""
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or _calls(graph, node) != 1 or len(node.args) != 1:
            continue
        conv, before = modules[str(node.target)], node.args[0]
        if window_of(conv) != Window((1, 1), (1, 1), (1, 1), 1) or not _doubles(before, modules) or len(before.users) != 1:
            continue
        plain = cast(nn.Conv2d, conv)
        if plain.kernel_size != (3, 3):
            continue
        new = nn.ConvTranspose2d(plain.in_channels, plain.out_channels, 4, 2, 1, bias=plain.bias is not None, device="meta")
        new.weight = nn.Parameter(fused.widening_kernel(plain.weight.detach()), requires_grad=False)
        new.bias = plain.bias
        parent, _, name = str(node.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, new)
        modules[str(node.target)] = new
        node.args = before.args[:1] if before.args else (before.kwargs["input"],)
        graph.graph.erase_node(before)


def _doubles(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node makes a map twice as large by repeating pixels."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        part = modules[str(node.target)]
        return isinstance(part, nn.Upsample) and part.mode == "nearest" and part.size is None and _two(part.scale_factor)
    if node.op != "call_function" or node.target is not F.interpolate:
        return False
    given = {**dict(zip(("input", "size", "scale_factor", "mode"), node.args)), **node.kwargs}
    return given.get("mode", "nearest") == "nearest" and given.get("size") is None and _two(given.get("scale_factor"))


def _two(factor: Any) -> bool:
    return factor in (2, (2, 2), [2, 2])


def _normalise(graph: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """An instance norm takes the activation after it, and overwrites the output of a convolution that only it reads."""
    if node.op != "call_module" or _calls(graph, node) != 1 or (norm := instance_norm_of(modules[str(node.target)])) is None:
        return 0
    before, follower = node.args[0], _only_user(node)
    norm.inplace = (
        isinstance(before, fx.Node)
        and before.op == "call_module"
        and isinstance(modules[str(before.target)], FusedConv)
        and len(before.users) == 1
    )
    if follower is not None and (activation := activation_of(follower, modules)) is not None:
        norm.activation = activation
        follower.replace_all_uses_with(node)
        graph.graph.erase_node(follower)
    parent, _, name = str(node.target).rpartition(".")
    setattr(graph.get_submodule(parent), name, norm)
    modules[str(node.target)] = norm
    return 1


def instance_norm_of(module: nn.Module) -> FusedInstanceNorm | None:
    """The replacement of an instance norm that has no statistics of its own; None for another module."""
    if isinstance(module, FusedInstanceNorm):
        return module
    if type(module) is not nn.InstanceNorm2d or module.running_mean is not None or _watched(module):
        return None
    return FusedInstanceNorm(module.eps, module.weight, module.bias)


def _constant(graph: fx.GraphModule, value: Any) -> Tensor:
    """The tensor that a node always has: a parameter, buffer, or slice of one. LookupError for anything else."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        owner, _, name = str(value.target).rpartition(".")
        return getattr(graph.get_submodule(owner), name).detach()
    if isinstance(value, fx.Node) and value.target is operator.getitem and len(value.all_input_nodes) == 1:
        return _constant(graph, value.args[0])[cast(Any, value.args[1])]
    raise LookupError


def begin(module: nn.Module, dtype_of: Callable[[nn.Module], torch.dtype]) -> FusedConv | FusedLinear | None:
    """The replacement of a single convolution or linear map, with nothing fused yet."""
    window = window_of(module)
    if window is not None:
        return FusedConv(cast("nn.Conv2d | nn.ConvTranspose2d", module), window, dtype_of(module))
    if type(module) is nn.Linear and not _watched(module):
        return FusedLinear(module, dtype_of(module))
    return None


def _is_off(node: fx.Node) -> bool:
    """A functional dropout traced in evaluation mode."""
    if node.op != "call_function" or node.target is not F.dropout:
        return False
    return (node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)) is False


def _calls(graph: fx.GraphModule, node: fx.Node) -> int:
    return sum(n.op == "call_module" and n.target == node.target for n in graph.graph.nodes)


def _absorb(graph: fx.GraphModule, node: fx.Node, new: FusedConv | FusedLinear, modules: dict[str, nn.Module]) -> None:
    last, other = node, None
    follower = _only_user(last)
    if isinstance(new, FusedConv):
        while follower is not None and follower.op == "call_module" and _is_norm(modules[str(follower.target)]):
            new.fold(modules[str(follower.target)])
            last, follower = follower, _only_user(follower)
    takes = not isinstance(new, FusedConv) or new.window.grown is None
    if takes and follower is not None and (addend := _addend(follower, last)) is not None and not _moved_over_write(node, follower):
        last, other, follower = follower, addend, _only_user(follower)
    activation = None if follower is None else activation_of(follower, modules)
    if (
        follower is not None
        and activation is not None
        and (other is None or (activation.name == "relu" and isinstance(new, FusedConv)))
    ):
        new.activation, last = activation, follower
    elif follower is not None and other is None and follower.op == "call_module":
        _before_shuffle(graph, new, follower, modules)
    if isinstance(new, FusedConv):
        new.settle()
    target = str(node.target)
    parent, _, name = target.rpartition(".")
    setattr(graph.get_submodule(parent), name, new)
    modules[target] = new
    with graph.graph.inserting_after(last):
        call = graph.graph.call_module(target, (node.args[0],) if other is None else (node.args[0], other))
    last.replace_all_uses_with(call)
    while last is not node:
        before = next(n for n in last.all_input_nodes if n is not other and _leads_back(n, node))
        graph.graph.erase_node(last)
        last = before
    graph.graph.erase_node(node)


def _before_shuffle(graph: fx.GraphModule, new: FusedConv | FusedLinear, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """An activation after a pixel shuffle acts as well before it, in the convolution."""
    if type(modules[str(node.target)]) is not nn.PixelShuffle or (follower := _only_user(node)) is None:
        return
    if (activation := activation_of(follower, modules)) is not None:
        new.activation = activation
        follower.replace_all_uses_with(node)
        graph.graph.erase_node(follower)


def _leads_back(node: fx.Node, start: fx.Node) -> bool:
    """Whether `node` is `start` or follows from it in a chain of single users (as everything absorbed does)."""
    at: fx.Node | None = start
    while at is not None and at is not node:
        at = _only_user(at)
    return at is node


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _addend(add: fx.Node, mine: fx.Node) -> fx.Node | None:
    """What an addition adds to `mine`; None if it is no addition of two computed tensors (or would have to change the other one)."""
    if add.target not in (operator.add, operator.iadd, torch.add, "add", "add_") or len(add.args) != 2 or add.kwargs:
        return None
    left, right = add.args
    if left is mine and isinstance(right, fx.Node) and right is not mine:
        other = right
    elif right is mine and isinstance(left, fx.Node) and add.target in (operator.add, torch.add, "add"):
        other = left
    else:
        return None
    return None if other.op == "get_attr" else other


def _moved_over_write(start: fx.Node, end: fx.Node) -> bool:
    """Whether computing `start` only at `end` would read an input that something between overwrites."""
    node, source = start.next, start.args[0]
    while node is not end:
        written = node.args[:1] == (source,)
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        if written and (name.endswith("_") or name.startswith("i") or node.kwargs.get("inplace") or _writes(node)):
            return True
        node = node.next
    return False


def _writes(node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    owner = node.graph.owning_module
    return owner is None or bool(getattr(owner.get_submodule(str(node.target)), "inplace", False))


def _overwrite(graph: fx.GraphModule) -> None:
    """Let a convolution write onto its shortcut where that is a fresh tensor whose last reader this is."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    kinds = {node: graph.get_submodule(str(node.target)) if node.op == "call_module" else None for node in order}
    for node, module in kinds.items():
        if not isinstance(module, FusedConv) or len(node.args) < 2:
            continue
        other = cast(fx.Node, node.args[1])
        readers = list(other.users)
        fresh = isinstance(kinds[other], FusedConv) and all(isinstance(kinds[reader], FusedConv) for reader in readers)
        module.inplace = fresh and node.args[0] is not other and max(order[reader] for reader in readers) == order[node]


# --- whole networks ----------------------------------------------------------------------------------------------------


def rewrite(module: nn.Module, callers: Mapping[nn.Module, set[nn.Module]], dtype_of: Callable[[nn.Module], torch.dtype]) -> int:
    """Rewrite the inside of `module` in place; returns the number of fused layers.

    `callers` tells, for every module that was run, from inside which modules it was called; what never ran is left alone.
    """
    count = _chain(module, callers, dtype_of)
    for name, child in list(module.named_children()):
        ran = any(part in callers for part in child.modules())
        if not ran or isinstance(child, FusedConv | FusedLinear | FusedInstanceNorm) or _watched(child):
            continue
        new = begin(child, dtype_of) or instance_norm_of(child)
        if new is not None:
            if isinstance(new, FusedConv):
                new.settle()
            setattr(module, name, new)
            count += 1
        elif _closed(child, callers) and (graph := general_trace(child)) is not None:
            count += fuse_graph(graph, dtype_of)
            setattr(module, name, graph.eval())
        elif not _opaque(child):
            count += rewrite(child, callers, dtype_of)
    return count


def _opaque(module: nn.Module) -> bool:
    """torch's own composite modules read their children's weights: they stay whole."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _closed(module: nn.Module, callers: Mapping[nn.Module, set[nn.Module]]) -> bool:
    """Whether a module is used through its forward(tensors) alone, and its inside by nobody else."""
    if _opaque(module) or isinstance(module, nn.ModuleList | nn.ModuleDict) or not any(module.children()):
        return False
    if not set(_public(module)) <= {"forward"}:
        return False
    inside = set(module.modules())
    return all(callers.get(part, set()) <= inside for part in inside if part is not module) and not any(
        _watched(part) for part in inside
    )


def _public(module: nn.Module) -> Iterator[str]:
    for kind in type(module).__mro__:
        if kind in (nn.Module, nn.Sequential):
            return
        yield from (
            name for name, value in vars(kind).items() if callable(value) and not name.startswith("_") and name != "extra_repr"
        )


def _chain(module: nn.Module, callers: Mapping[nn.Module, set[nn.Module]], dtype_of: Callable[[nn.Module], torch.dtype]) -> int:
    """Fuse conv -> norm -> activation among the direct children of a module that keeps its own code."""
    if not any(window_of(child) is not None for child in module.children()) or (graph := trace(module, shallow=True)) is None:
        return 0
    modules = dict(graph.named_modules(remove_duplicate=False))
    count = 0
    for node in graph.graph.nodes:
        if not _own(graph, node, module, callers) or window_of(conv := modules[str(node.target)]) is None:
            continue
        new = cast(FusedConv, begin(conv, dtype_of))
        follower, absorbed = _only_user(node), list[str]()
        while follower is not None and _own(graph, follower, module, callers) and _is_norm(part := modules[str(follower.target)]):
            new.fold(part)
            absorbed.append(str(follower.target))
            follower = _only_user(follower)
        if follower is not None and _own(graph, follower, module, callers):
            new.activation = activation_of(follower, modules)
            absorbed += [str(follower.target)] if new.activation else []
        new.settle()
        setattr(module, str(node.target), new)
        for name in absorbed:
            setattr(module, name, nn.Identity())
        count += 1
    return count


def _own(graph: fx.GraphModule, node: fx.Node, module: nn.Module, callers: Mapping[nn.Module, set[nn.Module]]) -> bool:
    """A direct child of `module` that its forward calls at one place, with one tensor, and no other module calls."""
    if node.op != "call_module" or "." in str(node.target) or len(node.args) != 1 or node.kwargs or _calls(graph, node) != 1:
        return False
    child = module.get_submodule(str(node.target))
    return len(callers.get(child, ())) == 1 and not _watched(child)
