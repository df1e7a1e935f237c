"""The loop of detectors whose last layers are solved, not learned: R-CNN and SPP-net.

After the gradient steps (fine-tuning) every region of every picture is described once, into flat files of the run folder; from
these the network's `steps()` are solved one by one. Each of the three can be killed and resumed: a run that goes on finds what is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from opticus.matching.described import Described, Table
from opticus.matching.objects import Objects, objects_of
from opticus.matching.regions import keeping, listed, regions_in
from opticus.ops import collectives
from opticus.ops.boxes import map_boxes
from opticus.structures import Batch, Dataset, Images, Instances, TrainError, WeightsError
from opticus.training.log import Log
from opticus.training.loop import loop
from opticus.training.recipe import Job, Outcome
from opticus.transforms.prepare import prepare
from opticus.weights.read import read
from opticus.weights.save import read_meta, save

FOLDER = "features"


@dataclass(frozen=True)
class Solved:
    """Fine-tune, describe at most `pictures` training pictures (None: all), solve, evaluate; `keep` leaves the descriptions on disk."""

    pictures: int | None = None
    keep: bool = False

    def __call__(self, job: Job) -> Outcome:
        if job.data is None or collectives.world_size() > 1:
            found = "no data set" if job.data is None else f"{collectives.world_size()} processes"
            raise TrainError(f"regions are described by one process that sees the whole data set, found {found}")
        outcome = loop(dataclasses.replace(job, evaluate=None))
        network = outcome.network.eval()
        started = time.perf_counter()
        count = len(job.data) if self.pictures is None else min(self.pictures, len(job.data))
        passport = passport_of(network, job.data, count)
        folder = job.out / FOLDER
        if not _recall(network, folder, passport, list(cast(Any, network).steps())):
            table = describe(network, job.data, count, Table(folder, passport), job.quiet)
            solve(network, table, job, passport)
        values = {} if job.evaluate is None else job.evaluate(network)
        meta = {**job.meta, "step": outcome.steps, "values": values}
        for name in ("last", "best"):
            save(network, job.out / "weights" / f"{name}.safetensors", meta=meta)
        log = Log(job.out, outcome.steps)
        row = {f"val/{name}": value for name, value in values.items()}
        log.write({"step": outcome.steps, "seconds": time.perf_counter() - started, "solved/pictures": count, **row})
        log.close()
        if not self.keep:
            for file in folder.glob("*.flat"):
                file.unlink()
        best = values.get(job.metric)
        return dataclasses.replace(outcome, network=network, values=values, best=best)


def describe(network: nn.Module, data: Dataset, count: int, table: Table, quiet: bool = True) -> Described:
    """Every proposal and object of the first `count` pictures, as the network in evaluation mode sees them; goes on where it stopped."""
    net = cast(Any, network)
    where = next(network.parameters()).device
    bar: Any = tqdm(total=count, initial=table.pictures, unit="img", desc="describe", file=sys.stderr, disable=quiet, leave=False)
    with bar, keeping():
        for i in range(table.pictures, count):
            sample = data[i]
            images = prepare([sample.picture], net.prepare).to(where)
            truth = objects_of([sample.target], net.config.classes, [sample.id])[0]
            boxes = map_boxes(truth.boxes.float(), images.to_input[0]).to(where)
            add(net, images, Objects(boxes, truth.labels), table)
            bar.update(1)
    return table.read()


@torch.inference_mode()
def add(network: Any, images: Images, truth: Objects, table: Table) -> None:
    """Describe the regions of one prepared picture whose objects are given in its pixels, and add them to the table."""
    proposals = regions_in(images.pixels, images.valid, network.prepare, network.search)[0]
    boxes, pictures = listed([torch.cat([proposals, truth.boxes.to(proposals)])], images.pixels)
    pooled = network.pooled(network.see(images.pixels), boxes, pictures)
    vectors = network.head.embed(pooled)
    table.add(proposals.cpu(), Objects(truth.boxes.cpu(), truth.labels.cpu()), vectors, pooled)


def solve_batch(network: nn.Module, batch: Batch, table: Table) -> None:
    """Describe the pictures of one batch and solve all steps from them."""
    if batch.images is None:
        raise TrainError(f"regions are described in images, batch {batch.ids[:1]} has none")
    for i, target in enumerate(batch.targets):
        one = batch.images
        valid = None if one.valid is None else one.valid[i : i + 1]
        images = Images(one.pixels[i : i + 1], valid, one.to_input[i : i + 1], one.sizes[i : i + 1])
        truth = cast(Instances, target)
        add(cast(Any, network), images, Objects(truth.boxes, truth.labels), table)
    for step in cast(Any, network).steps().values():
        step(table.read())


def solve(network: nn.Module, table: Described, job: Job, passport: dict[str, Any]) -> None:
    """Run the network's steps; what each leaves is written before the next begins, and one that was made is not made again."""
    head = cast(nn.Module, cast(Any, network).head)
    for name, step in cast(Any, network).steps().items():
        if _recall(network, job.out / FOLDER, passport, [name]):
            continue
        if not job.quiet:
            print(f"opticus: solving {name} from {len(table.boxes)} regions", file=sys.stderr)  # noqa: T201 - minutes may pass
        step(table)
        state = {key: value for key, value in head.state_dict().items() if key.startswith(f"{name}.")}
        save(state, job.out / FOLDER / f"{name}.safetensors", meta={"passport": passport})


def _recall(network: nn.Module, folder: Any, passport: dict[str, Any], names: list[str]) -> bool:
    """Take over solutions of these steps that were made under the same passport; False unless all of them are there."""
    head, found = cast(nn.Module, cast(Any, network).head), dict[str, Tensor]()
    for name in names:
        file = folder / f"{name}.safetensors"
        try:
            if not file.is_file() or read_meta(file)["passport"] != json.loads(json.dumps(passport)):
                return False
            found |= read(file).state
        except (WeightsError, KeyError):
            return False
    head.load_state_dict(found, strict=False)
    return True


def passport_of(network: nn.Module, data: Dataset, count: int) -> dict[str, Any]:
    """What decides the descriptions: the learned tensors, the settings, the pictures."""
    net = cast(Any, network)
    digest = hashlib.sha256(f"{net.config} {net.prepare} {net.search}".encode())
    for name, tensor in network.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for name, tensor in network.named_buffers():
        if not name.startswith("head."):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"network": digest.hexdigest(), "data": data.hash, "pictures": count}


__all__ = ["FOLDER", "Solved", "add", "describe", "passport_of", "solve", "solve_batch"]
