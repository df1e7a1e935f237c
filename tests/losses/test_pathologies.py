"""What goes wrong between two networks: the figures against cases whose answer is known, the alarms, and the loop that gives them."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opticus.losses.pathologies import (
    EARLY,
    WARNS,
    WINDOW,
    Health,
    coverage,
    nearest,
    precision,
    recall,
    rhythm,
    spread,
    told_apart,
)
from opticus.losses.two_players import Play, TwoPlayers
from opticus.structures import Batch, Images, Progress, UnknownNameError, UsageError

MODES = [[math.cos(a), math.sin(a)] for a in torch.arange(8) * math.pi / 4]


def ring(count: int, which: tuple[int, ...] = tuple(range(8)), seed: int = 0) -> Tensor:
    """Points (count, 2) near some of eight places on a circle."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor(MODES)[torch.tensor(which)[torch.arange(count) % len(which)]]
    return places + 0.05 * torch.randn(count, 2, generator=generator)


def as_pictures(points: Tensor) -> Tensor:
    return points[:, :, None, None]


# --- figures -------------------------------------------------------------------------------------------------------------


def test_recall_and_precision_count_modes() -> None:
    modes = torch.tensor(MODES)
    points = ring(90, (0, 3, 5))
    assert float(recall(points, modes, 0.3)) == pytest.approx(3 / 8)
    assert float(precision(points, modes, 0.3)) == 1.0
    assert float(precision(torch.cat([points, torch.zeros(30, 2)]), modes, 0.3)) == pytest.approx(0.75)


def test_spread_nearest_and_coverage_of_one_distribution_are_those_of_equals() -> None:
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 400, 3, generator=generator)
    assert float(spread(fake, real)) == pytest.approx(1.0, abs=0.05)
    assert float(nearest(fake, real)) == pytest.approx(1.0, abs=0.1)
    assert float(coverage(fake, real)) == pytest.approx(1 - 2**-5, abs=0.02)  # of Naeem 2020, section 3.3: 1 - 1/2^k
    assert float(spread(fake / 10, real)) == pytest.approx(0.1, abs=0.01)
    assert float(coverage(fake[:1].repeat(400, 1), real)) < 0.05
    assert float(nearest(fake[:1].repeat(400, 1), real)) < 1e-3


def test_coverage_falls_with_missing_modes_where_spread_does_not() -> None:
    real, fake = ring(160), ring(160, (0, 4), seed=3)
    assert float(spread(fake, real)) == pytest.approx(1.0, abs=0.05)
    assert float(coverage(fake, real)) == pytest.approx(0.25, abs=0.05)


def test_told_apart_is_the_area_under_the_curve() -> None:
    assert float(told_apart(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))) == 1.0
    assert float(told_apart(torch.ones(4), torch.ones(4))) == 0.5
    assert float(told_apart(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))) == 0.5


def test_rhythm_tells_circles_from_drifts_and_chance() -> None:
    time = torch.arange(64) / 64
    circle = torch.stack([(2 * math.pi * 3 * time).cos(), (2 * math.pi * 3 * time).sin()], 1)
    assert float(rhythm(circle)) > 0.7
    drift = time[:, None] * torch.tensor([[1.0, -2.0]])
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert float(rhythm(drift + 0.01 * noise[:, :2])) < 0.45
    assert float(rhythm(noise)) < 0.3
    assert float(rhythm(torch.ones(64, 2))) == 0.0


# --- alarms --------------------------------------------------------------------------------------------------------------


def parameter(gradient: float) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(1))
    made.grad = torch.tensor([gradient])
    return made


def test_collapse_is_named_by_known_modes_or_by_spread() -> None:
    knows = Health((2, 1, 1), modes=MODES, near=0.3)
    scores = torch.randn(80, 1, generator=torch.Generator().manual_seed(0))
    knows.saw(as_pictures(ring(80)), as_pictures(ring(80, (0, 1))), scores, scores)
    assert knows.alarm(knows.figures()) == "mode collapse: only 2 of 8 known modes are drawn"
    knows.saw(as_pictures(ring(80)), as_pictures(ring(80, seed=2)), scores, scores)
    assert knows.alarm(knows.figures()) is None
    blind = Health((2, 1, 1))
    blind.saw(as_pictures(ring(80)), as_pictures(ring(80, (3,))), scores, scores)
    assert (blind.alarm(blind.figures()) or "").startswith("mode collapse: what is drawn spreads 0.0")
    pairs = ring(80)[:8].repeat(10, 1)
    blind.saw(as_pictures(ring(80)), as_pictures(pairs), scores, scores)
    assert "duplicates" in (blind.alarm(blind.figures()) or "")


