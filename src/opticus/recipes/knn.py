"""Recipe for k nearest neighbours, and its loop: one pass over the training pictures, which are stored."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice
from typing import Any, cast

from opticus.structures import Dataset, Progress
from opticus.training.log import Bar, Log
from opticus.training.recipe import Job, Outcome, Recipe
from opticus.training.state import check_environment, environment, load_state, save_state
from opticus.transforms.geometry import Resize
from opticus.weights.save import save

LARGEST = 32  # side in pixels to which larger pictures are reduced: CIFAR-10's
BATCH = 2048


def default(model: str, data: Dataset) -> Recipe:
    """A memory for all of the data, in pictures of its own size up to 32x32; nothing is drawn at random."""
    height, width, channels = data[0].picture.pixels.shape
    count, size = len(data), min(max(height, width), LARGEST)
    return Recipe(
        model,
        "digits" if channels == 1 else "crops",
        changes={"capacity": count, "size": size, "channels": channels},
        transforms=(Resize((size, size)),),
        batch=max(share for share in range(1, min(count, BATCH) + 1) if count % share == 0),  # so that no picture is left over
        epochs=1,
        loop=loop,
        note="stores every training picture once; there is nothing to optimise",
    )


def loop(job: Job) -> Outcome:
    """Store one epoch of batches, ordered by sample id so that neither seed nor batch size matters, then evaluate.

    It writes the run folder that `training.loop` writes: results.csv, weights, a state from which a killed run goes on.
    """
    objective, network = job.objective, cast(Any, job.objective.network)
    steps = min(job.steps, job.steps_per_epoch)  # a second pass would store the same pictures again
    conditions = environment(1, "cpu") | job.conditions()
    step, ids = 0, list[str]()
    if job.resume:
        saved = load_state(job.out)
        check_environment(saved["environment"], conditions, job.out)
        network.load_state_dict(saved["objective"])
        step, ids = saved["step"], saved["ids"]
    batches, start = job.batches(step * job.recipe.accumulate, 0, 1), time.perf_counter()

    def keep(values: dict[str, float]) -> None:
        save(network, job.out / "weights" / "last.safetensors", meta={**job.meta, "step": step, "values": values})
        state = {"step": step, "ids": ids, "values": values, "objective": network.state_dict(), "environment": conditions}
        save_state(job.out, state)

    with closing(Log(job.out, step if job.resume else None)) as log, closing(Bar(steps, step, job.quiet)) as bar:
        while step < steps:
            for batch in islice(batches, job.recipe.accumulate):
                objective.forward(batch, Progress(step, 0, steps, 1))
                ids.extend(batch.ids)
            step += 1
            bar.step(0.0, len(ids) / (time.perf_counter() - start), {})
            if step == steps:
                network.arrange(sorted(range(len(ids)), key=lambda place: (ids[place], place)))
                ids.sort()
            if step % job.recipe.save_every == 0 and step < steps:
                keep({})
        values = {} if job.evaluate is None or job.recipe.evaluate_every == 0 else job.evaluate(network.eval())
        row = {"step": step, "epoch": 1, "seconds": time.perf_counter() - start, "train/stored": len(network)}
        log.write(row | {f"val/{name}": value for name, value in values.items()})
    keep(values)
    return Outcome(network, job.out, step, values)
