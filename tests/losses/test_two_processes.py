"""Two processes with half a batch each give the gradient of one process with all of it."""

import multiprocessing
import socket

import pytest
import torch
from torch import distributed

from opticus.models.detection import centernet, detr
from opticus.structures import Batch, Images, Instances


def outputs(kind):
    generator = torch.Generator().manual_seed(3)
    shapes = ((3, 8, 8), (2, 8, 8), (2, 8, 8)) if kind == "centernet" else ((6, 4), (6, 4))
    return [torch.randn(4, *shape, dtype=torch.float64, generator=generator) for shape in shapes]


def loss_of(kind, leaves, indices):
    """The loss of the pictures `indices`, which have different numbers of objects."""
    counts = (4, 1, 0, 2)
    targets = tuple(
        Instances(torch.tensor([[4.0, 5.0, 20.0, 25.0]]).repeat(n, 1) + torch.arange(n)[:, None] * 2, torch.arange(n) % 3, (32, 32))
        for n in (counts[i] for i in indices)
    )
    eye = torch.eye(3, dtype=torch.float64).expand(len(indices), 3, 3)
    images = Images(torch.zeros(len(indices), 3, 32, 32), None, eye, ((32, 32),) * len(indices))
    batch = Batch(images, targets, tuple(map(str, indices)))
    if kind == "centernet":
        return sum(centernet.criterion(3)(centernet.Points(*leaves), batch).values())
    return sum(detr.SetCriterion()(detr.Answers(leaves[0], leaves[1].sigmoid()), batch).values())


def work(rank, port, kind, queue):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    indices = [0, 1] if rank == 0 else [2, 3]
    leaves = [leaf[indices].requires_grad_() for leaf in outputs(kind)]
    loss_of(kind, leaves, indices).backward()
    # DistributedDataParallel averages what the processes add up
    queue.put((rank, [(leaf.grad / 2).numpy() for leaf in leaves]))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["centernet", "detr"])
def test_two_processes_equal_one(kind):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, kind, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    leaves = [leaf.requires_grad_() for leaf in outputs(kind)]
    loss_of(kind, leaves, [0, 1, 2, 3]).backward()
    for i, leaf in enumerate(leaves):
        both = torch.cat([torch.from_numpy(found[0][i]), torch.from_numpy(found[1][i])])
        torch.testing.assert_close(both, leaf.grad, rtol=1e-9, atol=1e-12)
