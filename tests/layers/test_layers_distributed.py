"""Two gloo processes equal one: collectives with their gradients, and SyncNorm with unequal shares."""

import os

import torch
from torch import distributed, multiprocessing, nn

from opticus.layers.norm import sync_norms
from opticus.ops import collectives


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).double()


def data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64) * 3 + 50, torch.randn(
        5, 2, 4, 4, generator=generator
    ).double()


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pixels, weight = data()
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    net, x = sync_norms(network()), pixels[mine].clone().requires_grad_()
    out = net(x)
    (out * weight[mine]).sum().backward()
    gradients = [collectives.all_reduce(p.grad) for p in net.parameters()]
    v = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    gathered = collectives.all_gather(v)
    value = (gathered * torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1)).sum() + (
        collectives.all_reduce(v, "mean") * (rank + 1)
    ).sum()
    value.backward()
    facts = {
        "out": out.detach(),
        "x": x.grad,
        "gradients": gradients,
        "state": net.state_dict(),
        "gathered": gathered.detach(),
        "v": v.grad,
    }
    facts["world"] = (collectives.world_size(), collectives.rank())
    torch.save(facts, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    net, (pixels, weight) = network(), data()
    pixels.requires_grad_()
    out = net(pixels)
    (out * weight).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([a["out"], b["out"]]), out, **close)
    torch.testing.assert_close(torch.cat([a["x"], b["x"]]), pixels.grad, **close)
    for facts in (a, b):
        torch.testing.assert_close(facts["gradients"], [p.grad for p in net.parameters()], **close)
        torch.testing.assert_close(dict(facts["state"]), dict(net.state_dict()), **close)
        assert facts["gathered"].tolist() == [[1, 2], [2, 2]]
    assert (a["world"], b["world"]) == ((2, 0), (2, 1))
    # gradient of the sum of both ranks' values: gathered rows weigh 1 + 2, the mean (1 + 2) / 2
    assert a["v"].tolist() == [3 * 1 + 1.5, 3 * 2 + 1.5] and b["v"].tolist() == [3 * 3 + 1.5, 3 * 4 + 1.5]


def test_one_process_needs_no_group():
    value = torch.rand(3)
    assert collectives.all_reduce(value) is value and collectives.all_gather(value).shape == (1, 3)
    assert collectives.world_size() == 1 and collectives.rank() == 0
