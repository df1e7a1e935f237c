"""Learning without labels: one training step of DINO against the authors' code, and features in images/s against timm.

The authors' repository is not on PyPI: the step's row needs a checkout in $OPTICUS_REFERENCES/dino and is left out without it. Both
sides hold equal weights, see the same views and make the same update (AdamW, centre, teacher); their losses are compared first.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from models import ROUNDS, SMALL_ROUNDS, Row, allow_torchvision, classifier, features, images_of, medians, row, same
from opticus import zoo
from opticus.models.selfsup import dino
from opticus.structures import Batch, Progress
from opticus.weights.load import load_into

BATCH = 8
# the lecture's table (CATALOGUE SS23): ImageNet 20-NN as published, images/s on a V100, and the systems here and in timm
TABLE = (
    ("ViT-S/16", "vit/s16", "vit_small_patch16_224", 1007),
    ("ViT-S/8", "vit/s8", "vit_small_patch8_224", 180),
    ("ViT-B/16", "vit/b16", "vit_base_patch16_224", 312),
    ("ResNet-50", "resnet/50", "resnet50", 1237),
)


def authors() -> tuple[Any, Any, Any] | None:
    """The modules of the authors' checkout, None where there is none."""
    root = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "dino"
    if not (root / "main_dino.py").is_file():
        print("  DINO's step: left out, no checkout in $OPTICUS_REFERENCES/dino", file=sys.stderr, flush=True)
        return None
    sys.path.insert(0, str(root))
    return tuple(importlib.import_module(name) for name in ("vision_transformer", "main_dino", "utils"))  # type: ignore[return-value]


def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, 3, side, side, generator=generator) for side in (224,) * 2 + (96,) * 8]


def peer_step(nets: Any, main: Any, utils: Any, crops: list[Tensor]) -> tuple[Callable[[], float], nn.ModuleDict]:
    """The authors' loop body: student, teacher, loss with its centre, AdamW, moving average."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29874", rank=0, world_size=1)
    student = utils.MultiCropWrapper(nets.vit_small(16), nets.DINOHead(384, 65536)).train()
    teacher = utils.MultiCropWrapper(nets.vit_small(16), nets.DINOHead(384, 65536)).train()
    teacher.load_state_dict(student.state_dict())
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    loss_of = main.DINOLoss(65536, 10, 0.04, 0.07, 30, 300)
    optimiser = torch.optim.AdamW(utils.get_params_groups(student), lr=1e-5)

    def step() -> float:
        loss = loss_of(student(crops), teacher(crops[:2]), 5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for q, k in zip(student.parameters(), teacher.parameters(), strict=True):
                k.data.mul_(0.996).add_((1 - 0.996) * q.detach().data)
        return float(loss)

    return step, nn.ModuleDict({"student": student, "teacher": teacher, "dino_loss": loss_of})


def our_step(crops: list[Tensor], state: dict[str, Tensor]) -> Callable[[], float]:
    objective = dino.objective(zoo.create("dino/s16"))
    load_into(objective, state, dino.TRAINING)
    objective.train()
    optimiser = torch.optim.AdamW(objective.parameters_of("all"), lr=1e-5)
    roles = ("global",) * 2 + ("local",) * 8
    batch = Batch(None, (None,) * BATCH, tuple("abcdefgh"), tuple(images_of(crop) for crop in crops), roles)
    at = Progress(50, 5, 3000, 300)

    def step() -> float:
        loss = objective.forward(batch, at)["dino"]
        optimiser.zero_grad()
        loss.backward()
        objective.before_update(at)
        optimiser.step()
        objective.after_step(at)
        return float(loss.detach())

    return step


def run(rounds: int = ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """Every row."""
    allow_torchvision()
    rows: list[Row] = []

    def keep(one: Row) -> None:
        rows.append(one)
        show(one)

    found = authors()
    if found is not None:
        crops = views()
        theirs, training = peer_step(*found, crops)
        state = {key: value.clone() for key, value in training.state_dict().items()}
        ours = our_step(crops, state)
        same("DINO's loss", [torch.tensor(ours())], [torch.tensor(theirs())])
        times = medians({"ours": ours, "peer": theirs}, SMALL_ROUNDS)
        keep(row(f"DINO, ViT-S/16, batch {BATCH}, 2x224 + 8x96, training step", times["ours"], times["peer"], "the authors' code"))
    for name, ours_name, timms, published in TABLE:
        mine, peer = classifier(ours_name, timms)
        mine.eval(), peer.eval()
        pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        keep(features(f"{name} ({published} images/s on the lecture's V100)", mine, peer, pixels, rounds))
    return rows
