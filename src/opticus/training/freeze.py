"""Fine-tuning by depth: which parts of a network are frozen, when they thaw, and how learning rates fall towards the input."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from opticus.structures import UsageError
from opticus.training.recipe import Recipe


@dataclass(frozen=True)
class Unit:
    """A step of depth: a block, or a layer that stands alone, with the norms and tokens that belong to it."""

    name: str
    modules: tuple[nn.Module, ...]
    parameters: tuple[tuple[str, nn.Parameter], ...]


def units(network: nn.Module) -> list[Unit]:
    """The network's units in the order in which they were registered, which is from input to output for every classifier here.

    Lists and sequences are entered, and modules that hold a list of blocks; parameters of the network itself (tokens, positions)
    belong to the first unit, a norm that stands alone to the convolution before it, else to what follows.
    """
    own = tuple((name, p) for name, p in network.named_parameters(recurse=False))
    found: list[Unit] = []
    norms: list[tuple[str, nn.Module]] = []
    for name, module in _steps(network, ""):
        if next(module.parameters(), None) is None:
            continue
        if _is_norm(module):
            before = found[-1] if found else None
            if before is not None and not norms and isinstance(before.modules[-1], nn.Conv2d):
                found[-1] = _unit(before.name, (*before.modules, module), before.parameters + _named(name, module))
            else:
                norms.append((name, module))
            continue
        waiting = tuple(row for key, norm in norms for row in _named(key, norm))
        modules = (*(norm for _, norm in norms), module)
        found.append(_unit(name, modules, (own if not found else ()) + waiting + _named(name, module)))
        norms = []
    if norms and found:
        last = found[-1]
        rows = tuple(row for key, norm in norms for row in _named(key, norm))
        found[-1] = _unit(last.name, (*last.modules, *(norm for _, norm in norms)), last.parameters + rows)
    if not found and own:
        found.append(_unit("parameters", (network,), own))
    return found


def _unit(name: str, modules: tuple[nn.Module, ...], parameters: tuple[tuple[str, nn.Parameter], ...]) -> Unit:
    return Unit(name, modules, parameters)


def _named(prefix: str, module: nn.Module) -> tuple[tuple[str, nn.Parameter], ...]:
    return tuple((f"{prefix}.{name}", p) for name, p in module.named_parameters())


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not list(module.children())


def _steps(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, (nn.Sequential, nn.ModuleList)) or any(_holds_blocks(inner) for inner in child.children()):
            yield from _steps(child, f"{path}.")
        else:
            yield path, child


def _holds_blocks(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and sum(next(c.children(), None) is not None for c in module) > 1


class Freezer:
    """Keeps the parts named by `recipe.freeze` as they are, until `recipe.unfreeze` lets them go, those nearest the output first.

    A frozen normalisation layer also keeps its running statistics: it works as in evaluation. Raises UsageError if a pattern
    matches nothing or nothing is left to train.
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.shares = tuple(sorted(recipe.unfreeze))
        self.frozen = _chosen(network, recipe.freeze)
        if self.shares and not self.frozen:
            raise UsageError("unfreeze= needs freeze=, which says what is frozen until then")
        self.held = -1
        held = {id(p) for unit in self.frozen for _, p in unit.parameters}
        if self.frozen and all(id(p) in held for p in network.parameters()):
            raise UsageError(f"freeze={recipe.freeze!r} leaves nothing of the network to train")

    def apply(self, fraction: float, again: bool = False) -> None:
        """Freeze what is frozen at `fraction` of the run; `again` even if nothing has changed since the last call."""
        if not self.frozen:
            return
        passed = sum(fraction >= share for share in self.shares)
        count = len(self.frozen) if not passed else len(self.frozen) - -(-len(self.frozen) * passed // len(self.shares))
        if count == self.held and not again:
            return
        self.held = count
        for number, unit in enumerate(self.frozen):
            hold = number < count
            for _, parameter in unit.parameters:
                parameter.requires_grad_(not hold)
            for module in unit.modules:
                for layer in module.modules():
                    if _is_norm(layer) and hasattr(layer, "running_mean"):
                        layer.train(not hold)


def _chosen(network: nn.Module, freeze: int | str | Sequence[str] | None) -> list[Unit]:
    if freeze is None:
        return []
    everything = units(network)
    if isinstance(freeze, int):
        if not -len(everything) < freeze < len(everything):
            names = ", ".join(unit.name for unit in everything)
            raise UsageError(f"freeze={freeze} does not fit {len(everything)} units ({names}); at least one must be trained")
        return everything[:freeze]
    patterns = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    chosen: list[Unit] = []
    for unit in everything:
        rows = tuple((name, p) for name, p in unit.parameters if any(re.search(pattern, name) for pattern in patterns))
        if rows:
            modules = unit.modules if len(rows) == len(unit.parameters) else tuple(_owners(network, [name for name, _ in rows]))
            chosen.append(Unit(unit.name, modules, rows))
    for pattern in patterns:
        if not any(re.search(pattern, name) for unit in everything for name, _ in unit.parameters):
            names = ", ".join(unit.name for unit in everything)
            raise UsageError(f"freeze={pattern!r} matches no parameter; the network's units are {names}")
    return chosen


def _owners(network: nn.Module, names: Sequence[str]) -> Iterator[nn.Module]:
    yield from (network.get_submodule(owner) for owner in dict.fromkeys(name.rpartition(".")[0] for name in names) if owner)


def layer_factors(network: nn.Module, decay: float) -> dict[int, float]:
    """Learning-rate factor of every parameter by id: `decay` to the power of its unit's distance from the last one (the head).

    Layer-wise decay as in BEiT and MAE fine-tuning (Clark et al. 2020, ELECTRA, appendix A).
    """
    everything = units(network)
    return {id(p): decay ** (len(everything) - 1 - depth) for depth, unit in enumerate(everything) for _, p in unit.parameters}
