"""One recorded case run on the port: the same filled weights and pictures through rename table, strict load and forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from opticus.parity.compare import difference, named_tensors
from opticus.parity.fill import fill_state, picture, pixels_of
from opticus.parity.manifests import unfold
from opticus.structures import Batch, Images, Picture, Prepare, Progress
from opticus.transforms.prepare import prepare as prepare_pictures
from opticus.weights.load import load_into
from opticus.weights.names import Names

TOLERANCE = 1e-9


class Zoo(Protocol):
    """What is needed of the model zoo, which sits above this room and is passed in."""

    def paper(self, name: str) -> ModuleType: ...
    def build(self, name: str, config: Any) -> nn.Module: ...
    def config_from_json(self, name: str, values: Mapping[str, Any]) -> Any: ...


def network_input(
    pictures: Sequence[Sequence[int]], rule: Prepare, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor | None]:
    """Pixels (B, C, H, W) and valid (B, H, W) or None of formula pictures ((height, width, seed), ...), normalised in float64.

    No resampling: (value * scale - mean) / std, zeros at the right and bottom up to the largest picture.
    """
    height, width = max(p[0] for p in pictures), max(p[1] for p in pictures)
    pixels = torch.zeros(len(pictures), rule.channels, height, width, dtype=torch.float64)
    valid = torch.zeros(len(pictures), height, width, dtype=torch.bool)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (rule.mean, rule.std))
    for i, (h, w, seed) in enumerate(pictures):
        raw = torch.from_numpy(picture(h, w, seed, rule.channels)).permute(2, 0, 1).to(torch.float64)
        raw = raw.flip(0) if rule.order == "bgr" else raw
        pixels[i, :, :h, :w] = (raw * rule.scale - mean) / std
        valid[i, :h, :w] = True
    return pixels.to(dtype), None if bool(valid.all()) else valid


def state_of(case: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The published-format state of a case: formula-filled, with its constants in place."""
    shapes = unfold(case["state"]) if "" in case["state"] else case["state"]
    state = fill_state(shapes, dtype)
    for key, values in case.get("constants", {}).items():
        state[key] = torch.tensor(values)
    return state


