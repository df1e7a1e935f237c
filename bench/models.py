"""Networks against timm and transformers: inference, optimised inference, features and one training step.

Same weights, same input, one process, two threads. Every row is the median of 7 rounds in which the contenders take turns, after one
untimed call each; inference runs in eval and inference mode. The peer is at its default:
eager float32, contiguous memory, SDPA attention; ratio is peer / ours, above 1 where opticus is faster.

With OPTICUS_BENCH_THREADS=1 the clock is the thread's own processor time, which neighbours on a busy machine disturb less;
OPTICUS_BENCH_ROUNDS sets the number of rounds.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from opticus import zoo
from opticus.parity.fill import fill, fill_module
from opticus.structures import Batch, Classes, Images, Instances, Progress
from opticus.verbs.models import load
from opticus.verbs.optimize import optimize
from opticus.weights.load import load_into

ROUNDS = int(os.environ.get("OPTICUS_BENCH_ROUNDS", "7"))
SMALL_ROUNDS = 3  # of what takes many seconds
THREADS = int(os.environ.get("OPTICUS_BENCH_THREADS", "2"))
SAME = 1e-3  # largest difference between the peer's output and ours, relative to the largest value

Row = dict[str, Any]


def allow_torchvision() -> None:
    """Make `import torchvision` work beside CPU torch: timm and transformers import it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
    import references.torchvision_shim as shim

    sys.modules["torchvision_shim"] = shim  # its neighbours import it by this name; its schemas can be defined once only


# --- contenders --------------------------------------------------------------------------------------------------------


def classifier(ours: str, timms: str) -> tuple[nn.Module, nn.Module]:
    """The network of opticus and timm's, with the same formula-filled weights."""
    allow_torchvision()
    import timm

    peer, mine = timm.create_model(timms, num_classes=1000), zoo.create(ours)
    fill_module(peer)
    load_into(mine, peer.state_dict(), zoo.paper(zoo.split(ours)[0]).FORMATS["timm"])
    return mine, peer


def detectors() -> tuple[nn.Module, nn.Module]:
    """DETR-R50 of opticus and of transformers, both from one formula-made file in the format of the hub."""
    allow_torchvision()
    from references.hugging_face import hub_shapes  # isort: skip
    from transformers import DetrConfig, DetrForObjectDetection, logging  # isort: skip

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = DetrConfig(use_timm_backbone=True, backbone="resnet50", use_pretrained_backbone=False, num_labels=91)
    shapes = hub_shapes(lambda: DetrForObjectDetection(config))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({key: fill(key, shape, torch.float32) for key, shape in shapes.items()}, file)
        config.save_pretrained(folder)
        return load("detr/r50", file, quiet=True), DetrForObjectDetection.from_pretrained(folder)


# --- timing ------------------------------------------------------------------------------------------------------------


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of every way: the median of `rounds` rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.thread_time if THREADS == 1 else time.perf_counter
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            began = clock()
            way()
            times[name].append(clock() - began)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def row(name: str, ours: float, peer: float, library: str, **more: Any) -> Row:
    return {
        "name": name,
        "ours_ms": round(ours, 1),
        "peer_ms": round(peer, 1),
        "peer": library,
        "ratio": round(peer / ours, 2),
        **more,
    }


def inference(title: str, mine: nn.Module, peer: nn.Module, library: str, inputs: list[Tensor], rounds: int) -> Iterator[Row]:
    """Eager, optimised and optimised bfloat16 against the peer, on each input."""
    mine.eval(), peer.eval()
    fast, half = optimize(mine), optimize(mine, precision="bf16")
    for pixels in inputs:
        batch, _, height, width = pixels.shape
        with torch.inference_mode():
            same(title, outputs(mine(pixels)), outputs(peer(pixels)))
            networks = {"peer": peer, "eager": mine, "fp32": fast, "bf16": half}
            found = medians({name: partial(network, pixels) for name, network in networks.items()}, rounds)
        what = f"{title}, batch {batch}, {width}x{height}"
        yield row(f"{what}, eager", found["eager"], found["peer"], library)
        yield row(f"{what}, optimize()", found["fp32"], found["peer"], library, error=fast.error)
        yield row(f'{what}, optimize(precision="bf16")', found["bf16"], found["peer"], library, error=half.error)


def outputs(out: Any) -> list[Tensor]:
    """The tensors that are compared: logits, or logits and boxes."""
    if isinstance(out, Tensor):
        return [out]
    boxes = getattr(out, "boxes", getattr(out, "pred_boxes", None))
    return [out.logits] if boxes is None else [out.logits, boxes]


def same(title: str, mine: list[Tensor], peers: list[Tensor]) -> None:
    """Stop if the two libraries do not compute the same."""
    for a, b in zip(mine, peers, strict=True):
        difference = float((a - b).abs().max() / b.abs().max())
        if not difference < SAME:
            raise SystemExit(f"{title}: the outputs differ by {difference:.1e} of the largest value")


