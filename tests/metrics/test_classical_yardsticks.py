"""The two yardsticks beside the demo's AP: their parts equal the definitions, and they find digits far above chance."""

import numpy as np
import pytest
import torch
from skimage.feature import hog as reference_hog
from skimage.feature import match_template

from opticus.data.open import open_data
from opticus.metrics.detect import CocoDetection
from opticus.models.classical._hog_svm import HogSvm, hog
from opticus.models.classical._template_matching import TemplateMatching, _correlate, _Template
from opticus.structures import DataError, Instances, Picture, Sample


@pytest.mark.parametrize("size", [(37, 53), (64, 64)])
def test_hog_equals_scikit_image(size):
    gray = np.random.default_rng(0).random(size).astype(np.float32)
    expected = reference_hog(gray.astype(np.float64), 9, (4, 4), (2, 2), "L2-Hys", feature_vector=False)
    np.testing.assert_allclose(hog(gray), expected.reshape(*expected.shape[:2], 36), atol=1e-5)


def test_correlation_equals_scikit_image():
    rng = np.random.default_rng(0)
    image, patch = rng.random((40, 50)).astype(np.float32), rng.random((9, 7)).astype(np.float32)
    values = patch - patch.mean()
    template = _Template(0, 7, 9, (9, 7), values / np.sqrt((values**2).sum()))
    np.testing.assert_allclose(_correlate(image, [template])[0], np.abs(match_template(image, patch)), atol=1e-4)


@pytest.mark.parametrize(
    ("system", "limit", "floor"),
    [(TemplateMatching(variants=1, step=1.5, levels=4), 60, 0.05), (HogSvm(step=1.5), 25, 0.02)],
)
def test_yardsticks_find_digits(system, limit, floor):
    scenes = open_data("scenes", "train")
    system.fit((scenes[i] for i in range(limit)), 10, limit=limit)
    held_out = open_data("scenes", "val")
    metric = CocoDetection(held_out.names)
    for index in range(15):
        sample = held_out[index]
        metric.update(system.detect(sample.picture).check(sample.id), sample.target, sample.id)
    assert metric.compute()["AP50"] > floor


@pytest.mark.parametrize("system", [TemplateMatching, HogSvm])
def test_unfitted_or_incomplete_data_is_refused(system):
    blank = Picture(torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="call fit before detect"):
        system().detect(blank)
    target = Instances(torch.tensor([[10.0, 10, 40, 50]]), torch.tensor([0]), (64, 64))
    with pytest.raises(DataError, match="expected objects of every class, found none of"):
        system().fit([Sample.of(blank.pixels, target, "a")], 2)
