"""The autoencoder: its layouts, its noise, its penalty, its decoders, and bad settings."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from opticus import zoo
from opticus.models.generative.autoencoder import Autoencoder, Reconstruction, active, corrupted, objective
from opticus.recipes import autoencoder as recipes
from opticus.structures import Batch, CapabilityError, DataError, Images, Noise, Progress, UnknownNameError, UsageError
from opticus.verbs.models import create

AT = Progress(0, 0, 1, 1)


def network_of(name: str = "tiny", **changes: Any) -> Autoencoder:
    torch.manual_seed(0)
    return cast(Autoencoder, zoo.create(f"autoencoder/{name}", **changes))


def images(pixels: Tensor) -> Images:
    return Images(pixels, None, torch.eye(3).expand(len(pixels), 3, 3), ((16, 16),) * len(pixels))


def batch(pixels: Tensor, *views: Tensor) -> Batch:
    roles = ("a", "b", "c")[: len(views)]
    ids = tuple(str(i) for i in range(len(pixels)))
    return Batch(images(pixels), (None,) * len(pixels), ids, tuple(map(images, views)), roles)


def some(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- network -----------------------------------------------------------------------------------------------------------


def test_the_decoder_of_the_lecture_projects_reshapes_and_doubles_four_times() -> None:
    network = zoo.meta("autoencoder/64")
    decoder = network.get_submodule("decoders.0")
    assert cast(Any, decoder.get_submodule("linear.0")).out_features == 1024 * 4 * 4
    kernels = [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(k.in_channels, k.out_channels) for k in kernels] == [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert all(k.stride == (2, 2) for k in kernels)
    assert cast(Any, network)(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 3, 64, 64)


def test_the_papers_layers() -> None:
    """784-1000-500-250-30 and back."""
    shapes = [tuple(p.shape) for p in zoo.meta("autoencoder/mnist-30").parameters() if p.ndim == 2]
    assert shapes == [(1000, 784), (500, 1000), (250, 500), (30, 250), (250, 30), (500, 250), (1000, 500), (784, 1000)]


@pytest.mark.parametrize("name", ["tiny", "tiny-2d", "tiny-sparse", "tiny-swap"])
def test_code_and_back(name: str) -> None:
    network = network_of(name).eval()
    code = network.encode(some())
    assert code.shape == (4, network.config.code) and torch.equal(network.embed(some()), code)
    assert torch.equal(network(some()), network.decode(code)) and network(some()).shape == (4, 1, 16, 16)
    assert float(network(some()).detach().abs().max()) <= 1
    assert (float(code.detach().min()) >= 0) == (name == "tiny-sparse")
    assert network.results(network(some()), images(some()))[0].pixels.shape == (16, 16, 1)


def test_predict_reconstructs() -> None:
    model = create("autoencoder/tiny")
    result = model.predict((torch.rand(20, 20, 3) * 255).byte().numpy())[0]
    assert result.pixels.shape == (16, 16, 1) and result.pixels.dtype == torch.uint8


def test_bad_pictures_codes_and_domains_are_named() -> None:
    network = network_of("tiny-swap")
    with pytest.raises(UsageError, match=r"shape \(1, 16, 16\), found \(3, 16, 16\)"):
        network.encode(torch.zeros(2, 3, 16, 16))
    with pytest.raises(UsageError, match=r"shape \(B, 32\), found \(2, 31\)"):
        network.decode(torch.zeros(2, 31))
    with pytest.raises(UsageError, match="2 decoders, counted from 0; found domain 2"):
        network.decode(torch.zeros(2, 32), 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 10}, "size 10 must be a multiple of 4"),
        ({"widths": ()}, "one stage at least"),
        ({"code": 0}, "at least 1"),
        ({"decoders": 9}, "decoders in 1..4"),
    ],
)
def test_bad_configurations_are_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        network_of(**changes)


def test_unknown_names_are_named() -> None:
    with pytest.raises(UnknownNameError, match="convolutional"):
        network_of(layout="convolutionl")
    with pytest.raises(UnknownNameError, match="gelu"):
        network_of(activation="gellu")


# --- objective ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_lectures_formula() -> None:
    network, pixels = network_of("tiny-sparse"), some()
    code = network.encode(pixels)
    error = (network.decode(code) - pixels).square().mean()
    for penalty, size in (("l1", code.abs()), ("l2", code.square())):
        terms = objective(network, sparsity=0.01, penalty=penalty).forward(batch(pixels), AT)
        torch.testing.assert_close(terms["error"], error)
        torch.testing.assert_close(terms["sparsity"], 0.01 * size.sum(1).mean())
    assert set(objective(network).forward(batch(pixels), AT)) == {"error"}


def test_l1_pulls_with_one_force_and_l2_with_shrinking_steps() -> None:
    """d|a| / da = 1 however small the activation is; d a^2 / da = 2a."""
    for size in (1.0, 1e-3):
        activation = torch.tensor([[size]], requires_grad=True)
        assert torch.autograd.grad(activation.abs().sum(1).mean(), activation)[0].item() == 1
        assert torch.autograd.grad(activation.square().sum(1).mean(), activation)[0].item() == pytest.approx(2 * size)


def test_noise_is_what_it_says() -> None:
    pixels, noise = some(2000), Noise(0, 2000)
    normal, uniform = noise.normal(1, 16, 16), noise.uniform(1, 16, 16)
    assert float((corrupted(pixels, "gaussian", 0.5, normal) - pixels).std()) == pytest.approx(0.5, rel=0.01)
    masked = corrupted(pixels, "masking", 0.3, uniform, dark=-1.0)
    assert float((masked != pixels).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert bool((masked[masked != pixels] == -1).all())
    assert torch.equal(corrupted(pixels, "none", 0.3, uniform), pixels)
    toned = corrupted(pixels, "tone", 0.6, uniform)
    assert float(toned.abs().max()) <= 1 + 1e-6
    centred, before = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (toned, pixels))
    gain = (centred * before).sum(1) / before.square().sum(1)
    torch.testing.assert_close(centred, gain[:, None] * before, atol=1e-5, rtol=0)
    assert 0.39 < float(gain.abs().min()) < 0.45 and float((gain < 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_the_encoder_sees_noise_and_the_error_does_not() -> None:
    network = network_of()
    method = objective(network, noise="gaussian", amount=0.4)
    torch.manual_seed(3)
    found = method.forward(batch(some()), AT)["error"]
    torch.manual_seed(3)
    seen = some() + 0.4 * torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(found, (network(seen) - some()).square().mean())


def test_each_domain_has_its_decoder() -> None:
    network = network_of("tiny-swap")
    one, two = some(4, 1), some(4, 2)
    terms = objective(network).forward(batch(one, one, two), AT)
    torch.testing.assert_close(terms["error/a"], (network.decode(network.encode(one), 0) - one).square().mean())
    torch.testing.assert_close(terms["error/b"], (network.decode(network.encode(two), 1) - two).square().mean())
    assert torch.equal(network.swap(one, 1), network.decode(network.encode(one), 1))
    with pytest.raises(DataError, match="no pictures of the role 'a'"):
        objective(network).forward(batch(one), AT)


def test_figures_and_alarm() -> None:
    network = network_of("tiny-sparse")
    method = objective(network, sparsity=1e-3)
    method.forward(batch(some()), AT)
    figures = method.figures()
    assert 0 < figures["active"] < 1 and method.alarm(figures) is None
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.fill_(-1.0)
    method.forward(batch(some().abs()), AT)
    assert method.figures()["active"] == 0 and "same code" in cast(str, method.alarm(method.figures()))
    assert float(active(torch.tensor([[1.0, 0.0], [0.02, 0.001]]))) == 0.5


def test_bad_options_are_sentences() -> None:
    network = network_of()
    with pytest.raises(UnknownNameError, match="gaussian"):
        objective(network, noise="gausian")
    with pytest.raises(UnknownNameError, match="l2"):
        objective(network, penalty="l3")
    with pytest.raises(UsageError, match="share is below 1"):
        objective(network, noise="masking", amount=1.0)
    with pytest.raises(UsageError, match="must not be negative"):
        objective(network, sparsity=-1.0)
    with pytest.raises(CapabilityError, match="has none"):
        Reconstruction(network).forward(Batch(None, (None,), ("0",)), AT)


# --- learning ----------------------------------------------------------------------------------------------------------


def trained(network: Autoencoder, pixels: Tensor, steps: int, **options: Any) -> Autoencoder:
    method = objective(network.train(), **options)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        loss = torch.stack(list(method.forward(batch(pixels), AT).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@torch.no_grad()
def test_l1_leaves_fewer_units_active_than_l2_at_a_similar_error() -> None:
    from opticus.recipes.lab import pictures, pixels_of

    pixels = pixels_of(network_of("tiny-sparse"), pictures("digits", "train", 128))[0]
    found: dict[str, tuple[float, float]] = {}
    for penalty, sparsity in (("l1", 1e-3), ("l2", 2e-3)):
        with torch.enable_grad():
            network = trained(network_of("tiny-sparse"), pixels, 200, sparsity=sparsity, penalty=penalty)
        code = network.encode(pixels)
        found[penalty] = float(active(code)), float((network.decode(code) - pixels).square().mean())
    assert found["l1"][0] < 0.6 * found["l2"][0], found
    assert found["l1"][1] < 1.2 * found["l2"][1], found


# --- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [recipes.small(), recipes.denoising(), recipes.sparse(), recipes.swap()], ids=lambda r: r.model)
def test_recipes_fit_the_objective(recipe: Any) -> None:
    network = zoo.create(recipe.model, **recipe.changes)
    assert isinstance(zoo.paper("autoencoder").objective(network, **recipe.options), Reconstruction)
    assert len(recipe.note) >= 20
