"""Schedules and samplers: equal to the schedulers of diffusers step by step, and what holds for any network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opticus.diffusion import samplers, schedules
from opticus.diffusion.prediction import KINDS, noisy, parts, target
from opticus.diffusion.samplers import DDIM, Ancestral, DPMSolver, Euler, Flow, Known, draw, guided, sampler
from opticus.diffusion.schedules import grid, of, schedule, straight, visit
from opticus.parity.fill import pixels_of
from opticus.structures import Noise, UnknownNameError, UsageError

RECORD = json.loads((Path(__file__).parent / "samplers.json").read_text())
SHAPE = (2, 3, 1, 1)


def answer(x: Tensor, times: Tensor) -> Tensor:
    """The formula that stands for a network, as in tools/references/samplers.py."""
    time = times.to(x.dtype).view(-1, 1, 1, 1)
    return 0.8 * torch.sin(1.3 * x + time / 300) + 0.1 * x


class Given:
    """Chance as it was given to the reference: formula numbers, one block after another."""

    def __init__(self) -> None:
        self.count = 100

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        self.count += 1
        return pixels_of([SHAPE[0], *shape], self.count).to(dtype)


def walk(rule: Any, predicts: str, clip: float | None = None) -> list[Tensor]:
    """x after every step, from the loop's own steps."""
    states: list[Tensor] = []
    step = rule.step

    def watched(*args: Any) -> Tensor:
        states.append(step(*args))
        return states[-1]

    rule.step = watched
    noise: Any = Given()
    out = draw(answer, pixels_of(list(SHAPE), 1).double(), rule, noise, predicts=predicts, clip=clip)
    assert torch.equal(out, states[-1])
    return states


def close(found: list[Tensor], wanted: list[list[float]]) -> None:
    assert len(found) == len(wanted)
    for i, (one, other) in enumerate(zip(found, wanted)):
        expected = torch.tensor(other, dtype=torch.float64)
        error = float(((one.flatten() - expected).abs() / expected.abs().clamp(min=1)).max())
        assert error <= 1e-6, f"step {i}: {error}"


def name_of(case: dict[str, Any]) -> str:
    return "-".join(str(case[key]) for key in ("sampler", "schedule", "predicts", "steps", "spacing", "eta", "variance"))


@pytest.mark.parametrize("case", RECORD["cases"], ids=name_of)
def test_every_step_is_that_of_diffusers(case: dict[str, Any]) -> None:
    path = schedule(case["schedule"])
    rule = sampler(case["sampler"], path, case["steps"], eta=case["eta"], variance=case["variance"], spacing=case["spacing"])
    assert rule.grid.times.tolist() == pytest.approx(case["times"], abs=1e-3)
    close(walk(rule, case["predicts"], case["clip"]), case["states"])


@pytest.mark.parametrize("case", RECORD["flow"], ids=lambda case: f"{case['steps']}-{case['shift']}")
def test_flow_matching_steps_are_those_of_diffusers(case: dict[str, Any]) -> None:
    places = straight(case["steps"], shift=case["shift"], last=first_time(case["shift"]), scale=1000)
    assert places.times.tolist() == pytest.approx(case["times"], abs=1e-3)
    close(walk(Flow(places), "flow"), case["states"])
    close(walk(DDIM(places), "flow"), case["states"])  # the same step in other words


def first_time(shift: float) -> float:
    """diffusers shifts its last time, 1/1000, when it is made and again with all the others."""
    return shift / 1000 / (1 + (shift - 1) / 1000)


@pytest.mark.parametrize("name", schedules.BETAS)
def test_products_of_a_schedule(name: str) -> None:
    bars = schedule(name).signal.square()
    found = [float(bars[i]) for i in (0, 1, 250, 500, 750, 998, 999)]
    assert found == pytest.approx(RECORD["products"][name], rel=2e-5)  # theirs are products in float32
    assert torch.allclose(bars + schedule(name).noise.square(), torch.ones(()).double())


# --- what holds for any network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_prediction_say_the_same(kind: str) -> None:
    x0, eps = (pixels_of([2, 1, 4, 4], seed).double() for seed in (1, 2))
    a, b = (0.4, 0.6) if kind == "flow" else (0.6, 0.8)
    x = noisy(x0, eps, a, b)
    found = parts(kind, target(kind, x0, eps, a, b), x, a, b)
    assert torch.allclose(found.picture, x0) and torch.allclose(found.noise, eps)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
