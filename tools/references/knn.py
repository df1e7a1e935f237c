"""k nearest neighbours of scikit-learn, by brute force on grey levels."""

import numpy as np
import sklearn
import torch
from sklearn.neighbors import KNeighborsClassifier

from opticus.parity.case import network_input
from opticus.parity.fill import picture
from opticus.structures import Prepare

PAPER = "knn"
METRIC = {"nn": "manhattan", "l1": "manhattan", "l2": "euclidean"}


def reference():
    return {"repository": "scikit-learn/scikit-learn", "version": sklearn.__version__, "license": "BSD-3-Clause", "kind": "package"}


def memory(count, side, channels):
    """Formula pictures as rows of grey levels, channel after channel, and labels that go round four classes."""
    rows = [picture(side, side, 100 + i, channels).transpose(2, 0, 1).reshape(-1) for i in range(count)]
    return np.stack(rows).astype(np.float64), np.arange(count) * 7 % 4


def case(name, variant, k, count, side, channels):
    rows, labels = memory(count, side, channels)
    machine = KNeighborsClassifier(k, metric=METRIC[variant], algorithm="brute").fit(rows, labels)
    pictures = [[side, side, seed] for seed in (1, 2, 3, 4, 105)]
    queries = network_input(pictures, Prepare(channels=channels, scale=1.0, mean=(0.0,), std=(1.0,)))[0].flatten(1).numpy()
    probs = torch.from_numpy(machine.predict_proba(queries))
    best = machine.predict(queries)
    outputs = {"out": probs, **{f"results.{i}.probs": row for i, row in enumerate(probs)}}
    for i, row in enumerate(probs.numpy()):
        outputs[f"results.{i}.labels"] = torch.from_numpy(np.argsort(-row, kind="stable"))
        assert outputs[f"results.{i}.labels"][0] == best[i]
    return {
        "name": name, "format": "sklearn", "variant": variant, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 4, "channels": channels, "size": side, "k": k, "capacity": count},
        "state": {"_fit_X": rows.shape, "_y": labels.shape},
        "constants": {"_fit_X": rows.astype(int).tolist(), "_y": labels.tolist()},
    }  # fmt: skip


def tiny():
    return [case("l1 of 3", "l1", 3, 20, 6, 3), case("nearest", "nn", 1, 12, 5, 1), case("l2 of 5", "l2", 5, 20, 6, 1)]


def manifests():
    """What a fitted machine keeps of 64 pictures of CIFAR-10's shape, the variants' own capacity."""
    rows, labels = memory(64, 32, 3)
    found = {}
    for variant, metric in METRIC.items():
        machine = KNeighborsClassifier(1 if variant == "nn" else 10, metric=metric, algorithm="brute").fit(rows, labels)
        found[variant] = {"_fit_X": machine._fit_X.shape, "_y": machine._y.shape}
    return {"sklearn": found}


def parameters():
    """It learns by heart: no number is fitted."""
    return dict.fromkeys(METRIC, 0)
