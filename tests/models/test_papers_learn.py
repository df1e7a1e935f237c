"""Every paper file: it learns, its results go back to the original picture, and it survives saving (DESIGN 7 d-f)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from papers import (
    PAPERS,
    at,
    batch_for,
    classes_of,
    filled,
    images_of,
    inputs_of,
    new,
    objective_of,
    rule_of,
    scenes,
    side_of,
    smallest,
    terms_of,
)
from torch import Tensor, nn

from opticus import zoo
from opticus.losses.pictures import targets_of
from opticus.matching.described import Table
from opticus.matching.masking import RandomMask
from opticus.ops.boxes import map_boxes
from opticus.ops.iou import iou
from opticus.parity.compare import named_tensors
from opticus.structures import (
    Autoencoder,
    Backbone,
    Batch,
    Classes,
    Embedder,
    Images,
    Instances,
    Objective,
    Predictor,
    Prepare,
    Sampler,
    UsageError,
)
from opticus.training.solved import solve_batch
from opticus.transforms.prepare import prepare
from opticus.verbs.models import create, load, save

STEPS = 60
# a paper overrides these with OVERFIT = {"observable": ..., "samples": ..., "lr": ..., "changes": {a setting: ...}}
DEFAULTS: dict[str, dict[str, Any]] = {
    "classify": {"observable": "results", "samples": 8, "lr": 2e-3},
    "detect": {"observable": "results", "samples": 1, "lr": 2e-3},
    "generate": {"observable": "likelihood", "samples": 8, "lr": 2e-3},
    "translate": {"observable": "restored", "samples": 2, "lr": 2e-3},
    "reconstruct": {"observable": "restored", "samples": 8, "lr": 2e-3},
}


def forward(network: nn.Module, images: Images) -> Any:
    given = inputs_of(network, images)
    return network(*given) if images.valid is None or len(given) > 1 else network(*given, images.valid)


def results_of(network: nn.Module, images: Images) -> list[Any]:
    with torch.no_grad():
        return cast(Predictor, network).results(forward(network, images), images)


# --- (d) it learns ---------------------------------------------------------------------------------------------------------


def results_are_right(network: nn.Module, batch: Batch) -> list[str]:
    """Sentences about what is wrong: a label that is not ranked first, a box that no result of its class covers by 0.8."""
    wrong: list[str] = []
    for name, target, result in zip(batch.ids, batch.targets, results_of(network, images_of(batch))):
        if isinstance(target, Classes):
            if int(result.labels[0]) != int(target.labels[0]):
                wrong.append(f"{name}: {int(result.labels[0])} instead of {int(target.labels[0])}")
        elif isinstance(target, Instances):
            best = result[: len(target)]
            if len(best) == 0:
                wrong.append(f"{name}: nothing is found")
                continue
            overlap = iou(best.boxes, target.boxes) * (best.labels[:, None] == target.labels)
            wrong += [f"{name}: object {j} is found with IoU {v:.2f}" for j, v in enumerate(overlap.max(0).values) if v <= 0.8]
        else:
            wrong.append(f"{name}: no rule for {type(target).__name__}")
    return wrong


def objects_are_found(network: nn.Module, batch: Batch) -> list[str]:
    """Of SVMs, which know an object's own box and what overlaps no object of its class by 0.3, and nothing between.

    Every object has a result of its class with an IoU of 0.5, which ranks above all results of its class that overlap none by 0.3.
    """
    wrong: list[str] = []
    for name, target, result in zip(batch.ids, batch.targets, results_of(network, images_of(batch))):
        assert isinstance(target, Instances) and result.scores is not None
        overlap = iou(result.boxes, target.boxes) * (result.labels[:, None] == target.labels)
        apart = overlap.amax(1) < 0.3
        for j, label in enumerate(target.labels):
            found = result.scores[overlap[:, j] >= 0.5]
            alarms = result.scores[apart & (result.labels == label)]
            if not len(found) or (len(alarms) and bool(alarms.max() >= found.max())):
                wrong.append(f"{name}: object {j}: {found[:1].tolist()}, elsewhere {alarms[:1].tolist()}")
    return wrong


def gaussian_nats(levels: Tensor, count: int) -> float:
    """Nats per value of the best independent Gaussians for levels (B, D) in 0..count-1, each level the integral over its bin.

    The first and last bin reach to infinity; a deviation below that of a uniform bin, sqrt(1/12), is raised to it.
    """
    values = levels.double()
    normal = torch.distributions.Normal(values.mean(0), values.var(0, unbiased=False).clamp(min=1 / 12).sqrt())
    above = torch.where(values == count - 1, torch.ones_like(values), normal.cdf(values + 0.5))
    below = torch.where(values == 0, torch.zeros_like(values), normal.cdf(values - 0.5))
    return float(-(above - below).clamp(min=1e-300).log().mean())


class LikelihoodIsHigher:
    """A density model: at least 0.3 nats a value lower than when first looked at, and below Gaussians fitted to the very batch.

    The network has `levels(pixels)` (B, D) int64, the numbers 0..K-1 that it models, and `log_likelihood(pixels)` (B,) in nats;
    its Config says K under the name that `LEVELS` gives.
    """

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        model, pixels = cast(Any, network), images_of(batch).pixels
        with torch.no_grad():
            levels, total = model.levels(pixels), model.log_likelihood(pixels)
        assert levels.shape[0] == total.shape[0] == len(batch) and levels.dtype == torch.int64
        nats = float(-total.mean()) / levels[0].numel()
        rival = gaussian_nats(levels, int(getattr(model.config, zoo.paper(zoo_name(network)).LEVELS)))
        if self.before is None:
            self.before = nats
        wrong = [] if nats <= self.before - 0.3 else [f"{nats:.2f} nats a value, {self.before:.2f} before training"]
        return wrong + ([] if nats < rival else [f"{nats:.2f} nats a value, Gaussians need {rival:.2f}"])


class ViewsAgree:
    """A method that compares views: what is left of the loss above its floor is halved, and no alarm is given.

    The paper's OVERFIT says `floor`, or `figure`: one of the objective's figures whose floor is 0 (a divergence, where the loss
    itself moves with the teacher). Looked at in training mode, on the objective that `overfit` has just trained.
    """

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        settings = zoo.paper(zoo_of(network)).OVERFIT
        objective = cast(Any, OBJECTIVES.pop(id(network), None) or objective_of(zoo_of(network), network))
        with torch.no_grad():
            loss = float(sum(objective.train().forward(batch, at(STEPS - 1, STEPS)).values()))
        left = objective.figures()[settings["figure"]] if "figure" in settings else loss - settings["floor"]
        if self.before is None:
            self.before = left
        alarm = objective.alarm(objective.figures())
        wrong = [] if left <= self.before / 2 else [f"{left:.3f} above the floor, {self.before:.3f} before training"]
        return wrong + ([] if alarm is None or left == self.before else [alarm])


OBJECTIVES: dict[int, Objective] = {}  # the trained objective of a network, for observables that look at more than the network


def zoo_of(network: nn.Module) -> str:
    """The stem of the paper that a model was made by, where its class is shared with others."""
    return cast(str, cast(Any, network).paper)


class HiddenPatchesAreRestored:
    """A masked autoencoder: the mean squared error on patches hidden by a fixed mask is 6 dB lower than when first looked at.

    The network has `errors(prediction, pixels)` (B, N) and `forward(pixels, mask=hidden)` with a field `prediction`.
    """

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        model, pixels = cast(Any, network), images_of(batch).pixels
        hidden = RandomMask()(batch, *model.grid_of(pixels), torch.Generator().manual_seed(7))
        with torch.no_grad():
            error = float(model.errors(model(pixels, mask=hidden).prediction, pixels)[hidden].mean())
        if self.before is None:
            self.before = error
        return [] if error <= self.before / 4 else [f"error {error:.3f}, {self.before:.3f} before training"]


class PicturesAreRestored:
    """Autoencoders and translators: the squared error of what comes out is 6 dB lower than when first looked at."""

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        model, pixels = cast(Any, network), images_of(batch).pixels
        with torch.no_grad():
            if isinstance(network, Autoencoder):
                found, wanted = model.decode(model.encode(pixels)), pixels
            else:
                found, wanted = first_tensor(forward(network, images_of(batch))), targets_of(batch, produced(network))
        error = float((found - wanted).square().mean())
        if self.before is None:
            self.before = error
        return [] if error <= self.before / 4 else [f"error {error:.4f}, {self.before:.4f} before training"]


def produced(network: nn.Module) -> Prepare:
    """The normalisation of what a translator answers: its `produces`, else that of its input."""
    return cast(Prepare, getattr(network, "produces", rule_of(network)))


def first_tensor(out: Any) -> Tensor:
    """A network's answer: the output, or the first field of several."""
    return out if isinstance(out, Tensor) else out[0]


