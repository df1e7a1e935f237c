"""The loop's promises beside resume: recipes, schedules, groups, precision, stopping, bad numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import opticus
from opticus.data.open import open_data
from opticus.plot.figures import read_curves
from opticus.structures import Batch, Classes, Progress, Sample, TrainError, UsageError
from opticus.training.loop import loop
from opticus.training.optim import build, factor_at
from opticus.training.recipe import Group, Job, Optim, Recipe, Schedule
from opticus.training.state import load_state
from opticus.transforms.geometry import Resize
from opticus.verbs.models import create

QUIET: dict[str, Any] = {"quiet": True, "test": False}


def shapes(count: int = 24) -> list[Sample]:
    """Two classes that a line can separate: dark and bright pictures."""
    pictures = [torch.full((28, 28, 1), 40 + 170 * (i % 2), dtype=torch.uint8) for i in range(count)]
    return [Sample.of(p, Classes(torch.tensor([i % 2])), f"p{i}") for i, p in enumerate(pictures)]


def test_a_python_iterable_is_data(tmp_path: Path) -> None:
    result = opticus.train("lenet/5", iter(shapes()), out=tmp_path, steps=30, batch=8, lr=3e-3, **QUIET)
    found = result.model.predict(shapes(2)[1].picture)
    assert found[0].labels[0] == 1
    assert json.loads((tmp_path / "args.json").read_text())["data"] is None


def test_a_non_finite_loss_stops_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"not finite at step \d+ .*samples of the batch: .*p\d"):
        opticus.train("lenet/5", shapes(), out=tmp_path, steps=60, batch=8, lr=1e18, clip=None, **QUIET)


def test_patience_stops_early(tmp_path: Path) -> None:
    data = {"steps": 200, "batch": 32, "evaluate_every": 1, "patience": 2, "lr": 0.0}
    result = opticus.train("lenet/5", "digits", out=tmp_path, **data, **QUIET)
    assert result.outcome.stopped == "patience"
    assert result.outcome.steps == 3
    assert opticus.train(resume=tmp_path, **QUIET).outcome.steps == 3


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_other_precisions_learn(precision: str, tmp_path: Path) -> None:
    result = opticus.train("lenet/5", shapes(), out=tmp_path, steps=25, batch=8, lr=3e-3, precision=precision, log_every=1, **QUIET)
    losses = read_curves(tmp_path / "results.csv")["train/loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    runs = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = create("lenet/5", classes=2)
        rules = {"all": Optim("sgd", lr=0.1)}
        recipe = Recipe(
            "lenet/5", "", transforms=(Resize((32, 32)),), batch=8, steps=3, accumulate=parts, precision="fp64", optim=rules
        )
        opticus.train(model, shapes(), recipe=recipe, out=tmp_path / str(parts), **QUIET)
        runs.append(torch.cat([p.detach().reshape(-1).double() for p in model.parameters()]))
    assert float((runs[0] - runs[1]).abs().max()) < 1e-12


def test_groups_take_their_own_rates_and_decay() -> None:
    model = create("resnet/tiny")
    from opticus.losses.supervised import Supervised

    objective = Supervised(model, lambda out, batch: {})
    optimiser = build(
        objective, "all", Optim(lr=1.0, weight_decay=0.1, groups=(Group(r"layer1", frozen=True), Group(r"conv1", 0.1)))
    )
    rates = {(round(g["lr"], 3), g["weight_decay"]) for g in optimiser.param_groups}
    assert rates == {(1.0, 0.1), (1.0, 0.0), (0.1, 0.1)}
    assert not any(p.requires_grad for p in model.get_submodule("layer1").parameters())
    counted = sum(p.numel() for g in optimiser.param_groups for p in g["params"])
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(UsageError, match="matches no parameter"):
        build(objective, "all", Optim(groups=(Group("nothing-here"),)))


def test_schedules_at_their_endpoints() -> None:
    cosine = Schedule("cosine", warmup=0.1, end=0.01)
    assert [round(factor_at(cosine, f), 4) for f in (0.0, 0.05, 0.1, 1.0)] == [0, 0.5, 1, 0.01]
    step = Schedule("step", milestones=(0.5, 0.75))
    assert [round(factor_at(step, f), 4) for f in (0.0, 0.49, 0.5, 0.8)] == [1, 1, 0.1, 0.01]
    rising = Schedule("linear", start=0.1, end=1.0)
    assert factor_at(rising, 1.0) == pytest.approx(1.0)


def test_recipes_refuse_nonsense() -> None:
    with pytest.raises(UsageError, match="steps= or epochs="):
        Recipe("lenet/5", "digits")
    with pytest.raises(UsageError, match="multiple of accumulate"):
        Recipe("lenet/5", "digits", steps=1, batch=5, accumulate=2)
    with pytest.raises(UsageError, match="batch must be at least 1"):
        Recipe("lenet/5", "digits", steps=1, batch=0)


def test_batches_are_a_function_of_seed_and_step() -> None:
    from opticus.data.loader import Plan, batches
    from opticus.structures import Prepare
    from opticus.transforms.colour import ColourJitter

    data = open_data("digits")
    rule = Prepare(channels=1, mean=(0.0,), std=(1.0,))

    def draw(start: int, workers: int) -> Any:
        return batches(data, (ColourJitter(0.4, 0.4),), rule, Plan(7, 8, 1, workers), start=start)

    first = draw(0, 0)
    runs = [next(first) for _ in range(140)]  # beyond the end of the first epoch
    before = torch.get_rng_state()
    later = draw(138, 1)
    for number in (138, 139):
        again = next(later)
        assert again.ids == runs[number].ids
        assert again.images is not None and runs[number].images is not None
        assert torch.equal(again.images.pixels, runs[number].images.pixels)
    assert torch.equal(before, torch.get_rng_state()), "the loader must not touch the global generator"
    assert len({i for b in runs[:137] for i in b.ids}) == 137 * 8, "an epoch visits each sample once"


class Late(torch.nn.Module):
    """An objective that trains one number; phase "late" joins after `wait` steps; from step `bad` on its gradient is not finite."""

    def __init__(self, wait: int = 0, bad: int = 10**9) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.other = torch.nn.Linear(1, 1)
        self.wait, self.bad = wait, bad

    def phases(self, step: int) -> tuple[str, ...]:
        return ("early",) if step < self.wait else ("early", "late")

    def parameters_of(self, phase: str) -> list[torch.nn.Parameter]:
        return list((self.network if phase == "early" else self.other).parameters())

    def forward(self, batch: Batch, at: Progress) -> dict[str, torch.Tensor]:
        value = (self.network if at.phase == "early" else self.other).weight.sum()
        return {at.phase: (value - value.detach()).sqrt() if at.step >= self.bad else value**2}

    def before_update(self, at: Progress) -> None: ...
    def after_step(self, at: Progress) -> None: ...


def endless(first: int, rank: int, world: int) -> Any:
    while True:
        yield Batch(None, (None,), (f"sample{first}",))
        first += 1


def test_a_phase_may_join_late(tmp_path: Path) -> None:
    recipe = Recipe("late", "", batch=1, steps=1010, optim={"all": Optim(clip=1.0)}, save_every=2000, log_every=500)
    outcome = loop(Job(recipe, Late(wait=1005), endless, 1, tmp_path, {}, quiet=True))
    assert outcome.steps == 1010


def test_a_non_finite_gradient_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    recipe = Recipe("late", "", batch=1, steps=9, optim={"all": Optim(clip=1.0)}, save_every=1)
    with pytest.raises(TrainError, match=r"gradient is not finite at step 4.*samples of the batch: sample4"):
        loop(Job(recipe, Late(bad=4), endless, 1, tmp_path, {}, quiet=True))
    assert torch.isfinite(load_state(tmp_path)["objective"]["network.weight"]).all()


def test_tensorboard_gets_the_figures_where_it_is_installed(tmp_path: Path) -> None:
    opticus.train("lenet/5", shapes(), out=tmp_path, steps=2, batch=8, log_every=1, **QUIET)
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert bool(events) == (importlib.util.find_spec("tensorboard") is not None)
    assert not events or b"train/loss" in events[0].read_bytes()
