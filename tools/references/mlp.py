"""Multi-layer perceptrons of scikit-learn with given weights: probabilities of the classes."""

from itertools import pairwise

import sklearn
import torch
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import LabelBinarizer

from opticus.parity.case import network_input
from opticus.parity.fill import fill
from opticus.structures import Prepare

PAPER = "mlp"
UNITS = {"relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def reference():
    return {"repository": "scikit-learn/scikit-learn", "version": sklearn.__version__, "license": "BSD-3-Clause", "kind": "package"}


def shapes(features, hidden, classes):
    """The layers by the names of their equations' roles; scikit-learn keeps them in two lists, `coefs_` and `intercepts_`."""
    widths, found = [features, *hidden, classes], {}
    for i, (a, b) in enumerate(pairwise(widths)):
        name = "head" if i == len(hidden) else f"hidden.{i}"
        found |= {f"{name}.weight": (b, a), f"{name}.bias": (b,)}
    return found


def machine_of(state, hidden, activation, dtype):
    """A perceptron as if it had been fitted; the last activation is taken away so that its scores are seen."""
    names = [*(f"hidden.{i}" for i in range(len(hidden))), "head"]
    machine = MLPClassifier(hidden, activation=UNITS[activation])
    machine.coefs_ = [fill(f"{name}.weight", state[f"{name}.weight"], dtype).numpy().T for name in names]
    machine.intercepts_ = [fill(f"{name}.bias", state[f"{name}.bias"], dtype).numpy() for name in names]
    machine.n_layers_, machine.n_outputs_ = len(names) + 1, state["head.weight"][0]
    machine.n_features_in_ = state["hidden.0.weight"][1] if hidden else state["head.weight"][1]
    machine._label_binarizer = LabelBinarizer().fit(range(machine.n_outputs_))
    return machine


def outputs_of(machine, rows):
    machine.out_activation_ = "identity"
    out = torch.from_numpy(machine._forward_pass_fast(rows, check_input=False))
    machine.out_activation_ = "softmax"
    return {"out": out, "results.1.probs": torch.from_numpy(machine.predict_proba(rows))[1]}


def case(name, variant, activation, hidden, channels, side, classes, dtype=torch.float64):
    pictures = [[side, side, 1], [side, side, 2], [side, side, 3]]
    rule = Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    rows = network_input(pictures, rule, dtype)[0].flatten(1).numpy()
    state = shapes(rows.shape[1], hidden, classes)
    config = {"classes": classes, "channels": channels, "size": side, "hidden": list(hidden), "activation": activation}
    outputs = outputs_of(machine_of(state, hidden, activation, dtype), rows)
    return {
        "name": name, "format": "plain", "variant": variant, "config": config, "state": state, "pictures": pictures,
        "outputs": outputs,
    }  # fmt: skip


def tiny():
    return [
        case("two rectified layers", "tiny", "relu", (12, 9), 3, 6, 5),
        case("logistic", "sigmoid", "sigmoid", (14,), 1, 7, 4),
        case("three layers of tanh", "300", "tanh", (10, 8, 6), 1, 6, 3),
    ]


def manifests():
    return {
        "plain": {
            "tiny": shapes(3072, (512, 256), 10),
            "sigmoid": shapes(3072, (300,), 10),
            "300": shapes(784, (300,), 10),
            "300-100": shapes(784, (300, 100), 10),
        }
    }


def parameters():
    found = manifests()["plain"]
    return {v: sum(torch.Size(s).numel() for s in found[v].values()) for v in ("300", "300-100")}


def full():
    yield case("300-100", "300-100", "tanh", (300, 100), 1, 28, 10, torch.float32)