class LossIsHalved:
    """What learns to take noise away: at fixed chance, the loss above the paper's `floor` is half of what it was."""

    def __init__(self) -> None:
        self.before: float | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        paper = zoo_of(network)
        torch.manual_seed(7)
        with torch.no_grad():
            left = float(terms_of(objective_of(paper, network), batch)) - zoo.paper(paper).OVERFIT.get("floor", 0.0)
        if self.before is None:
            self.before = left
        return [] if left <= self.before / 2 else [f"{left:.3f} above the floor, {self.before:.3f} before training"]


class EachBeatsTheOther:
    """Two players: the discriminator, trained alone, ranks every real picture above every fake one; then the generator, trained
    alone, takes back at least half of that distance.

    The objective has `realness(batch)`: the discriminator's scores (B,) of real and of fake pictures. Its phases are called "d..."
    and "g...". `overfit` is called for one side after the other.
    """

    SIDES = ("d", "g")

    def __init__(self) -> None:
        self.found: list[tuple[Tensor, Tensor]] = []

    def __call__(self, network: nn.Module, batch: Batch) -> list[str]:
        objective = cast(Any, OBJECTIVES.get(id(network)) or objective_of(zoo_of(network), network))
        torch.manual_seed(7)
        with torch.no_grad():
            self.found.append(tuple(scores.flatten() for scores in objective.eval().realness(batch)))
        if len(self.found) < 3:
            return ["nobody has been trained alone yet"]
        (real, fake), (after_real, after_fake) = self.found[1:]
        wrong = [] if real.min() > fake.max() else [f"the discriminator takes fakes for real: {real.tolist()}, {fake.tolist()}"]
        gap = float(real.mean() - fake.mean())
        if float(after_real.mean() - after_fake.mean()) > gap / 2:
            wrong.append(f"the generator closes too little of {gap:.3f}: {after_real.tolist()}, {after_fake.tolist()}")
        return wrong


