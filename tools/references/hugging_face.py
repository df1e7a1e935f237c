"""Transformers models under the names of their hub files: in memory, transformers 5 calls many keys differently."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from opticus.parity.fill import fill

Shapes = dict[str, tuple[int, ...]]


def hub_shapes(build: Callable[[], PreTrainedModel]) -> Shapes:
    """Key -> shape of the file that `save_pretrained` would write, without allocating it."""
    with torch.device("meta"):
        model = build()
    return {key: tuple(tensor.shape) for key, tensor in revert_weight_conversion(model, model.state_dict()).items()}


def filled(kind: type[PreTrainedModel], config: Any, dtype: torch.dtype = torch.float64) -> tuple[PreTrainedModel, Shapes]:
    """A model whose formula-made hub file went through `from_pretrained`, in eval mode, and that file's shapes."""
    shapes = hub_shapes(lambda: kind(config))
    with tempfile.TemporaryDirectory() as folder:
        save_file({key: fill(key, shape, dtype) for key, shape in shapes.items()}, Path(folder) / "model.safetensors")
        config.save_pretrained(folder)
        model, report = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {group: keys for group, keys in report.items() if keys}
    if wrong:
        raise SystemExit(f"{kind.__name__} does not take its own file: {wrong}")
    return model.eval(), shapes
