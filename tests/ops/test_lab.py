import numpy as np
import pytest
import torch

from opticus.ops.lab import to_lab, to_rgb

color = pytest.importorskip("skimage.color")


def cube() -> torch.Tensor:
    side = torch.linspace(0, 1, 18, dtype=torch.float64)
    return torch.stack(torch.meshgrid(side, side, side, indexing="ij")).reshape(1, 3, 18, -1)


def test_lab_is_scikit_image_s() -> None:
    rgb = cube()
    wanted = torch.from_numpy(color.rgb2lab(rgb[0].permute(1, 2, 0).numpy())).permute(2, 0, 1)
    torch.testing.assert_close(to_lab(rgb)[0], wanted, rtol=0, atol=1e-10)


def test_and_back_also_outside_of_srgb() -> None:
    rgb = cube()
    torch.testing.assert_close(to_rgb(to_lab(rgb)), rgb, rtol=0, atol=1e-6)
    maker = np.random.default_rng(0)
    lab = np.stack([maker.uniform(0, 100, (20, 20)), *maker.uniform(-120, 120, (2, 20, 20))], -1)
    with pytest.warns(UserWarning, match="negative Z"):
        wanted = color.lab2rgb(lab)
    found = to_rgb(torch.from_numpy(lab).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=1e-10)


def test_gradients_are_finite_at_the_edges() -> None:
    rgb = torch.tensor([0.0, 1.0, 0.04045]).double().reshape(1, 3, 1, 1).requires_grad_()
    to_rgb(to_lab(rgb)).sum().backward()
    assert bool(torch.isfinite(rgb.grad).all()) and float(rgb.grad.abs().max()) > 0.1