def zoo_name(network: nn.Module) -> str:
    """The stem of the paper that a network comes from."""
    return type(network).__module__.rpartition(".")[2]


# an observable is made anew for every paper, and called before and after training
OBSERVABLES: dict[str, Callable[[], Callable[[nn.Module, Batch], list[str]]]] = {
    "results": lambda: results_are_right,
    "found": lambda: objects_are_found,
    "likelihood": LikelihoodIsHigher,
    "views": ViewsAgree,
    "reconstruction": HiddenPatchesAreRestored,
    "restored": PicturesAreRestored,
    "loss": LossIsHalved,
    "realness": EachBeatsTheOther,
}


def overfit(objective: Objective, batch: Batch, lr: float, side: str = "") -> dict[str, float]:
    """Train for STEPS steps on one batch; the largest gradient that every parameter has seen in the first three.

    `side` trains only the phases whose names begin so.

    An objective without any parameter learns by looking: it sees the batch once and has no terms.
    """
    module = cast(nn.Module, objective).train()
    if not any(True for _ in module.parameters()):
        assert objective.forward(batch, at(0, 1)) == {}, "a loss that nothing can lower"
        return {}
    seen = dict.fromkeys((name for name, p in module.named_parameters() if p.requires_grad), 0.0)
    optimisers = {
        phase: torch.optim.AdamW(list(objective.parameters_of(phase)), lr, betas=(0.9, 0.95), weight_decay=0.0)
        for phase in dict.fromkeys(phase for step in range(STEPS) for phase in objective.phases(step))
    }
    count = 0
    for step in range(STEPS if not side else 10 * STEPS):
        for phase in [p for p in objective.phases(step) if p.startswith(side)]:
            if (count := count + 1) > STEPS * len(optimisers):
                return seen
            now = at(step, STEPS)._replace(phase=phase)
            optimiser = optimisers[phase]
            for group in optimiser.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 5) * max(1 - step / STEPS, 0.01) ** 0.5
            optimiser.zero_grad()
            loss = sum(objective.forward(batch, now).values())
            assert isinstance(loss, Tensor) and bool(torch.isfinite(loss)), f"step {step}: the loss is {loss}"
            loss.backward()
            if step < 3:
                for name, parameter in module.named_parameters():
                    if parameter.grad is not None:
                        seen[name] = max(seen[name], float(parameter.grad.abs().max()))
            objective.before_update(now)
            torch.nn.utils.clip_grad_norm_(objective.parameters_of(phase), 1.0)
            optimiser.step()
            objective.after_step(now)
    return seen


