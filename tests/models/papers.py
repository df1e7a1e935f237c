"""What the generic suite runs on: every paper file, found by looking at the folder; nothing is listed here by name."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.parity.fill import fill_module, picture
from opticus.parity.manifests import read
from opticus.structures import Batch, Classes, Images, Instances, Objective, Picture, Prepare, Progress, Target
from opticus.transforms.prepare import prepare

PAPERS = tuple(zoo.paper_files())


@functools.cache
def record(paper: str) -> dict[str, Any]:
    return read(paper)


@functools.cache
def on_meta(name: str) -> nn.Module:
    """The variant on the meta device; do not change it."""
    return zoo.meta(name)


@functools.cache
def smallest(paper: str) -> str:
    """The variant that the tests can afford to train: "tiny" if there is one, else the one with the fewest parameters."""
    variants = zoo.paper(paper).VARIANTS
    if "tiny" in variants:
        return f"{paper}/tiny"
    return min((f"{paper}/{v}" for v in variants), key=lambda name: sum(p.numel() for p in on_meta(name).parameters()))


def new(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create(name, **changes)


def filled(name: str) -> nn.Module:
    """The variant with formula-made weights: no output is trivial, no bias or statistic at its initial value."""
    network = zoo.create(name)
    fill_module(network)
    if hasattr(network, "wh"):  # CenterNet's size head may come out negative everywhere: then there are no boxes to look at
        nn.init.constant_(network.get_parameter("wh.2.bias"), 3.0)
    if hasattr(network, "ct_heats"):  # ExtremeNet groups four kinds of points of one class: they agree where one class is strong
        for kind in ("t", "l", "b", "r"):
            network.get_parameter(f"{kind}_heats.0.2.bias").data[3] += 3.0
    return network


def rule_of(network: nn.Module) -> Prepare:
    return cast(Prepare, cast(Any, network).prepare)


def classes_of(network: nn.Module) -> int:
    """Classes that the network tells apart; ten kinds of pictures for a network without classes."""
    return int(getattr(cast(Any, network).config, "classes", 10)) or 10


def side_of(network: nn.Module) -> int:
    """Side of a square picture that the network's own rule neither shrinks nor enlarges."""
    rule = rule_of(network)
    if rule.resize == "none":
        return 96
    return rule.crop[0] if rule.crop is not None else rule.size[0]


def scenes(count: int, side: int, task: str, classes: int, channels: int) -> tuple[list[Picture], list[Target]]:
    """Pictures with one or two bright rectangles on a dark ramp, and the targets that `task` needs; deterministic."""
    pictures: list[Picture] = []
    targets: list[Target] = []
    for i in range(count):
        ground = torch.from_numpy(picture(side, side, i, channels)).to(torch.int64) // 4
        boxes, labels = [], []
        for j in range(2 - i % 2 if task == "detect" else 1):
            label = (3 * i + 5 * j) % classes
            width, height = side * (3 + i % 3) // 10, side * (4 - j) // 10
            left, top = side * (1 + (i + 4 * j) % 5) // 10, side * (1 + 4 * j + i % 2) // 10
            colour = torch.tensor([80 + (37 * label) % 176, 80 + (71 * label) % 176, 80 + (113 * label) % 176])[:channels]
            ground[top : top + height, left : left + width] = colour
            boxes.append([left, top, left + width, top + height])
            labels.append(label)
        pictures.append(Picture(ground.clamp(0, 255).to(torch.uint8)))
        if task == "detect":
            targets.append(Instances(torch.tensor(boxes).float(), torch.tensor(labels), (side, side)))
        else:
            targets.append(Classes(torch.tensor(labels)))
    return pictures, targets


def batch_for(network: nn.Module, task: str, count: int) -> Batch:
    """A batch in the network's own preparation whose pictures need no resampling, so that targets are in input pixels."""
    rule = rule_of(network)
    side = side_of(network)
    pictures, targets = scenes(count, side, task, classes_of(network), rule.channels)
    images = prepare(pictures, rule)
    batch = Batch(images, tuple(targets), tuple(f"scene {i}" for i in range(count)))
    if task == "translate" and getattr(module_of(network), "TARGETS", "") != "classes":
        answers = answers_to(network, pictures, side)
        batch.targets = tuple(answers)
        batch.views, batch.roles = (images, images._replace(pixels=-images.pixels)), ("a", "b")
    if task == "embed":  # a second view of every picture: mirrored and darker
        batch.views, batch.roles = (images, images._replace(pixels=images.pixels.flip(3) * 0.8)), ("global", "global")
    return batch


def module_of(network: nn.Module) -> ModuleType:
    """The paper's file that a network's class, or its config's, comes from."""
    stems = (type(part).__module__.rpartition(".")[2] for part in (cast(Any, network).config, network))
    return zoo.paper(next(stem for stem in stems if stem in PAPERS))


def answers_to(network: nn.Module, pictures: list[Picture], side: int) -> list[Picture]:
    """A target for every picture: its negative, in the channels and `scale` times the size that the network answers in."""
    scale, rule = int(getattr(network, "scale", 1)), cast(Prepare, getattr(network, "produces", rule_of(network)))
    negatives = [255 - picture.pixels.permute(2, 0, 1) for picture in pictures]
    shaped = [one if len(one) == rule.channels else one[:1].expand(rule.channels, -1, -1) for one in negatives]
    return [Picture(one.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).contiguous()) for one in shaped]


def inputs_of(network: nn.Module, images: Images) -> tuple[Tensor, ...]:
    """What the network's forward takes, a row per picture: pixels, or what the paper's own `inputs(network, images)` says."""
    own = getattr(module_of(network), "inputs", None)
    return (images.pixels,) if own is None else own(network, images)


def terms_of(objective: Objective, batch: Batch, step: int = 0, steps: int = 1) -> Tensor:
    """The sum of all terms of all phases of a step."""
    totals = [sum(objective.forward(batch, at(step, steps)._replace(phase=p)).values()) for p in objective.phases(step)]
    return torch.stack([torch.as_tensor(total) for total in totals]).sum()


def images_of(batch: Batch) -> Images:
    assert batch.images is not None
    return batch.images


def at(step: int, steps: int) -> Progress:
    return Progress(step, 0, steps, 1)


def objective_of(paper: str, network: nn.Module) -> Objective:
    options = getattr(zoo.paper(paper), "OVERFIT", {}).get("options", {})  # a head of a size that tests can afford
    return zoo.paper(paper).objective(network, **options)
