"""Detectron2 (Apache-2.0) without its compiled part, in the precision of its inputs: its boxes are float32 otherwise.

Set OPTICUS_REFERENCES to a folder that holds a clone of github.com/facebookresearch/detectron2 as `detectron2`; its dependencies
fvcore, iopath, yacs, omegaconf and portalocker must be importable.
"""

import os
import sys
import types
from pathlib import Path

import torch
import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
ROOT = Path(os.environ.get("OPTICUS_REFERENCES", ".")) / "detectron2"
if not ROOT.is_dir():
    raise SystemExit(f"{ROOT} does not exist: set OPTICUS_REFERENCES to the folder of the clone")
sys.path.insert(0, str(ROOT))
sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import Boxes, ImageList  # noqa: E402


def _boxes(self, tensor):
    self.tensor = tensor.reshape(-1, 4)


Boxes.__init__ = _boxes  # it makes boxes float32
torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else self.to(torch.float32)


def reference():
    return {
        "repository": "https://github.com/facebookresearch/detectron2",
        "commit": "02b5c4e295e990042a714712c21dc79b731e8833",
        "license": "Apache-2.0",
        "kind": "repository",
    }


def config(name, **changes):
    """A configuration of the model zoo by its path, with changed keys (dots written as two underscores)."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def network(cfg):
    return build_model(cfg).eval()


def shapes(cfg):
    """Key -> shape of a network's state dict."""
    with torch.device("meta"):
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, sum(p.numel() for p in model.parameters())


def proposed(model, pixels, sizes):
    """The features, the port's `objectness` and `shifts`, and the proposals of a batch."""
    features = model.backbone(pixels)
    rpn = model.proposal_generator
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    found = {
        "out.objectness": torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in logits], 1),
        "out.shifts": torch.cat([x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas], 1),
    }
    proposals, _ = rpn(ImageList(pixels, sizes), features, None)
    return features, found | {"out.proposals": torch.cat([p.proposal_boxes.tensor for p in proposals])}, proposals


def shorter_side(short, longest):
    return ResizeShortestEdge([short, short], longest)


def background_first(logits):
    return logits.roll(1, -1)


def results(instances):
    found = {}
    for i, row in enumerate(instances):
        keep = row.pred_boxes.nonempty()
        found |= {
            f"results.{i}.boxes": row.pred_boxes.tensor[keep],
            f"results.{i}.scores": row.scores[keep],
            f"results.{i}.labels": row.pred_classes[keep],
        }
    return found
