"""Labels are matched by name, never by position, when a model meets a data set of another order."""

from __future__ import annotations

import pytest
import torch

from opticus.structures import Classes, Instances, UsageError
from opticus.verbs.evaluate import label_map, relabel
from opticus.verbs.models import Card
from opticus.weights.labels import labels


def test_classes_are_matched_by_name() -> None:
    card = Card("resnet/tiny", "classify", labels=("cat", "dog", "bird"))
    places = label_map(card, ("bird", "cat"))
    assert places == [1, -1, 0]
    found = relabel(Classes(torch.tensor([1, 2, 0]), torch.tensor([0.5, 0.3, 0.2])), places)
    assert isinstance(found, Classes)
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match="'fish'"):
        label_map(card, ("cat", "fish"))


def test_objects_of_outputs_without_a_class_are_dropped() -> None:
    card = Card("detr/tiny", "detect", labels=("N/A", "person", "bicycle", "N/A"))
    places = label_map(card, ("bicycle", "person"))
    found = relabel(Instances(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3]), (8, 8), torch.ones(4)), places)
    assert isinstance(found, Instances)
    assert found.labels.tolist() == [1, 0]


def test_imagenet_folders_are_named_by_wordnet_ids() -> None:
    card = Card("resnet/50", "classify", labels=labels("imagenet1k"))
    names = labels("imagenet1k_synsets")
    assert len(set(names)) == 1000
    places = label_map(card, names)
    assert places == list(range(1000))
    assert labels("imagenet1k")[names.index("n01440764")] == "tench"
    assert labels("imagenet1k")[names.index("n02099601")] == "golden retriever"
    subset = label_map(card, ("n02099601", "n01440764"))
    assert subset is not None and subset[0] == 1 and subset[names.index("n02099601")] == 0
