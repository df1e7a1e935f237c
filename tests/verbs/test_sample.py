"""sample and reconstruct: seeds, batches, conditions, walks, sheets, bad input; on the toys of this file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opticus
from opticus.structures import CapabilityError, Noise, Prepare, UnknownNameError, UsageError
from opticus.verbs.evaluate_pictures import drawn, features_of, reconstructions
from opticus.verbs.models import Card
from opticus.verbs.sample import slerp


@dataclass
class Config:
    classes: int = 0


class Toy(nn.Module):
    """Draws a blurred disc whose place comes from the latents and whose brightness from the class."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.config = Config(classes)
        self.prepare = Prepare(channels=1, resize="fixed", size=(16, 16), mean=(0.5,), std=(0.5,))
        self.card = Card("toy/tiny", "generate", tuple("abc") if classes else None, own=True)
        self.gain = nn.Parameter(torch.ones(()))

    def latents(self, noise: Noise) -> Tensor:
        return noise.normal(2)

    def render(self, latents: Tensor, *, condition: Any = None, steps: int | None = None) -> Tensor:
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        cy, cx = (8 + 2 * latents[:, i, None, None] for i in range(2))
        light = 1.0 if condition is None else (1 + condition[:, None, None]) / 3
        return (2 * light * torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8) * self.gain - 1)[:, None]

    def sample(self, noise: Noise, *, condition: Any = None, steps: int | None = None, louder: float = 1.0) -> Tensor:
        if self.config.classes and condition is None:
            condition = noise.integers(self.config.classes)
        return self.render(self.latents(noise), condition=condition) * louder

    def encode(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents, scale_factor=2)


def test_noise_belongs_to_samples() -> None:
    whole, part = Noise(3, 8), Noise(3, 2, first=5)
    assert torch.equal(whole.normal(3, 4)[5:7], part.normal(3, 4))
    assert torch.equal(whole.uniform(2)[5:7], part.uniform(2))
    probs = torch.tensor([[0.1, 0.0, 0.9]]).expand(8, 3)
    assert torch.equal(whole.choice(probs)[5:7], part.choice(probs[:2]))
    draws = Noise(0, 4000).choice(torch.tensor([[0.1, 0.0, 0.9]]).expand(4000, 3)).bincount(minlength=3) / 4000
    assert draws[1] == 0 and abs(float(draws[0]) - 0.1) < 0.02
    assert abs(float(Noise(1, 2000).normal(1).mean())) < 0.08
    with pytest.raises(UsageError, match="at least one sample"):
        Noise(0, 0)


def test_pictures_depend_on_seed_and_number_alone() -> None:
    model = Toy()
    whole = opticus.sample(model, 12, seed=4)
    assert len(whole) == 12 and whole.pixels.shape == (12, 1, 16, 16) and whole.pictures[0].pixels.shape == (16, 16, 1)
    for batch in (1, 5, 64):
        torch.testing.assert_close(opticus.sample(model, 12, seed=4, batch=batch).pixels, whole.pixels)
    torch.testing.assert_close(opticus.sample(model, 3, seed=4, first=7).pixels, whole.pixels[7:10])
    assert not torch.equal(opticus.sample(model, 12, seed=5).pixels, whole.pixels)


def test_classes_by_name_and_number() -> None:
    model = Toy(3)
    by_name, by_number = (opticus.sample(model, 3, condition=c) for c in (["a", "b", "c"], torch.arange(3)))
    assert torch.equal(by_name.pixels, by_number.pixels) and by_name.labels is not None and by_name.labels.tolist() == [0, 1, 2]
    assert opticus.sample(model, 2, condition="c").labels.tolist() == [2, 2]  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError, match="class 'd'"):
        opticus.sample(model, 2, condition="d")
    with pytest.raises(UsageError, match=r"classes 0\.\.2, found 3"):
        opticus.sample(model, 2, condition=3)
    with pytest.raises(UsageError, match="need one class or 3 of them, found 2"):
        opticus.sample(model, 3, condition=[0, 1])
    with pytest.raises(CapabilityError, match="draws without classes"):
        opticus.sample(Toy(), 2, condition=1)


