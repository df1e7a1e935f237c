"""Heat-map targets against literal loops, and the way back: ideal maps give the boxes that made them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opticus import zoo
from opticus.matching.heatmaps import gaussian_planes, gaussian_radius, peaks, point_targets
from opticus.models.detection.centernet import Points
from opticus.structures import DataError, Images, Instances


def radius_of(height, width, overlap):
    """The three quadratics as the authors' code solves them."""
    height, width = math.ceil(height), math.ceil(width)
    b = height + width
    c = width * height * (1 - overlap) / (1 + overlap)
    first = (b + math.sqrt(b * b - 4 * c)) / 2
    b, c = 2 * (height + width), (1 - overlap) * width * height
    second = (b + math.sqrt(b * b - 16 * c)) / 2
    a, b, c = 4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height
    third = (b + math.sqrt(b * b - 4 * a * c)) / 2
    return max(0, int(min(first, second, third)))


@given(st.floats(0.1, 150), st.floats(0.1, 150), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_radius(width, height, overlap):
    assert gaussian_radius(torch.tensor([[width, height]]), overlap).tolist() == [radius_of(height, width, overlap)]


def test_planes_equal_drawing_one_point_at_a_time():
    generator = torch.Generator().manual_seed(3)
    cells = torch.stack([torch.randint(0, 20, (9,), generator=generator), torch.randint(0, 14, (9,), generator=generator)], 1)
    radii = torch.tensor([0, 1, 2, 3, 5, 8, 30, 1, 0])
    planes = torch.tensor([0, 0, 1, 1, 1, 3, 3, 0, 3])
    wanted = torch.zeros(4, 14, 20)
    for (x, y), radius, plane in zip(cells.tolist(), radii.tolist(), planes.tolist()):
        for row in range(max(0, y - radius), min(14, y + radius + 1)):
            for column in range(max(0, x - radius), min(20, x + radius + 1)):
                value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                wanted[plane, row, column] = max(wanted[plane, row, column], value)
    found = gaussian_planes(cells, radii, planes, 4, (14, 20))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert not found[2].any()


def test_no_points():
    none = torch.zeros(0, dtype=torch.int64)
    assert gaussian_planes(none.view(0, 2), none, none, 3, (4, 5)).tolist() == torch.zeros(3, 4, 5).tolist()


def test_targets():
    first = Instances(
        torch.tensor([[4.0, 8.0, 20.0, 40.0], [0.0, 0.0, 64.0, 48.0], [50.0, 40.0, 90.0, 70.0], [5.0, 5.0, 5.0, 9.0]]),
        torch.tensor([1, 0, 2, 1]),
        (48, 64),
        crowd=torch.tensor([False, True, False, False]),
    )
    truth = point_targets([first, Instances.empty((48, 64))], 3, (12, 16), 4)
    assert truth.heat.shape == (2, 3, 12, 16)
    assert truth.image.tolist() == [0, 0]  # the crowd and the empty box are not learned
    assert truth.cells.tolist() == [[3, 6], [14, 11]]
    assert truth.sizes.tolist() == [[4.0, 8.0], [3.5, 2.0]]  # the second is cut to the map
    assert truth.offsets.tolist() == [[0.0, 0.0], [0.25, 0.0]]
    assert (truth.heat == 1).nonzero().tolist() == [[0, 1, 6, 3], [0, 2, 11, 14]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "cat.jpg: detection needs a target of type Instances, found none"),
        (Instances(torch.zeros(1, 4), torch.tensor([3]), (8, 8)), r"cat.jpg: labels must be in 0..2, found \[3\]"),
    ],
)
def test_bad_targets_are_named(target, message):
    with pytest.raises(DataError, match=message):
        point_targets([target], 3, (2, 2), 4, ["cat.jpg"])


def test_peaks():
    heat = torch.zeros(1, 2, 4, 5)
    heat[0, 0, 0, 0] = 0.9
    heat[0, 0, 1, 1] = 0.8  # a neighbour of a larger value is no peak
    heat[0, 1, 1, 1] = 0.7  # of another class it is
    heat[0, 0, 3, 4] = 0.6
    best = peaks(heat, 3)
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert (best.labels[0].tolist(), best.x[0].tolist(), best.y[0].tolist()) == ([0, 1, 0], [0, 1, 4], [0, 1, 3])
    assert peaks(heat, 1000).scores.shape == (1, 40)


def ideal(targets, classes, size):
    """The maps of a network that is always right."""
    truth = point_targets(targets, classes, size, 4)
    maps = torch.zeros(2, len(targets), 2, *size)
    x, y = truth.cells.unbind(1)
    maps[0][truth.image, :, y, x] = truth.sizes
    maps[1][truth.image, :, y, x] = truth.offsets
    return Points((truth.heat.clamp(1e-6, 1 - 1e-6)).logit(), maps[0], maps[1])


def test_results_invert_the_targets_and_the_preparation():
    """Two pictures, resized by different factors and padded: boxes come back in original pixels, nothing in the padding."""
    network = zoo.create("centernet/tiny", classes=4)
    to_input = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    to_input[0, 0, 0], to_input[0, 1, 1] = 0.5, 0.25
    to_input[1, 0, 0], to_input[1, 1, 1], to_input[1, 0, 2] = 2.0, 2.0, 8.0
    valid = torch.zeros(2, 64, 80, dtype=torch.bool)
    valid[0, :40, :60], valid[1, :, 8:80] = True, True
    sizes = ((160, 120), (32, 36))
    boxes = [torch.tensor([[10.0, 20.0, 50.0, 100.0], [70.3, 30.5, 117.2, 133.7]]), torch.tensor([[3.0, 4.0, 30.0, 29.0]])]
    labels = [torch.tensor([3, 0]), torch.tensor([2])]
    inputs = []
    for box, label, matrix in zip(boxes, labels, to_input):
        scale = torch.stack([matrix[0, 0], matrix[1, 1]]).float()
        inputs.append(Instances(box * scale.repeat(2) + matrix[:2, 2].float().repeat(2), label, (64, 80)))
    out = ideal(inputs, 4, (16, 20))
    out.heat[0, 1, 13, 17] = 9.0  # a confident peak in the padding
    results = network.results(out, Images(torch.zeros(2, 3, 64, 80), valid, to_input, sizes))
    for found, box, label, size in zip(results, boxes, labels, sizes):
        assert found.size == size
        best = found[found.scores > 0.5]
        order = torch.stack([(best.boxes - b).abs().sum(1).argmin() for b in box])
        torch.testing.assert_close(best.boxes[order], box, rtol=0, atol=1e-3)
        assert best.labels[order].tolist() == label.tolist()
        assert len(best) == len(box)


def test_results_honour_the_number_of_peaks_and_the_picture():
    network = zoo.create("centernet/tiny", peaks=5)
    images = Images(torch.randn(1, 3, 64, 64), None, torch.eye(3, dtype=torch.float64)[None], ((64, 64),))
    with torch.no_grad():
        out = network.eval()(images.pixels)
    (found,) = network.results(out._replace(sizes=torch.full_like(out.sizes, 50.0)), images)
    assert len(found) == 5
    assert found.scores.diff().le(0).all()
    assert found.boxes.min() >= 0 and found.boxes.max() <= 64
    (none,) = network.results(out._replace(sizes=torch.full_like(out.sizes, -3.0)), images)
    assert len(none) == 0  # a box of negative size is no box
