"""Every landmark system of deep computer vision in one pure-Python PyTorch library.

The public verbs are imported when they are first used: `import opticus` itself imports nothing else.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opticus.data.doctor import doctor
    from opticus.data.export import export_data
    from opticus.data.open import open_data
    from opticus.recipes.choose import explain, train
    from opticus.structures import Error, Sample
    from opticus.training.recipe import Recipe
    from opticus.verbs.attention_masks import attention_masks
    from opticus.verbs.compare import compare
    from opticus.verbs.evaluate import evaluate
    from opticus.verbs.evaluate_results import evaluate_results
    from opticus.verbs.extract import extract
    from opticus.verbs.info import info
    from opticus.verbs.match import cascade, match
    from opticus.verbs.models import create, identify, load, save
    from opticus.verbs.probe import probe
    from opticus.verbs.propagate import propagate
    from opticus.verbs.prove import prove
    from opticus.verbs.reconstruct import reconstruct
    from opticus.verbs.sample import sample
    from opticus.verbs.tokens import token_cosine
    from opticus.zoo import list_models

__version__ = version("opticus")

_WHERE = {
    "Error": "opticus.structures",
    "Recipe": "opticus.training.recipe",
    "Sample": "opticus.structures",
    "attention_masks": "opticus.verbs.attention_masks",
    "cascade": "opticus.verbs.match",
    "compare": "opticus.verbs.compare",
    "create": "opticus.verbs.models",
    "doctor": "opticus.data.doctor",
    "evaluate": "opticus.verbs.evaluate",
    "evaluate_results": "opticus.verbs.evaluate_results",
    "explain": "opticus.recipes.choose",
    "export_data": "opticus.data.export",
    "extract": "opticus.verbs.extract",
    "identify": "opticus.verbs.models",
    "info": "opticus.verbs.info",
    "list_models": "opticus.zoo",
    "load": "opticus.verbs.models",
    "match": "opticus.verbs.match",
    "open_data": "opticus.data.open",
    "probe": "opticus.verbs.probe",
    "propagate": "opticus.verbs.propagate",
    "prove": "opticus.verbs.prove",
    "reconstruct": "opticus.verbs.reconstruct",
    "sample": "opticus.verbs.sample",
    "save": "opticus.verbs.models",
    "token_cosine": "opticus.verbs.tokens",
    "train": "opticus.recipes.choose",
}

__all__ = [
    "Error",
    "Recipe",
    "Sample",
    "__version__",
    "attention_masks",
    "cascade",
    "compare",
    "create",
    "doctor",
    "evaluate",
    "evaluate_results",
    "explain",
    "export_data",
    "extract",
    "identify",
    "info",
    "list_models",
    "load",
    "match",
    "open_data",
    "probe",
    "propagate",
    "prove",
    "reconstruct",
    "sample",
    "save",
    "token_cosine",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'opticus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