def test_a_walk_starts_and_ends_at_pictures() -> None:
    model = Toy()
    walk, ends = opticus.sample(model, 3, between=4, seed=1), opticus.sample(model, 3, seed=1)
    assert walk.pixels.shape[0] == 12 and walk.columns == 4
    torch.testing.assert_close(walk.pixels[::4], ends.pixels)
    a, b = Noise(0, 5).normal(30), Noise(1, 5).normal(30)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    lengths = slerp(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), 0.4).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5))


def test_options_are_checked() -> None:
    louder = opticus.sample(Toy(), 2, louder=0.5).pixels
    torch.testing.assert_close(louder, opticus.sample(Toy(), 2).pixels * 0.5)
    with pytest.raises(UnknownNameError, match="option of toy/tiny's sampler 'loud'"):
        opticus.sample(Toy(), 2, loud=0.5)
    for bad in ({"n": 0}, {"batch": 0}, {"between": 0}, {"steps": 0}):
        with pytest.raises(UsageError, match="must be at least 1"):
            opticus.sample(Toy(), **bad)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match="draws no pictures"):
        opticus.sample(opticus.create("lenet/5"), 2)


def test_sheets_and_files(tmp_path: Path) -> None:
    made = opticus.sample(Toy(), 7)
    image = made.plot()
    assert image.size == (3 * 66 + 2, 3 * 66 + 2)
    made.save(tmp_path / "grid.png")
    made.save(tmp_path / "each")
    assert len(list((tmp_path / "each").glob("*.png"))) == 7
    with pytest.raises(UnknownNameError, match="picture suffix"):
        made.save(tmp_path / "grid.xyz")


def test_drawn_pictures_are_compared_with_real_ones() -> None:
    data = opticus.open_data("digits", "val")
    values, protocol, shown = drawn(Toy(), data, "val", count=100, batch=64, device=None, quiet=True, samples=60)
    assert values["FID"] > 1 and protocol["features"] == "pixels" and protocol["samples"] == 60 and len(shown) == 60
    classifier = opticus.create("lenet/5")
    values, protocol, _ = drawn(Toy(), data, "val", count=100, batch=64, device=None, quiet=True, samples=60, features=classifier)
    assert {"confidence", "evenness"} <= values.keys() and protocol["features"] == "lenet/5" and len(protocol["weights"]) == 16
    real = [data[i].picture for i in range(20)]
    seen = features_of(real, None, Toy().prepare).vectors
    assert seen.shape == (20, 256) and seen.min() >= 0 and seen.max() <= 1
    with pytest.raises(UsageError, match="at least 6"):
        drawn(Toy(), data, "val", count=100, batch=64, device=None, quiet=True, samples=3)


def test_reconstruction_says_how_far_it_is() -> None:
    model = Toy()
    flat = np.full((16, 16, 1), 128, np.uint8)
    checked = (np.indices((16, 16)).sum(0)[..., None] % 2 * 255).astype(np.uint8)
    found = list(opticus.reconstruct(model, [flat, checked]))
    assert found[0].psnr == 100.0 and found[1].psnr < 7
    assert found[1].plot().size[0] > found[1].plot().size[1]
    with pytest.raises(CapabilityError, match=r"no encode\(\) and decode\(\)"):
        reconstructions(opticus.create("lenet/5"), [SimpleNamespace(pixels=torch.zeros(4, 4, 1, dtype=torch.uint8))])  # type: ignore[list-item]


def test_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "imagegpt.safetensors"
    opticus.create("imagegpt/tiny", size=6, depth=1, probe=1).save(path)
    command = [
        sys.executable,
        "-m",
        "opticus",
        "sample",
        str(path),
        "n=4",
        "seed=1",
        "--grid",
        f"out={tmp_path / 'o'}",
        "--quiet",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["path"]).is_file()
    done = subprocess.run([*command, "top=2", "loud=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "loud" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command[:3], "reconstruct", str(path), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and done.stderr.count("\n") == 1