def training(title: str, steps: dict[str, tuple[nn.Module, Callable[[], Tensor]]], library: str, lr: float, rounds: int) -> Row:
    """One optimiser step of each: forward, loss, backward, AdamW."""
    ways: dict[str, Callable[[], Any]] = {}
    for name, (network, loss_of) in steps.items():
        network.train()
        optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr)

        def step(optimiser: torch.optim.Optimizer = optimiser, loss_of: Callable[[], Tensor] = loss_of) -> None:
            optimiser.zero_grad()
            loss_of().backward()
            optimiser.step()

        ways[name] = step
    found = medians(ways, rounds)
    return row(f"{title}, training step", found["ours"], found["peer"], library)


# --- cases -------------------------------------------------------------------------------------------------------------


def classifiers(title: str, ours: str, timms: str, rounds: int) -> Iterator[Row]:
    mine, peer = classifier(ours, timms)
    generator = torch.Generator().manual_seed(0)
    yield from inference(title, mine, peer, "timm", [torch.randn(b, 3, 224, 224, generator=generator) for b in (1, 8)], rounds)
    pixels, labels = torch.randn(8, 3, 224, 224, generator=generator), torch.arange(8)
    yield features(title, mine, peer, pixels, rounds)
    objective = zoo.paper(zoo.split(ours)[0]).objective(mine)
    batch = Batch(images_of(pixels), tuple(Classes(label[None]) for label in labels), tuple("abcdefgh"))
    steps = {
        "peer": (peer, lambda: F.cross_entropy(peer(pixels), labels)),
        "ours": (mine, lambda: torch.stack(list(objective(batch, Progress(0, 0, 1, 1)).values())).sum()),
    }
    yield training(f"{title}, batch 8, 224x224", steps, "timm", 1e-5, rounds)


def features(title: str, mine: Any, peer: Any, pixels: Tensor, rounds: int) -> Row:
    """The vectors before the head, as a probe takes them: `embed` against timm's features and pooling."""
    with torch.inference_mode():
        ways = {
            "ours": lambda: mine.embed(pixels),
            "peer": lambda: peer.forward_head(peer.forward_features(pixels), pre_logits=True),
        }
        same(title, [ways["ours"]()], [ways["peer"]()])
        found = medians(ways, rounds)
    rate = f"{1000 * len(pixels) / found['ours']:.0f} images/s"
    return row(f"{title}, batch {len(pixels)}, 224x224, features ({rate})", found["ours"], found["peer"], "timm")


def detection(rounds: int) -> Iterator[Row]:
    mine, peer = detectors()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, 800, 1066, generator=generator), torch.randn(8, 3, 512, 512, generator=generator)]
    yield from inference("DETR-R50", mine, peer, "transformers", inputs, rounds)
    pixels = torch.randn(2, 3, 512, 512, generator=generator)
    centres, labels = torch.rand(2, 6, 2, generator=generator) * 0.6 + 0.2, torch.arange(6)
    fractions = torch.cat([centres, torch.full_like(centres, 0.3)], -1)
    corners = torch.cat([centres - 0.15, centres + 0.15], -1) * 512
    for name, parameter in mine.named_parameters():  # what transformers freezes
        if name.startswith(("backbone.conv1", "backbone.layer1")):
            parameter.requires_grad_(False)
    peer.config.auxiliary_loss = True  # not before: then transformers 5.23 feeds normed states on and computes another network
    objective = zoo.paper("detr").objective(mine)
    batch = Batch(images_of(pixels), tuple(Instances(boxes, labels, (512, 512)) for boxes in corners), ("a", "b"))
    targets = [{"class_labels": labels, "boxes": boxes} for boxes in fractions]
    steps = {
        "peer": (peer, lambda: peer(pixels, labels=targets).loss),
        "ours": (mine, lambda: torch.stack(list(objective(batch, Progress(0, 0, 1, 1)).values())).sum()),
    }
    yield training("DETR-R50, batch 2, 512x512", steps, "transformers", 1e-5, rounds)


def images_of(pixels: Tensor) -> Images:
    eye = torch.eye(3, dtype=torch.float64).expand(len(pixels), 3, 3)
    return Images(pixels, None, eye, tuple((pixels.shape[2], pixels.shape[3]) for _ in pixels))


def run(rounds: int = ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """Every row; `show` sees each as soon as it is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore")
    cases: list[Callable[[], Iterator[Row]]] = [
        lambda: classifiers("ResNet-50", "resnet/50", "resnet50", rounds),
        lambda: classifiers("ViT-B/16", "vit/b16", "vit_base_patch16_224", rounds),
        lambda: classifiers("VGG-16", "vgg/16", "vgg16", rounds),
        lambda: classifiers("EfficientNet-B0", "efficientnet/b0", "efficientnet_b0", rounds),
        lambda: classifiers("Mixer-B/16", "mixer/b16", "mixer_b16_224", rounds),
        lambda: classifiers("DeiT-S", "deit/s", "deit_small_patch16_224", rounds),
        lambda: detection(rounds),
    ]
    rows: list[Row] = []
    try:
        for case in cases:
            for found in case():
                rows.append(found)
                show(found)
            gc.collect()
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    run(ROUNDS, lambda row: print(json.dumps(row), flush=True))