@pytest.mark.parametrize("paper", PAPERS)
def test_it_overfits_and_every_tensor_gets_a_gradient(paper: str, tmp_path: Path) -> None:
    module = zoo.paper(paper)
    settings: Mapping[str, Any] = {**DEFAULTS.get(module.TASK, {}), **getattr(module, "OVERFIT", {})}
    network = new(smallest(paper), **settings.get("changes", {}))
    batch = batch_for(network, module.TASK, settings["samples"])
    assert len(batch) <= 8
    observe = OBSERVABLES[settings["observable"]]()
    cast(Any, network).paper = paper
    assert observe(network.eval(), batch), "the untrained network already gives the right results"
    objective = OBJECTIVES[id(network)] = objective_of(paper, network)
    seen: dict[str, float] = {}
    for side in getattr(observe, "SIDES", ("",)):
        for name, value in overfit(objective, batch, settings["lr"], side).items():
            seen[name] = max(seen.get(name, 0.0), value)
        if side == "d":
            observe(network.eval(), batch)
    untrained = tuple(getattr(module, "UNTRAINED", ()))
    dead = [n for n, v in seen.items() if v == 0 and not any(re.fullmatch(p, n.removeprefix("network.")) for p in untrained)]
    assert dead == [], "no gradient reaches these tensors"
    if hasattr(network, "steps"):  # the last layers of R-CNN and its like are solved after training, from the same pictures
        solve_batch(network.eval(), batch, Table(tmp_path, {}))
    assert observe(network.eval(), batch) == []


@pytest.mark.parametrize("paper", PAPERS)
def test_objective_keeps_training_state_out_of_the_network(paper: str) -> None:
    network = new(smallest(paper))
    before = set(network.state_dict())
    objective = objective_of(paper, network)
    assert isinstance(objective, Objective) and objective.network is network
    assert set(network.state_dict()) == before
    phases = {phase for step in range(12) for phase in objective.phases(step)}
    trained = {id(p) for phase in phases for p in objective.parameters_of(phase)}
    assert {id(p) for p in network.parameters() if p.requires_grad} <= trained


@pytest.mark.parametrize("paper", PAPERS)
def test_sample_weights_scale_the_loss(paper: str) -> None:
    """Weight 0 takes a sample out of the loss, and weights multiply its terms; what compares pictures refuses weights."""
    network = new(smallest(paper)).eval()
    batch = batch_for(network, zoo.paper(paper).TASK, 2)
    objective = objective_of(paper, network)
    settings = getattr(zoo.paper(paper), "OVERFIT", {})
    if settings.get("observable") == "views" or settings.get("weights") == "refused":
        batch.weights = torch.ones(2)
        with pytest.raises(UsageError, match="sample weights have no meaning"):
            terms_of(objective, batch)
        return
    if not any(True for _ in network.parameters()):
        assert objective.forward(batch, at(0, 1)) == {}, "without parameters there is no loss"
        return

    def total(*weights: float) -> float:
        batch.weights = torch.tensor(weights, dtype=torch.float32) if weights else None
        torch.manual_seed(0)  # an objective may look at a random part of its anchors
        with torch.no_grad():
            return float(terms_of(objective, batch))

    first, second = total(1, 0), total(0, 1)
    assert total(1, 1) == pytest.approx(first + second, rel=1e-4)
    assert total(3, 0.5) == pytest.approx(3 * first + 0.5 * second, rel=1e-4)
    assert total() == pytest.approx(first + second, rel=1e-4)