def test_lost_coverage_is_collapse_too() -> None:
    health = Health((2, 1, 1))
    scores = torch.zeros(160, 1)
    health.saw(as_pictures(ring(160)), as_pictures(ring(160, seed=2)), scores, scores)
    assert health.alarm(health.figures()) is None
    health.saw(as_pictures(ring(160)), as_pictures(ring(160, (0, 4), seed=3)), scores, scores)
    assert "of the real pictures have a drawn one near them" in (health.alarm(health.figures()) or "")


def test_a_silent_discriminator_is_named_only_if_it_knows_everything() -> None:
    health = Health((2, 1, 1))
    points = as_pictures(ring(64))
    for step in range(EARLY + 60):
        health.drew(points, [parameter(1.0 if step < EARLY else 1e-4)])
    health.saw(points, points, torch.ones(64, 1), -torch.ones(64, 1))
    figures = health.figures()
    assert figures["pull"] < 0.02 and figures["told apart"] == 1.0
    assert (health.alarm(figures) or "").startswith("vanishing gradient: the discriminator knows 100%")
    health.saw(points, points, torch.zeros(64, 1), torch.zeros(64, 1))
    assert health.alarm(health.figures()) is None, "a generator that has won is told little as well"


def test_circles_are_named_and_rest_is_not() -> None:
    health, calm = Health((2, 1, 1)), Health((2, 1, 1))
    points = ring(64)
    for step in range(WINDOW):
        angle = step / 8
        shift = 0.8 * torch.tensor([math.cos(angle), math.sin(angle)])
        health.drew(as_pictures(points + shift), [parameter(1.0)])
        calm.drew(as_pictures(points), [parameter(1.0)])
    for one in (health, calm):
        one.saw(as_pictures(points), as_pictures(points), torch.zeros(64, 1), torch.zeros(64, 1))
    assert (health.alarm(health.figures()) or "").startswith("oscillation: the mean of what is drawn swings by 0.")
    assert calm.alarm(calm.figures()) is None


def test_a_resumed_run_says_the_same() -> None:
    health, again = Health((2, 1, 1)), Health((2, 1, 1))
    for step in range(30):
        health.drew(as_pictures(ring(16, seed=step)), [parameter(1.0 + step)])
    again.load_state_dict(copy.deepcopy(health.state_dict()))
    for one in (health, again):
        one.drew(as_pictures(ring(16)), [parameter(2.0)])
        one.saw(as_pictures(ring(16)), as_pictures(ring(16)), torch.zeros(16, 1), torch.zeros(16, 1))
    assert health.figures() == again.figures()


# --- the two players -----------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """A generator with one number: it draws `place` + latent."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(channels=1, size=1, latent=1)
        self.place = nn.Parameter(torch.tensor(0.5))

    def forward(self, latents: Tensor) -> Tensor:
        return (self.place + latents)[:, :, None, None]


