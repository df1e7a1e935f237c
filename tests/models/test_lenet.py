"""LeNet-5: the paper's own counts."""

from __future__ import annotations

import pytest
import torch

from opticus import zoo
from opticus.models.backbones.lenet import TABLE, LeNet, Subsample, squash
from opticus.structures import Embedding, Images, UsageError


def test_layers_have_the_parameters_that_the_paper_counts() -> None:
    """Section II.B, layer by layer, and its total of 60,000 up to F6."""
    network = zoo.create("lenet/5", classes=0)
    counts = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert sum(counts.values()) == 60_000


def test_connections_of_c3() -> None:
    """Table I: six maps see 3, nine see 4, one sees all; every map of S2 feeds ten maps."""
    assert [len(seen) for seen in TABLE] == [3] * 6 + [4] * 9 + [6]
    assert len(set(TABLE)) == 16
    assert [sum(i in seen for seen in TABLE) for i in range(6)] == [10] * 6


def test_c3_ignores_what_it_does_not_see() -> None:
    network = zoo.create("lenet/5")
    assert isinstance(network, LeNet)
    x = torch.randn(1, 6, 14, 14)
    changed = x.clone()
    changed[:, 5] += 1
    same = (network.c3(x) == network.c3(changed)).flatten(2).all(2)[0]
    assert same.tolist() == [5 not in seen for seen in TABLE]


def test_squash_and_subsample() -> None:
    """Appendix A: f(1) = 1 and f(-1) = -1 within 1e-4, odd; S2 sums four inputs."""
    assert float(squash(torch.tensor(1.0))) == pytest.approx(1, abs=1e-4)
    assert float(squash(torch.tensor(-1.0))) == pytest.approx(-1, abs=1e-4)
    layer = Subsample(1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(0.25)
    found = layer(torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]]))
    torch.testing.assert_close(found, squash(torch.tensor([[[[0.5 * 1.0 + 0.25]]]])))


def test_another_size_is_refused_and_no_head_gives_embeddings() -> None:
    network = zoo.create("lenet/5", classes=0)
    with pytest.raises(UsageError, match="32x32 pixels, found 28x28"):
        network(torch.zeros(1, 1, 28, 28))
    out = network(torch.zeros(2, 1, 32, 32))
    images = Images(torch.zeros(2, 1, 32, 32), None, torch.eye(3).expand(2, 3, 3), ((32, 32),) * 2)
    results = network.results(out, images)
    assert all(isinstance(r, Embedding) and r.vector.shape == (84,) for r in results)


def test_grey_levels_are_the_papers() -> None:
    rule = zoo.create("lenet/5").prepare
    levels = [(value * rule.scale - rule.mean[0]) / rule.std[0] for value in (0, 255)]
    assert levels == pytest.approx([-0.1, 1.175])
