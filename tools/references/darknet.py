"""The authors' darknet (public domain) as a reference: not an adapter, but what those of YOLO's papers share.

Set OPTICUS_REFERENCES to a folder with a clone of github.com/pjreddie/darknet as `darknet`, and OPTICUS_DARKNET to a program built
from another copy of it in which every `float` is `double` and the norm of src/blas.c is that of src/blas_kernels.cu, which trained
the published files: (x - mean) / sqrt(variance + .00001). It is called in two ways:

    program CFG
        prints for every layer with weights "LAYER index kind n c size groups batch_normalize inputs outputs out_w*out_h";
    program CFG WEIGHTS INPUT OUT THRESHOLD OVERLAP WIDTH HEIGHT
        reads the weights (doubles after the usual header) and one picture (doubles, channels first) and writes to OUT, each as its
        length (int64) and doubles: for every [yolo], [region] or [detection] layer its input and its output; at last the boxes of
        get_network_boxes and do_nms_sort as rows x1 y1 x2 y2 probability class, in pixels of a picture of WIDTH x HEIGHT.
"""

import math
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from opticus.parity.fill import fill

COMMIT = "f6afaabcdf85f77e7aff2ec55c020c0e297c77f9"


def reference():
    return {
        "repository": "https://github.com/pjreddie/darknet",
        "commit": COMMIT,
        "license": "YOLO licence (public domain)",
        "kind": "repository",
    }


def program():
    path = os.environ.get("OPTICUS_DARKNET", "")
    if not Path(path).is_file():
        raise SystemExit("set OPTICUS_DARKNET to the program that this file describes")
    return path


def cfg_text(name, size=None, shrink=1, classes=None, replace=()):
    """The authors' cfg, for inputs of `size` (H, W), with all widths but the answers' divided by `shrink` and other classes."""
    text = (Path(os.environ["OPTICUS_REFERENCES"]) / "darknet" / "cfg" / f"{name}.cfg").read_text()
    text = re.sub(r"(?m)^(batch|subdivisions)=\d+", r"\1=1", text)
    if size is not None:
        text = re.sub(r"(?m)^height=\d+", f"height={size[0]}", text)
        text = re.sub(r"(?m)^width=\d+", f"width={size[1]}", text)
    old = int(re.search(r"(?m)^classes=(\d+)", text)[1])
    new = old if classes is None else classes
    answers = {old * k + 5 * k: new * k + 5 * k for k in (3, 5)}

    def filters(found):
        count = int(found[1])
        return f"filters={answers[count] if count in answers else count // shrink}"

    text = re.sub(r"(?m)^filters=(\d+)", filters, text)
    text = re.sub(r"(?m)^classes=\d+", f"classes={new}", text)
    for before, after in replace:
        assert before in text, before
        text = text.replace(before, after)
    return text


def shapes_of(text):
    """Key -> shape in the order of the file, as darknet's own parser makes the layers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.cfg"
        path.write_text(text)
        printed = subprocess.run([program(), str(path)], check=True, capture_output=True, text=True).stdout
    shapes = {}
    for line in printed.splitlines():
        if not line.startswith("LAYER"):
            continue
        index, kind, *numbers = line.split()[1:]
        n, c, size, groups, norm, inputs, outputs, places = map(int, numbers)
        if kind == "convolutional":
            first = ["bn.bias", "bn.weight", "bn.running_mean", "bn.running_var"] if norm else ["conv.bias"]
            rows = [(name, (n,)) for name in first] + [("conv.weight", (n, c // groups, size, size))]
        elif kind == "connected":
            rows = [("connected.bias", (outputs,)), ("connected.weight", (outputs, inputs))]
        else:
            rows = [("local.bias", (outputs,)), ("local.weight", (places, n, c * size * size))]
        shapes |= {f"{index}.{name}": shape for name, shape in rows}
    return shapes


def write_weights(path, shapes, dtype="<f8"):
    """A file of formula-filled arrays: doubles for the program, float32 as darknet itself writes them."""
    with open(path, "wb") as file:
        file.write(struct.pack("<3iq", 0, 2, 0, 0))
        for key, shape in shapes.items():
            file.write(fill(key, shape).numpy().astype(dtype).tobytes())


def run(text, shapes, pixels, threshold=0.005, overlap=0.45):
    """What darknet makes of `pixels` (3, H, W): inputs of its detection layers, flat, and boxes (N, 6)."""
    height, width = pixels.shape[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.cfg").write_text(text)
        write_weights(folder / "net.weights", shapes)
        (folder / "in").write_bytes(pixels.double().numpy().tobytes())
        files = [str(folder / part) for part in ("net.cfg", "net.weights", "in", "out")]
        command = [program(), *files, str(threshold), str(overlap), str(width), str(height)]
        subprocess.run(command, check=True, capture_output=True)
        data = (folder / "out").read_bytes()
    arrays = []
    while data:
        count = struct.unpack("<q", data[:8])[0]
        arrays.append(torch.from_numpy(np.frombuffer(data[8 : 8 + 8 * count], "<f8").copy()))
        data = data[8 + 8 * count :]
    return arrays[:-1:2], arrays[-1].reshape(-1, 6)


def results(boxes, size, count=300):
    """Rows of boxes as the port gives them: best first, equal ones as they are, cut to the picture, without those of no area."""
    height, width = size
    boxes = boxes[boxes[:, 4].argsort(descending=True, stable=True)][:count]
    corners = boxes[:, :4].clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    kept = (corners[:, 2:] > corners[:, :2]).all(1)
    return {"boxes": corners[kept], "scores": boxes[kept, 4], "labels": boxes[kept, 5].long()}


def numbers(shapes):
    return sum(math.prod(shape) for key, shape in shapes.items() if "running" not in key)
