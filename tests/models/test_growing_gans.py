"""Progressive GAN and StyleGAN: how they grow, what is kept, styles, mixing and truncation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opticus
from opticus import zoo
from opticus.layers.average import Average
from opticus.models.generative import progan, stylegan
from opticus.ops.growth import enlarged, missing, reduced
from opticus.structures import Batch, Images, Noise, Progress, UsageError
from opticus.training.loop import Run
from opticus.training.state import load_state
from opticus.verbs.verify import differences

SMALL: dict[str, dict[str, Any]] = {
    "progan": {"latent": 6, "widths": (8, 6, 4)},
    "stylegan": {"latent": 6, "depth": 2, "base": 64, "most": 8},
}


def small(paper: str) -> Any:
    torch.manual_seed(0)
    return zoo.create(f"{paper}/tiny", **SMALL[paper])


def batch_of(count: int, side: int = 16) -> Batch:
    pixels = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, None, torch.eye(3).expand(count, 3, 3), ((side, side),) * count)
    return Batch(images, (None,) * count, tuple(str(i) for i in range(count)))


# --- growth ----------------------------------------------------------------------------------------------------------------


def test_levels_wait_and_fade_in_by_turns() -> None:
    """Two levels in the first 80 % of the run: wait, fade, wait, fade, a fifth of the run each."""
    at = {0.0: 2.0, 0.19: 2.0, 0.3: 1.5, 0.4: 1.0, 0.55: 1.0, 0.7: 0.5, 0.8: 0.0, 0.95: 0.0}
    for fraction, lacking in at.items():
        assert missing(fraction, 2, 0.8) == pytest.approx(lacking, abs=2e-5), fraction
    assert missing(0.0, 2, 0.0) == missing(0.0, 0, 0.5) == 0
    shares = [missing(i / 500, 4, 0.6) for i in range(500)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 4


def test_pictures_of_a_lower_resolution() -> None:
    pixels = torch.randn(2, 1, 8, 8)
    half = pixels.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(reduced(pixels, 1.0), half)
    between = 0.75 * pixels + 0.25 * half.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(reduced(pixels, 0.25), between)
    assert reduced(pixels, 0.0) is pixels and enlarged(half, 8).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("paper", sorted(SMALL))
def test_a_level_fades_in_without_a_jump(paper: str) -> None:
    """Where it starts, pictures and scores are those of the level below; where it ends, those without it."""
    network = small(paper)
    judge = zoo.paper(paper).objective(network).discriminator
    latents, real = torch.randn(4, 6), batch_of(4).images
    assert real is not None
    pictures: dict[float, Tensor] = {}
    scores: dict[float, Tensor] = {}
    with torch.no_grad():
        for lacking in (2.0, 2 - 2**-16, 1.0, 1 - 2**-16, 2**-16, 0.0):
            network.grow(lacking)
            assert network.lacking == lacking
            pictures[lacking] = network(latents)
            scores[lacking] = judge(reduced(real.pixels, lacking), lacking)
    assert [pictures[one].shape[-1] for one in pictures] == [4, 8, 8, 16, 16, 16]
    for before, after in ((2.0, 2 - 2**-16), (1.0, 1 - 2**-16), (2**-16, 0.0)):
        side = pictures[after].shape[-1]
        torch.testing.assert_close(enlarged(pictures[before], side), pictures[after], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(scores[before], scores[after], atol=2e-3, rtol=1e-3)
    assert float((pictures[0.0] - enlarged(pictures[1.0], 16)).abs().max()) > 0.1


@pytest.mark.parametrize("paper", sorted(SMALL))
def test_the_counter_is_kept_and_copied(paper: str, tmp_path: Path) -> None:
    """A moving average has grown as far as its network, and a file of a growing network draws what that network draws."""
    network: Any = opticus.create(f"{paper}/tiny", **SMALL[paper])
    average = Average(network, decay=0.999)
    network.grow(1.25)
    average.update(network)
    assert average.network.lacking == 1.25  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    again: Any = opticus.load(opticus.save(network, tmp_path / "half.safetensors"))
    assert again.lacking == 1.25
    drawn = [one.sample(Noise(0, 2)) for one in (network, again)]
    assert torch.equal(*drawn) and drawn[0].shape == (2, 1, 16, 16)
    torch.testing.assert_close(drawn[0][:, :, ::2, ::2], drawn[0][:, :, 1::2, 1::2])


@pytest.mark.parametrize("paper", sorted(SMALL))
def test_a_growing_run_resumes_bit_exactly(paper: str, tmp_path: Path) -> None:
    """Stopped while the second level fades in."""
    options = {
        **SMALL[paper],
        "options": {"growing": 0.75},
        "steps": 8,
        "batch": 4,
        "save_every": 2,
        "workers": 0,
        "precision": "fp32",
        "quiet": True,
        "test": False,
    }
    opticus.train(f"{paper}/tiny", "digits", out=tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        whole = Run.train_step

        def stop(self: Run, batches: Any) -> None:
            if self.step == 4:
                raise KeyboardInterrupt
            whole(self, batches)

        patch.setattr(Run, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            opticus.train(f"{paper}/tiny", "digits", out=tmp_path / "broken", **options)
    half: Any = opticus.load(tmp_path / "broken" / "weights" / "last.safetensors")
    assert 0 < half.lacking < 2
    opticus.train(resume=tmp_path / "broken", quiet=True, test=False)
    count, different = differences(load_state(tmp_path / "whole"), load_state(tmp_path / "broken"))
    assert count > 40 and different == []
    done: Any = opticus.load(tmp_path / "whole")
    assert done.lacking == 0


# --- Progressive GAN -------------------------------------------------------------------------------------------------------


def test_variation_is_that_of_a_group() -> None:
    """Four pictures: the deviation at every place over the group, averaged; one alone has none; groups do not see each other."""
    x = torch.randn(8, 3, 4, 4)
    expected = torch.stack([(x[i : i + 4].var(0) + 1e-8).sqrt().mean() for i in (0, 4)])
    torch.testing.assert_close(progan.deviation(x)[:, 0, 0, 0], expected.repeat_interleave(4))
    assert float(progan.deviation(x[:1]).abs().max()) == 0
    # StyleGAN's groups are a quarter of the batch apart
    spaced = torch.stack([(x[i::2].var(0, unbiased=False) + 1e-8).sqrt().mean() for i in (0, 1)])
    torch.testing.assert_close(stylegan.deviation(x)[:, 0, 0, 0], spaced.repeat(4))


def test_pixel_norm_makes_vectors_of_unit_mean_square() -> None:
    x = progan.pixel_norm(5 * torch.randn(2, 7, 3, 3))
    torch.testing.assert_close(x.square().mean(1), torch.ones(2, 3, 3))


def test_bad_settings_are_named() -> None:
    with pytest.raises(UsageError, match="growing must be in"):
        progan.objective(small("progan"), growing=1.5)
    with pytest.raises(UsageError, match="widths must be"):
        progan.Config(widths=())
    with pytest.raises(UsageError, match="no condition"):
        small("progan").sample(Noise(0, 1), steps=3)
    with pytest.raises(UsageError, match="power of two"):
        stylegan.Config(size=24)
    with pytest.raises(UsageError, match="start one of"):
        stylegan.objective(small("stylegan"), start=5)
    with pytest.raises(UsageError, match=r"mixing is a layer, a whole number in 0\.\.6, found 9"):
        small("stylegan").sample(Noise(0, 1), mixing=9)
    with pytest.raises(UsageError, match=r"cutoff is a layer, .* found 2\.5"):
        small("stylegan").sample(Noise(0, 1), cutoff=2.5)
    with pytest.raises(UsageError, match=r"truncation must be a number in \[-2, 2\], found 'high'"):
        small("stylegan").sample(Noise(0, 1), truncation="high")
    with pytest.raises(UsageError, match="truncation must be"):
        small("stylegan").render(torch.zeros(1, 6), truncation=9.0)


# --- StyleGAN --------------------------------------------------------------------------------------------------------------


def noisy() -> Any:
    network = small("stylegan").eval()
    for layer in network.layers:
        torch.nn.init.constant_(layer.strength, 0.5)
    torch.nn.init.normal_(network.mean_style)
    return network


def test_blur_is_the_binomial_filter() -> None:
    x = torch.randn(2, 3, 6, 6)
    kernel = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
    torch.testing.assert_close(
        stylegan.blur(x), torch.nn.functional.conv2d(x, kernel.expand(3, 1, 3, 3), padding=1, groups=3), atol=1e-6, rtol=1e-5
    )


def test_adaptive_instance_norm_sets_mean_and_deviation() -> None:
    """Eq. 1: y_s (x - mu) / sigma + y_b, the scale stored less one."""
    scale, shift = torch.randn(2, 4), torch.randn(2, 4)
    out = stylegan.adain(3 + 5 * torch.randn(2, 4, 6, 6), torch.cat([scale - 1, shift], 1))
    torch.testing.assert_close(out.mean((2, 3)), shift, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.std((2, 3), unbiased=False), scale.abs(), atol=1e-4, rtol=1e-4)


def test_truncation_goes_to_the_mean_and_stops_at_the_cutoff() -> None:
    network = noisy()
    w = network.styles(torch.randn(3, 6))
    torch.testing.assert_close(network.spread(w, 0.0), network.mean_style.expand(3, 6, 6))
    cut = network.spread(w, 0.25, 2)
    torch.testing.assert_close(cut[:, 0], network.mean_style + 0.25 * (w - network.mean_style))
    torch.testing.assert_close(cut[:, 2:], w[:, None].expand(-1, 4, -1))
    assert torch.equal(network.spread(w, 1.0), network.spread(w, 0.3, 0))
    drawn = network.sample(Noise(0, 3), truncation=0.0, fixed=True)
    torch.testing.assert_close(drawn[0], drawn[1])


def test_mixed_styles_cross_over_once() -> None:
    first, second = torch.zeros(2, 6, 3), torch.ones(2, 6, 3)
    assert stylegan.mixed(first, second, 2)[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1]
    assert stylegan.mixed(first, second, torch.tensor([6, 1]))[:, :, 0].tolist() == [[0] * 6, [0, 1, 1, 1, 1, 1]]
    network = noisy()
    plain, none, all_of_it = (network.sample(Noise(0, 2), fixed=True, mixing=m) for m in (None, 6, 0))
    assert torch.equal(plain, none) and not torch.allclose(plain, all_of_it)


def test_noise_belongs_to_the_sample() -> None:
    """Sample 1 is the same alone and among others; other noise changes details of a picture, the fixed one does not change."""
    network = noisy()
    both, alone = network.sample(Noise(5, 2)), network.sample(Noise(5, 1, first=1))
    torch.testing.assert_close(both[1:], alone)
    latents = network.latents(Noise(0, 2))
    assert torch.equal(network.render(latents), network.render(latents))
    styles = network.spread(network.styles(latents))
    with torch.no_grad():
        other = network.synthesize(styles, network.noises(Noise(9, 2)))
    assert float((network.render(latents) - other).abs().max()) > 1e-3


def test_the_mean_style_follows_the_generator_phase_only() -> None:
    network = small("stylegan")
    objective = stylegan.objective(network, follow=1.0, growing=0.0).train()
    batch = batch_of(4)
    objective(batch, Progress(0, 0, 1, 1, "d"))
    assert float(network.mean_style.abs().max()) == 0
    torch.manual_seed(3)
    objective(batch, Progress(0, 0, 1, 1, "g"))
    torch.manual_seed(3)
    latents = torch.randn(8, 6)
    torch.testing.assert_close(network.mean_style, network.styles(latents)[:4].mean(0))


def test_published_sizes() -> None:
    """Table 1 of the style paper says 26.2 million parameters, table 2 of the progressive one 23.1 million."""
    assert round(stylegan.PARAMETERS["1024"] / 1e6, 1) == 26.2 and round(progan.PARAMETERS["1024"] / 1e6, 1) == 23.1