def run(case: Mapping[str, Any], network: nn.Module, names: Names, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every tensor that the port gives for a case, by name: "out...", "features...", "results...", as `expected` asks for."""
    wanted = {name.split(".")[0] for name in case["expected"]}
    network = network.to(dtype).eval()
    load_into(network, state_of(case, dtype), names, file=f"parity case {case['name']}")
    if "call" in case:
        return _called(case, network, dtype)
    rule = _rule(case, cast(Prepare, network.prepare))
    pixels, valid = network_input(case["pictures"], rule, dtype)
    sizes = tuple((int(h), int(w)) for h, w, _ in case["pictures"])
    images = Images(pixels, valid, torch.eye(3, dtype=torch.float64).expand(len(sizes), 3, 3), sizes)
    found: dict[str, Tensor] = {}
    further = {name: tuple(torch.tensor(v, dtype=dtype) for v in values) for name, values in case.get("inputs", {}).items()}
    with torch.no_grad():
        if wanted & {"out", "results"}:
            out = network(pixels, **further) if valid is None else network(pixels, valid, **further)
            found |= named_tensors(out, "out")
            if "results" in wanted:
                found |= named_tensors(cast(Any, network).results(out, images), "results")
        if "features" in wanted:
            found |= named_tensors(cast(Any, network).features(pixels), "features")
    return found


def _called(case: Mapping[str, Any], module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `case["call"]` gives: the function `path` of the module ("" is the module itself) on formula-made tensors.

    A tensor is {"shape": [...], "seed": n} (unit variance) or {"values": nested list}; whole numbers stay integers.
    """
    asked = case["call"]
    function: Any = attrgetter(asked["path"])(module) if asked.get("path") else module
    given: dict[str, Tensor] = {}
    for name, made in asked["tensors"].items():
        if "shape" in made:
            given[name] = pixels_of(made["shape"], made.get("seed", 0), dtype)
        else:
            values = torch.tensor(made["values"])
            given[name] = values.to(dtype) if values.is_floating_point() else values
    with torch.no_grad():
        return named_tensors(
            function(*(v for k, v in given.items() if k.isdigit()), **{k: v for k, v in given.items() if not k.isdigit()}), "out"
        )


def run_objective(case: Mapping[str, Any], network: nn.Module, module: ModuleType, dtype: torch.dtype) -> dict[str, Tensor]:
    """The terms of a method's loss ("objective.<term>") on views, and the norm of all gradients ("objective.gradient").

    `case["objective"]`: `options` of the paper's objective, `views` [[role, pictures], ...], `at` [step, epoch, steps, epochs, phase]. The
    state of a case is that of the whole training, under the names of `TRAINING`; the networks are in training mode.
    """
    asked = case["objective"]
    objective = module.objective(network, **asked.get("options", {})).to(dtype).train()
    load_into(objective, state_of(case, dtype), module.TRAINING, file=f"parity case {case['name']}")
    if "call" in case:
        return _called(case, objective.eval(), dtype)
    rule = _rule(case, cast(Prepare, network.prepare))
    views: list[Images] = []
    for _, pictures in asked["views"]:
        sizes = tuple((int(h), int(w)) for h, w, _ in pictures)
        pixels = network_input(pictures, rule, dtype)[0]
        views.append(Images(pixels, None, torch.eye(3, dtype=torch.float64).expand(len(sizes), 3, 3), sizes))
    ids = tuple(str(i) for i in range(len(views[0].sizes)))
    batch = Batch(None, (None,) * len(ids), ids, tuple(views), tuple(role for role, _ in asked["views"]))
    at = Progress(*asked["at"])
    terms: dict[str, Tensor] = objective(batch, at)
    torch.stack(list(terms.values())).sum().backward()
    squares = [p.grad.square().sum() for p in objective.parameters_of(at.phase) if p.grad is not None]
    found = {f"objective.{name}": term.detach().reshape(1) for name, term in terms.items()}
    return found | {"objective.gradient": torch.stack(squares).sum().sqrt().reshape(1)}


def build_and_run(case: Mapping[str, Any], paper: str, zoo: Zoo, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Build the port of a case by the zoo and run it; preparation cases ("prepared") need no network."""
    module = zoo.paper(paper)
    if "prepared" in case["expected"]:
        pictures = [Picture(torch.from_numpy(picture(h, w, seed))) for h, w, seed in case["pictures"]]
        return {"prepared": prepare_pictures(pictures, _rule(case, module.PREPARE)).pixels.to(torch.float64)}
    name = f"{paper}/{case['variant']}"
    network = zoo.build(name, zoo.config_from_json(name, case.get("config", {})))
    if "objective" in case:
        return run_objective(case, network, module, dtype)
    return run(case, network, module.FORMATS[case["format"]], dtype)


def differences(case: Mapping[str, Any], found: Mapping[str, Tensor]) -> list[str]:
    """One sentence for every expected tensor that is absent or further away than its tolerance; empty if the port agrees."""
    sentences: list[str] = []
    for name, summary in case["expected"].items():
        limit = case.get("tolerance", {}).get(name, TOLERANCE)
        if name not in found:
            sentences.append(f"{case['name']}: the port has no {name!r}; it has {', '.join(sorted(found))}")
            continue
        error = difference(summary, found[name])
        if not error <= limit:
            sentences.append(
                f"{case['name']}: {name} {tuple(found[name].shape)} differs by {error:.1e} of the reference's rms "
                f"(shape {tuple(summary['shape'])}, at most {limit:.0e} is allowed)"
            )
    return sentences


def _rule(case: Mapping[str, Any], rule: Prepare) -> Prepare:
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in case.get("prepare", {}).items()}
    return replace(rule, **changes)