# --- forward, determinism, backbones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", PAPERS)
def test_one_return_type_and_one_seed(paper: str) -> None:
    """Train and eval return the same type, and the same seed the same network."""
    name = smallest(paper)
    network, twin = new(name), new(name)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[key]), key
    images = images_of(batch_for(network, zoo.paper(paper).TASK, 2))
    assert type(forward(network.train(), images)) is type(forward(network.eval(), images))
    with torch.no_grad():
        a, b = (named_tensors(forward(twin.eval(), images), "out") for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("paper", PAPERS)
def test_samples_do_not_influence_each_other_in_eval(paper: str) -> None:
    network = new(smallest(paper)).double().eval()
    images = images_of(batch_for(network, zoo.paper(paper).TASK, 3))
    given = inputs_of(network, images._replace(pixels=images.pixels.double()))
    with torch.no_grad():
        whole, single = (named_tensors(network(*rows), "out") for rows in (given, [row[1:2] for row in given]))
    owners = whole.get("out.pictures")  # of outputs that are lists of regions of all pictures
    for key, tensor in single.items():
        if key == "out.pictures":
            continue
        many = whole[key]
        if owners is not None and len(many) == len(owners):
            own = many[owners == 1]
        elif owners is not None and many.ndim > 2 and many.shape[1:2] == owners.shape:  # stage by stage
            own = many[:, owners == 1]
        else:
            own = many[1:2]
        torch.testing.assert_close(own, tensor, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("paper", PAPERS)
def test_backbone_says_the_truth_about_its_maps(paper: str) -> None:
    network = new(smallest(paper))
    if not isinstance(network, Backbone):
        assert not hasattr(network, "features")
        return
    height, width = 8 * network.strides[-1], 8 * network.strides[-1] + network.strides[-1] // 2 + 1
    if getattr(zoo.paper(paper), "FIXED_SIZE", False):  # weights that belong to positions: any other size is refused by name
        with pytest.raises(UsageError, match=f"found {height}x{width}"):
            network.features(torch.randn(2, rule_of(network).channels, height, width))
        height = width = side_of(network)
    with torch.no_grad():
        maps = network.eval().features(torch.randn(2, rule_of(network).channels, height, width))
    assert len(maps) == len(network.strides) == len(network.widths)
    assert list(network.strides) == sorted(network.strides)
    for found, stride, channels in zip(maps, network.strides, network.widths):
        assert tuple(found.shape) == (2, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("paper", PAPERS)
def test_classifiers_embed(paper: str) -> None:
    """Every classifier has `embed`: one vector per picture, the same that the network without a head gives."""
    module = zoo.paper(paper)
    if module.TASK != "classify":
        return
    network = new(smallest(paper)).eval()
    assert isinstance(network, Embedder)
    images = images_of(batch_for(network, "classify", 2))
    with torch.no_grad():
        vectors = network.embed(images.pixels)
        assert vectors.ndim == 2 and vectors.shape[0] == 2 and bool(vectors.std() > 0)
        headless = new(smallest(paper), classes=0).eval()
        headless.load_state_dict({k: v for k, v in network.state_dict().items() if k in headless.state_dict()})
        torch.testing.assert_close(headless(images.pixels), vectors)


# --- (e) results in original pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", PAPERS)
def test_results_invert_to_input(paper: str) -> None:
    """The same raw output under another `to_input` gives the mapped boxes, to 1e-3 px, and otherwise the same result."""
    network = filled(smallest(paper)).eval()
    if zoo.paper(paper).TASK == "generate" and not isinstance(network, Predictor):
        assert isinstance(network, Sampler), "a system of generation draws pictures, where others give results"
        return
    if zoo.paper(paper).TASK == "reconstruct" and not isinstance(network, Predictor):
        assert isinstance(network, Autoencoder), "a system of reconstruction encodes and decodes, where others give results"
        return
    images = images_of(batch_for(network, zoo.paper(paper).TASK, 2))
    with torch.no_grad():
        out = forward(network, images)
    # both frames lie inside a large picture, so that clipping to it changes nothing
    sizes = ((4000, 4000),) * 2
    moved = torch.tensor([[1.0, 0, -900], [0, 1, -900], [0, 0, 1]], dtype=torch.float64)
    scaled = torch.tensor([[0.5, 0, -300], [0, 0.25, -200], [0, 0, 1]], dtype=torch.float64)
    one = cast(Predictor, network).results(out, images._replace(to_input=moved.expand(2, 3, 3), sizes=sizes))
    two = cast(Predictor, network).results(out, images._replace(to_input=scaled.expand(2, 3, 3), sizes=sizes))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two):
        assert type(a) is type(b)
        for (key, x), (_, y) in zip(named_tensors(a, "").items(), named_tensors(b, "").items(), strict=True):
            if key.endswith("boxes"):
                expected = map_boxes(x.double(), scaled.inverse() @ moved)
                torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-3)
            else:
                torch.testing.assert_close(y, x)
        if isinstance(a, Instances):
            assert len(a) > 0 and a.scores is not None
            assert bool((a.scores[:-1] >= a.scores[1:]).all()), "results are ranked"


@pytest.mark.parametrize("paper", PAPERS)
def test_padding_yields_nothing(paper: str) -> None:
    """Pictures of unlike sizes in one padded batch: every result lies inside its own picture."""
    network = filled(smallest(paper)).eval()
    task, rule = zoo.paper(paper).TASK, rule_of(network)
    if task != "detect":
        return
    side = side_of(network)
    pictures, _ = scenes(2, side, task, classes_of(network), rule.channels)
    pictures[1].pixels = pictures[1].pixels[: side // 2].contiguous()
    images = prepare(pictures, rule)
    assert images.valid is not None
    results = results_of(network, images)
    assert any(len(result) > 0 for result in results)
    for size, result in zip(images.sizes, results):
        assert result.size == size
        assert bool((result.boxes[:, 0::2] <= size[1] + 1e-3).all() and (result.boxes[:, 1::2] <= size[0] + 1e-3).all())
        assert bool((result.boxes >= -1e-3).all())


# --- (f) save and load -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", PAPERS)
def test_save_and_load_is_exact(paper: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create(smallest(paper))
    batch = batch_for(model, zoo.paper(paper).TASK, 2)
    objective = objective_of(paper, model.train())
    terms_of(objective, batch)  # moves running statistics away from their initial values
    path = save(model, tmp_path / "model.safetensors")
    again = load(path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]) and tensor.dtype == theirs[key].dtype, key
    assert again.config == model.config and again.prepare == model.prepare
    model.eval()
    with torch.no_grad():
        a, b = (named_tensors(forward(network, images_of(batch)), "out") for network in (model, again))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("paper", PAPERS)
def test_copy_and_move_to_another_type(paper: str) -> None:
    """No tensor hides outside parameters and buffers: a deep copy in float64 gives the same output to float32 precision."""
    network = new(smallest(paper)).eval()
    images = images_of(batch_for(network, zoo.paper(paper).TASK, 1))
    double = copy.deepcopy(network).double()
    with torch.no_grad():
        a = named_tensors(network(*inputs_of(network, images)), "out")
        b = named_tensors(double(*inputs_of(double, images._replace(pixels=images.pixels.double()))), "out")
    for key, tensor in a.items():
        assert b[key].dtype == (torch.float64 if tensor.is_floating_point() else tensor.dtype)
        torch.testing.assert_close(tensor.double(), b[key].double(), rtol=1e-3, atol=1e-3)
