"""Methods without labels: two processes with half a batch each give the gradient, and the state, of one with all of it."""

import multiprocessing
import re
import socket

import pytest
import torch
from torch import distributed

from opticus import zoo
from opticus.layers.norm import sync_norms
from opticus.ops.collectives import all_gather, all_reduce
from opticus.structures import Batch, Images, Progress


def every_other(batch, rows, columns, generator=None):
    """A mask of MAE that does not depend on the process."""
    return (torch.arange(rows * columns) % 4 > 0).expand(len(batch), -1)


HEAD = {"outputs": 12, "hidden": 24, "bottleneck": 16, "frozen_epochs": 0, "momentum": 0.9}
# name -> paper and options of a small objective; what is drawn at random depends on the process, so that nothing is
METHODS = {
    "dino": ("dino", {**HEAD, "head_norm": True}),
    "dino, sinkhorn": ("dino", {**HEAD, "balance": "sinkhorn"}),
    "mae": ("mae", {"mask": every_other}),
    "simclr": ("simclr", {"outputs": 16}),
    "moco": ("moco", {"queue": 24, "outputs": 16, "momentum": 0.9}),
    "byol": ("byol", {"hidden": 24, "outputs": 16, "momentum": 0.9}),
    "barlow": ("barlow", {"hidden": 24, "outputs": 16}),
    "infomin": ("infomin", {"queue": 24, "outputs": 16, "momentum": 0.9}),
    "swav": ("swav", {"prototypes": 5, "hidden": 24, "outputs": 16, "queue": 6, "queue_epoch": 0, "frozen_epochs": 0}),
    "deepcluster": ("deepcluster", {"prototypes": (3, 2), "hidden": 24, "outputs": 16, "every": 1, "memory": 4}),
    "obow": ("obow", {"words": 12, "hidden": 24, "sample": "global", "momentum": 0.9}),
}
ROLES = ("global", "global", "local", "local", *["patch"] * 9)


def batch_of(indices, seed):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(6, 3, side, side, dtype=torch.float64, generator=generator) for side in [32] * 2 + [16] * 2 + [8] * 9]
    eye = torch.eye(3, dtype=torch.float64).expand(len(indices), 3, 3)
    images = tuple(Images(view[indices], None, eye, ((32, 32),) * len(indices)) for view in views)
    return Batch(images[0], (None,) * len(indices), tuple(map(str, indices)), images, ROLES)


def two_steps(method, indices):
    """(gradient of the second step averaged over processes, all tensors that it left in the objective) as flat vectors."""
    paper, options = METHODS[method]
    torch.manual_seed(0)
    objective = zoo.paper(paper).objective(zoo.create(f"{paper}/tiny"), **options).double().train()
    sync_norms(objective)
    for step in range(2):  # queues, memory and labels of the first take part in the second
        at = Progress(step, 0, 10, 1)
        objective.zero_grad()
        sum(objective(batch_of(indices, step), at).values()).backward()
        gradient = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in objective.parameters_of("all")]
        )
        with torch.no_grad():  # a step, so that momentum encoders have something to follow
            for parameter in objective.parameters_of("all"):
                parameter.mul_(1.1)
        objective.after_step(at)
    # OBoW's generators see the same words in all processes, whose number enters the unbiased variance that only eval mode would use
    kept = {key: value for key, value in objective.state_dict().items() if not re.search(r"generators.+running_var", key)}
    state = torch.cat([value.double().flatten() for value in kept.values()])
    return all_reduce(gradient, "mean"), state


def work(rank, port, queue):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for method in METHODS:
        gradient, state = two_steps(method, [0, 1, 2] if rank == 0 else [3, 4, 5])
        same = all_gather(state)
        if rank == 0:
            queue.put((method, gradient.numpy(), state.numpy(), float((same[0] - same[1]).abs().max())))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {method: rest for method, *rest in (queue.get(timeout=600) for _ in METHODS)}
    for process in processes:
        process.join(60)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(two_processes, method):
    gradient, state, apart = two_processes[method]
    alone, left = two_steps(method, list(range(6)))
    assert float(alone.norm()) > 1e-3
    torch.testing.assert_close(torch.from_numpy(gradient), alone, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.from_numpy(state), left, rtol=1e-6, atol=1e-9)
    assert apart <= 1e-12, "the processes' states differ"
