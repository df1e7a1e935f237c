"""Linear classifiers of scikit-learn: decision values and probabilities for given coefficients."""

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from opticus.parity.case import network_input
from opticus.parity.fill import fill
from opticus.structures import Prepare

PAPER = "linear"
PICTURES = [[6, 6, 1], [6, 6, 2], [6, 6, 3]]


def reference():
    return {"repository": "scikit-learn/scikit-learn", "version": sklearn.__version__, "license": "BSD-3-Clause", "kind": "package"}


def fitted(machine, classes, features):
    """The machine with formula-made coefficients, as if it had been fitted."""
    machine.coef_ = fill("coef_", (classes, features)).numpy()
    machine.intercept_ = fill("intercept_", (classes,)).numpy()
    machine.classes_, machine.n_features_in_ = np.arange(classes), features
    return machine


def case(name, variant, machine, channels):
    rule = Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    rows = network_input(PICTURES, rule)[0].flatten(1).numpy()
    machine = fitted(machine, 4, rows.shape[1])
    outputs = {"out": torch.from_numpy(machine.decision_function(rows))}
    if hasattr(machine, "predict_proba"):
        outputs |= {f"results.{i}.probs": torch.from_numpy(p) for i, p in enumerate(machine.predict_proba(rows))}
    outputs |= {f"results.{i}.labels": torch.from_numpy(row.argsort()[::-1].copy()) for i, row in enumerate(outputs["out"].numpy())}
    config = {"classes": 4, "channels": channels, "size": 6}
    return {
        "name": name, "format": "sklearn", "variant": variant, "config": config, "pictures": PICTURES, "outputs": outputs,
        "state": {"coef_": machine.coef_.shape, "intercept_": machine.intercept_.shape},
    }  # fmt: skip


def tiny():
    return [case("softmax", "softmax", LogisticRegression(), 3), case("svm", "svm", LinearSVC(), 1)]


def manifests():
    """From a machine that scikit-learn itself has fitted on CIFAR-10's shape: ten classes of 32x32x3 numbers."""
    rows, labels = np.random.default_rng(0).random((10, 3072)), np.arange(10)
    found = {}
    for variant, machine in (("softmax", LogisticRegression(max_iter=1)), ("svm", LinearSVC(max_iter=1))):
        machine.fit(rows, labels)
        found[variant] = {key: getattr(machine, key).shape for key in ("coef_", "intercept_")}
    return {"sklearn": found}


def parameters():
    return {variant: sum(int(np.prod(shape)) for shape in keys.values()) for variant, keys in manifests()["sklearn"].items()}


def full():
    rule = Prepare(mean=(0.5,) * 3, std=(0.5,) * 3)
    pictures = [[32, 32, 1], [32, 32, 2]]
    rows = network_input(pictures, rule, torch.float32)[0].flatten(1).numpy()
    machine = fitted(LogisticRegression(), 10, 3072)
    yield {
        "name": "softmax", "format": "sklearn", "variant": "softmax", "pictures": pictures,
        "state": {"coef_": (10, 3072), "intercept_": (10,)}, "outputs": {"out": torch.from_numpy(machine.decision_function(rows))},
    }  # fmt: skip