class Slope(nn.Module):
    """A discriminator with one number: its score is `slope` times the pixel."""

    def __init__(self, slope: float = 2.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.slope * pixels.flatten(1)


def batch_of(pixels: Tensor) -> Batch:
    count = len(pixels)
    images = Images(pixels, None, torch.eye(3).expand(count, 3, 3), ((1, 1),) * count)
    return Batch(images, (None,) * count, tuple(map(str, range(count))))


AT = Progress(0, 0, 10, 1, "d")


def terms(play: Play, share: Tensor | None = None) -> dict[str, float]:
    objective = TwoPlayers(Line(), Slope(), play)
    real, fake = torch.tensor([1.0, 3.0])[:, None, None, None], torch.tensor([-1.0, 0.5])[:, None, None, None]
    return {name: float(v.detach()) for name, v in objective.discriminator_terms(real, fake, share, batch_of(real), AT).items()}


def test_terms_are_the_papers_equations() -> None:
    def soft(x: float) -> float:
        return math.log1p(math.exp(x))

    plain = terms(Play())
    assert plain["d/real"] == pytest.approx((soft(-2) + soft(-6)) / 2, rel=1e-5)
    assert plain["d/fake"] == pytest.approx((soft(-2) + soft(1)) / 2, rel=1e-5)
    smooth = terms(Play(smoothing=0.1))  # binary cross-entropy with the target 0.9
    assert smooth["d/real"] == pytest.approx((0.9 * soft(-2) + 0.1 * soft(2) + 0.9 * soft(-6) + 0.1 * soft(6)) / 2, rel=1e-5)
    assert smooth["d/fake"] == plain["d/fake"], "one side only"
    assert terms(Play(r1=3.0))["d/r1"] == pytest.approx(3.0 * 2.0**2 / 2, rel=1e-5)
    assert terms(Play(penalty=10.0), torch.tensor([0.2, 0.7]))["d/penalty"] == pytest.approx(10.0 * (2 - 1) ** 2, rel=1e-5)
    assert terms(Play(loss="wasserstein"))["d/real"] == pytest.approx(-4.0)


def test_who_moves_when() -> None:
    five = TwoPlayers(Line(), Slope(), Play(critics=5))
    assert [five.phases(step) for step in range(6)] == [("d",)] * 4 + [("d", "g"), ("d",)]
    late = TwoPlayers(Line(), Slope(), Play(favour=3, favour_from=2))
    assert [late.phases(step) for step in range(3)] == [("d", "g"), ("d", "g"), ("d", "g", "g", "g")]


def test_instance_noise_fades_and_touches_both() -> None:
    objective = TwoPlayers(Line(), Slope(), Play(instance_noise=1.0))
    real = torch.zeros(4000, 1, 1, 1)
    torch.manual_seed(0)
    for step, expected in ((0, 1.0), (5, 0.5)):
        noisy: Any = objective._noisy(real, AT._replace(step=step))  # pyright: ignore[reportPrivateUsage]
        assert float(noisy.std()) == pytest.approx(expected, rel=0.05)
    assert objective._noisy(real, AT._replace(step=10)) is real  # pyright: ignore[reportPrivateUsage]


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    objective = TwoPlayers(Line(), discriminator, Play(spectral=True)).train()
    pixels = torch.randn(64, 1, 1, 1)
    for _ in range(20):
        scores = discriminator(pixels)
    slopes = (scores[:, None, 0] - scores[None, :, 0]).abs() / (pixels.flatten()[:, None] - pixels.flatten()[None]).abs().clamp(
        min=1e-6
    )
    assert float(slopes.detach().max()) < 1.01
    assert not [name for name in objective.network.state_dict() if "parametrizations" in name]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": "hinged"}, UnknownNameError, "did you mean 'hinge'"),
        ({"favour": 0}, UsageError, "favour must be a whole number, at least 1, found 0"),
        ({"smoothing": 0.6}, UsageError, "smoothing must be below 0.5"),
        ({"r1": -1.0}, UsageError, "r1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Play(**options)
    with pytest.raises(UsageError, match="near must be positive"):
        Health((2, 1, 1), modes=MODES)


def test_r1_makes_the_smallest_game_converge() -> None:
    """Mescheder 2018, section 2 and theorem 4.1: the Dirac-GAN goes round without R1 and comes to rest with it."""

    def ends(r1: float) -> float:
        objective = TwoPlayers(Line(), Slope(1.0), Play(r1=r1))
        real = torch.zeros(2, 1, 1, 1)
        batch = batch_of(real)
        furthest = 0.0
        for step in range(600):
            for phase, module in (("d", objective.discriminator), ("g", objective.network)):
                objective.zero_grad()
                fake = objective.network(torch.zeros(2, 1))
                at = AT._replace(phase=phase, step=0)
                made = (
                    objective.discriminator_terms(real, fake.detach(), None, batch, at)
                    if phase == "d"
                    else objective.generator_terms(fake, batch, at)
                )
                torch.stack(list(made.values())).sum().backward()
                with torch.no_grad():
                    for p in module.parameters():
                        assert p.grad is not None
                        p -= 0.1 * p.grad
            if step >= 500:
                furthest = max(furthest, abs(float(objective.network.get_parameter("place").detach())))
        return furthest

    assert ends(0.0) > 0.3
    assert ends(1.0) < 0.05


def test_the_warning_names_adversarial_training() -> None:
    assert TwoPlayers(Line(), Slope(), Play()).warns == WARNS
