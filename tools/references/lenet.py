"""LeNet-5, transcribed literally from section II.B, table I and appendix A of LeCun et al. 1998: plain loops over the equations."""

import math

import numpy as np
import torch

from opticus.parity.case import network_input
from opticus.parity.fill import fill
from opticus.structures import Prepare

PAPER = "lenet"
# table I, row by row: the columns (maps of C3) with a cross in the row of each map of S2
ROWS = (
    (0, 4, 5, 6, 9, 10, 11, 12, 14, 15),
    (0, 1, 5, 6, 7, 10, 11, 12, 13, 15),
    (0, 1, 2, 6, 7, 8, 11, 13, 14, 15),
    (1, 2, 3, 6, 7, 8, 9, 12, 14, 15),
    (2, 3, 4, 7, 8, 9, 10, 12, 13, 15),
    (3, 4, 5, 8, 9, 10, 11, 13, 14, 15),
)
SEEN = [[row for row in range(6) if column in ROWS[row]] for column in range(16)]
SHAPES = {
    "c1.weight": (6, 1, 5, 5),
    "c1.bias": (6,),
    "s2.weight": (6,),
    "s2.bias": (6,),
    "c3.weight": (sum(map(len, SEEN)), 5, 5),
    "c3.bias": (16,),
    "s4.weight": (16,),
    "s4.bias": (16,),
    "c5.weight": (120, 16, 5, 5),
    "c5.bias": (120,),
    "f6.weight": (84, 120),
    "f6.bias": (84,),
    "output.weight": (10, 84),
    "output.bias": (10,),
}


def reference():
    return {
        "repository": "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 86(11)",
        "version": "1998",
        "license": "none: equations",
        "kind": "transcription",
    }


def sigmoid(a):
    return 1.7159 * math.tanh(2 / 3 * a)


def convolve(maps, kernels, bias, seen):
    """maps (n, H, W), one list of 5x5 kernels per output map, the input maps it sees."""
    height, width = maps.shape[1] - 4, maps.shape[2] - 4
    out = np.zeros((len(seen), height, width))
    for k, inputs in enumerate(seen):
        for y in range(height):
            for x in range(width):
                total = bias[k]
                for kernel, i in zip(kernels[k], inputs):
                    total += float((maps[i, y : y + 5, x : x + 5] * kernel).sum())
                out[k, y, x] = sigmoid(total)
    return out


def subsample(maps, coefficient, bias):
    out = np.zeros((maps.shape[0], maps.shape[1] // 2, maps.shape[2] // 2))
    for k, y, x in np.ndindex(*out.shape):
        four = maps[k, 2 * y, 2 * x] + maps[k, 2 * y, 2 * x + 1] + maps[k, 2 * y + 1, 2 * x] + maps[k, 2 * y + 1, 2 * x + 1]
        out[k, y, x] = sigmoid(coefficient[k] * four + bias[k])
    return out


def lenet(picture, w):
    """Ten outputs for one picture (1, 32, 32)."""
    c1 = convolve(picture, w["c1.weight"], w["c1.bias"], [[0]] * 6)
    s2 = subsample(c1, w["s2.weight"], w["s2.bias"])
    kernels, first = [], 0
    for inputs in SEEN:
        kernels.append(w["c3.weight"][first : first + len(inputs)])
        first += len(inputs)
    c3 = convolve(s2, kernels, w["c3.bias"], SEEN)
    s4 = subsample(c3, w["s4.weight"], w["s4.bias"])
    c5 = convolve(s4, w["c5.weight"], w["c5.bias"], [list(range(16))] * 120).reshape(120)
    f6 = [sigmoid(sum(w["f6.weight"][j, i] * c5[i] for i in range(120)) + w["f6.bias"][j]) for j in range(84)]
    return [sum(w["output.weight"][k, j] * f6[j] for j in range(84)) + w["output.bias"][k] for k in range(10)]


def tiny():
    w = {key: fill(key, shape).numpy() for key, shape in SHAPES.items()}
    pictures = [[32, 32, 1], [32, 32, 2]]
    # section II.B: white, the background, is -0.1 and black, the ink, 1.175
    rule = Prepare(channels=1, mean=(0.1 / 1.275,), std=(1 / 1.275,))
    pixels = network_input(pictures, rule)[0]
    logits = torch.tensor([lenet(one, w) for one in pixels.numpy()])
    probs = logits.exp() / logits.exp().sum(1, keepdim=True)
    outputs = {"out": logits, "results.1.probs": probs[1], "results.1.labels": probs[1].argsort(descending=True)}
    return [
        {"name": "LeNet-5", "format": "transcription", "variant": "5", "state": SHAPES, "pictures": pictures, "outputs": outputs}
    ]


def manifests():
    return {"transcription": {"5": SHAPES}}


def parameters():
    """60,000 is the paper's own count up to F6; the ten linear output units of this port add 850."""
    return {"5": 60_850}
