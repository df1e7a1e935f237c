"""Record davis2017-evaluation (BSD-3-Clause) on made clips: python tools/references/davis.py > tests/metrics/davis_reference.json

A checkout is named by $OPTICUS_REFERENCES/davis2017; the clips are those of tests/metrics/davis_clips.py.
"""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np

ROOT = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "davis2017" / "davis2017"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "metrics"))
SIZES = ((40, 56), (33, 150), (64, 20), (120, 214))
LENGTHS = (1, 2, 3, 4, 5, 8, 23, 90, 254)


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def main():
    from davis_clips import blobs  # of the tests

    sys.modules["davis2017"] = types.ModuleType("davis2017")
    sys.modules["davis2017.davis"] = types.ModuleType("davis2017.davis")
    sys.modules["davis2017.davis"].DAVIS = None
    metrics, known = module(ROOT / "metrics.py", "davis_metrics"), module(ROOT / "utils.py", "davis_utils").db_statistics
    measures = []
    for void in (False, True):
        for seed, size in enumerate(SIZES):
            truth, said = blobs(seed, 5, size, 2, void)
            blank = truth == 255 if void else None
            masks = [(truth == k, said == k) for k in (1, 2)]
            measures.append({"seed": seed, "size": size, "void": void,
                             "J": [metrics.db_eval_iou(a, b, blank).tolist() for a, b in masks],
                             "F": [metrics.db_eval_boundary(a, b, blank).tolist() for a, b in masks]})  # fmt: skip
    rng = np.random.default_rng(0)
    statistics = [[length, [float(value) for value in known(rng.random(length))]] for length in LENGTHS]
    print(
        json.dumps(
            {
                "repository": "https://github.com/davisvideochallenge/davis2017-evaluation",
                "measures": measures,
                "statistics": statistics,
            }
        )
    )


if __name__ == "__main__":
    main()