def test_a_gaussian_keeps_its_mean_and_deviation(name: str) -> None:
    """For data N(m, s^2) the best answer is known; 200 steps of a solver carry unit noise to it."""
    path, mean, deviation = schedule("linear"), 0.7, 0.3
    noise = Noise(1, 500)
    start = noise.normal(1, 1, 1, dtype=torch.float64)

    def best(x: Tensor, times: Tensor) -> Tensor:
        a, b = path.at(times, x) if not times.is_floating_point() else between(path, times, x)
        return b * (x - a * mean) / ((a * deviation) ** 2 + b**2)

    out = draw(best, start, sampler(name, path, 200))
    line = mean + deviation * start
    assert float((out - line).abs().max()) < 0.03
    coarse = draw(best, start, sampler(name, path, 5))
    assert float((coarse - line).abs().max()) > float((out - line).abs().max())


def between(path: schedules.Schedule, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    places = visit(path, times.double().numpy(), ends_clean=True)
    return tuple(values[:-1].view(-1, 1, 1, 1).to(like.dtype) for values in (places.signal, places.noise))  # type: ignore[return-value]


def test_ancestral_sampling_has_the_right_moments() -> None:
    path, noise = schedule("linear", 200, 5e-4, 0.1), Noise(2, 4000)

    def best(x: Tensor, times: Tensor) -> Tensor:
        a, b = path.at(times, x)
        return b * (x - a * 0.7) / ((a * 0.3) ** 2 + b**2)

    out = draw(best, noise.normal(1, 1, 1), sampler("ddpm", path, 200), noise)
    assert float(out.mean()) == pytest.approx(0.7, abs=0.02) and float(out.std()) == pytest.approx(0.3, abs=0.02)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    path = schedule("cosine", 50)

    def one(first: int, count: int) -> Tensor:
        noise = Noise(3, count, first=first)
        return draw(answer, noise.normal(1, 2, 2), sampler("ddpm", path, 10), noise)

    assert torch.allclose(one(0, 4)[2:3], one(2, 1), atol=1e-6)


def test_guidance() -> None:
    def denoise(x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return x * 0 + condition.view(-1, 1, 1, 1)

    x, times = torch.zeros(2, 1, 2, 2), torch.zeros(2)
    yes, none = torch.tensor([1.0, 2.0]), torch.zeros(2)
    for scale, wanted in ((0.0, 0.0), (1.0, 2.0), (3.0, 6.0)):
        assert float(guided(denoise, yes, none, scale)(x, times)[1, 0, 0, 0]) == wanted
    with pytest.raises(UsageError, match="empty condition"):
        guided(denoise, yes, torch.zeros(1), 2.0)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_inpainting_keeps_what_is_known(name: str) -> None:
    noise = Noise(0, 2)
    pixels, mask = pixels_of([2, 1, 4, 4], 3).float(), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    seen: list[int] = []
    out = draw(
        answer, noise.normal(1, 4, 4), sampler(name, schedule("linear"), 5), noise, known=Known(pixels, mask),
        progress=lambda done, steps: seen.append(done),
    )  # fmt: skip
    assert torch.equal(out[..., :2], pixels[..., :2]) and not torch.equal(out[..., 2:], pixels[..., 2:])
    assert seen == [1, 2, 3, 4, 5]


def test_bad_settings_are_named() -> None:
    path = schedule("linear")
    with pytest.raises(UnknownNameError, match="lineal"):
        schedule("lineal")
    with pytest.raises(UnknownNameError, match="dpm"):
        sampler("dpm", path, 5)
    with pytest.raises(UsageError, match=r"1\.\.1000"):
        sampler("ddim", path, 1001)
    with pytest.raises(UsageError, match="eta belongs to ddim"):
        sampler("euler", path, 5, eta=0.5)
    with pytest.raises(UsageError, match="eta must lie"):
        DDIM(grid(path, 5), 1.5)
    with pytest.raises(UnknownNameError, match="medium"):
        Ancestral(grid(path, 5), "medium")
    with pytest.raises(UnknownNameError, match="spacing"):
        grid(path, 5, "even")
    with pytest.raises(UsageError, match="ends at 999"):
        grid(path, 5, offset=300)
    with pytest.raises(UsageError, match="betas"):
        of(torch.tensor([0.1, 1.5]))
    with pytest.raises(UsageError, match="was given none"):
        draw(answer, torch.zeros(1, 1, 2, 2), sampler("ddpm", path, 5))
    with pytest.raises(UnknownNameError, match="score"):
        parts("score", torch.zeros(1), torch.zeros(1), 0.5, 0.5)
    assert isinstance(sampler("euler", path, 3), Euler) and isinstance(sampler("dpm++", path, 3), DPMSolver)
