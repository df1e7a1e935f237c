"""Box losses on numbers that can be worked out by hand, and the criteria of the detectors against literal ones."""

import pytest
import torch

from opticus import zoo
from opticus.losses.boxes import box_l1, giou_loss, object_count
from opticus.models.detection import centernet, detr
from opticus.structures import Batch, Images, Instances, Progress

AT = Progress(0, 0, 10, 1)


def batch_of(targets, size=(64, 64), valid=None, weights=None):
    count = len(targets)
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    pixels = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))
    return Batch(Images(pixels, valid, eye, (size,) * count), tuple(targets), tuple(map(str, range(count))), weights=weights)


def some(count, classes, seed, size=(64, 64)):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    sides = 6 + torch.rand(count, 2, generator=generator) * 26
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Instances(torch.cat([corner, corner + sides], 1), labels, size)


def test_by_hand():
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    assert giou_loss(a, b).item() == pytest.approx(1 - (1 / 7 - 2 / 9))
    assert giou_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert box_l1(a, b).item() == 4


def test_object_count_is_never_less_than_one():
    like = torch.zeros(1)
    assert [object_count(n, like).item() for n in (0, 1, 7)] == [1, 1, 7]
    assert object_count(torch.tensor(3), like.double()).dtype == torch.float64


def test_centernet_terms():
    """Eq. 1 to 5 with every object written out."""
    classes = 3
    batch = batch_of([some(2, classes, 1), Instances.empty((64, 64)), some(3, classes, 2)])
    generator = torch.Generator().manual_seed(5)
    out = centernet.Points(*(torch.randn(3, k, 16, 16, dtype=torch.float64, generator=generator) for k in (classes, 2, 2)))
    found = centernet.criterion(classes)(out, batch)
    size = offset = count = 0
    for image, target in enumerate(batch.targets):
        for x1, y1, x2, y2 in (target.boxes / 4).tolist():
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            x, y = int(cx), int(cy)
            pred, shift = out.sizes[image, :, y, x].tolist(), out.offsets[image, :, y, x].tolist()
            size += (abs(pred[0] - (x2 - x1)) + abs(pred[1] - (y2 - y1))) / 2
            offset += (abs(shift[0] - (cx - x)) + abs(shift[1] - (cy - y))) / 2
            count += 1
    assert found["size"].item() == pytest.approx(0.1 * size / count, rel=1e-5)
    assert found["offset"].item() == pytest.approx(offset / count, rel=1e-5)
    assert set(found) == {"heat", "size", "offset"}


@pytest.mark.parametrize("name", ["centernet/tiny", "detr/tiny"])
def test_pictures_without_objects_are_learned(name):
    network = zoo.create(name)
    objective = zoo.paper(name.split("/")[0]).objective(network)
    terms = objective(batch_of([Instances.empty((64, 64))] * 2), AT)
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert all(torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize("name", ["centernet/tiny", "detr/tiny"])
def test_a_sample_of_weight_zero_adds_nothing(name):
    """Its objects still count in the normaliser, its content does not matter."""
    network = zoo.create(name).eval()
    objective = zoo.paper(name.split("/")[0]).objective(network)
    targets = [some(2, 10, 1), some(3, 10, 2)]
    weights = torch.tensor([1.0, 0.0])
    first = objective(batch_of(targets, weights=weights), AT)
    batch = batch_of(targets, weights=weights)
    batch.images.pixels[1] = 0
    second = objective(batch, AT)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key])


def literal_set_loss(logits, boxes, truth, none_weight=0.1):
    """DETR's loss of one layer by plain loops over every assignment of two objects at most."""
    from itertools import permutations

    classes = logits.shape[-1] - 1
    total = {"class": 0.0, "l1": 0.0, "giou": 0.0}
    weight = objects = 0
    corners = lambda b: torch.cat([b[:2] - b[2:] / 2, b[:2] + b[2:] / 2])[None]  # noqa: E731
    for i, (wanted, labels) in enumerate(truth):
        probs = logits[i].softmax(-1)
        pair = lambda q, n: (  # noqa: E731
            5 * (boxes[i, q] - wanted[n]).abs().sum(),
            giou_loss(corners(boxes[i, q]), corners(wanted[n]))[0],
        )
        cost = lambda queries: sum(  # noqa: E731
            pair(q, n)[0] + 2 * pair(q, n)[1] - probs[q, labels[n]] for n, q in enumerate(queries)
        )
        best = min(permutations(range(logits.shape[1]), len(labels)), key=cost)
        for q in range(logits.shape[1]):
            label = int(labels[best.index(q)]) if q in best else classes
            share = none_weight if label == classes else 1.0
            total["class"] -= share * probs[q, label].log()
            weight += share
        for n, q in enumerate(best):
            total["l1"] += pair(q, n)[0]
            total["giou"] += 2 * pair(q, n)[1]
            objects += 1
    return {"class": total["class"] / weight, "l1": total["l1"] / objects, "giou": total["giou"] / objects}


def test_detr_terms():
    """Eq. 1 and 2 against exhaustive matching, with padding and auxiliary layers."""
    generator = torch.Generator().manual_seed(11)
    valid = torch.zeros(2, 64, 64, dtype=torch.bool)
    valid[0], valid[1, :40, :48] = True, True
    batch = batch_of([some(2, 3, 3), some(2, 3, 4)], valid=valid)
    logits = torch.randn(3, 2, 5, 4, dtype=torch.float64, generator=generator)
    boxes = torch.rand(3, 2, 5, 4, dtype=torch.float64, generator=generator)
    found = detr.SetCriterion()(detr.Answers(logits[2], boxes[2], logits[:2], boxes[:2]), batch)
    truth = []
    for target, (height, width) in zip(batch.targets, ((64, 64), (40, 48))):
        x1, y1, x2, y2 = (target.boxes.double() / torch.tensor([width, height, width, height])).unbind(1)
        truth.append((torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1), target.labels))
    layers = [literal_set_loss(logits[k], boxes[k], truth) for k in range(3)]
    for key, value in layers[2].items():
        assert found[key].item() == pytest.approx(float(value), rel=1e-6)
    assert found["auxiliary"].item() == pytest.approx(float(sum(sum(layer.values()) for layer in layers[:2])), rel=1e-6)


def test_detr_auxiliary_answers_exist_in_training_only():
    network = zoo.create("detr/tiny", decoder=3)
    pixels = torch.randn(1, 3, 64, 64)
    out = network(pixels)
    assert out.auxiliary_logits.shape == (2, 1, 12, 11)
    assert out.auxiliary_boxes.shape == (2, 1, 12, 4)
    assert network.eval()(pixels)[2:] == (None, None)


def test_detr_results_map_fractions_of_the_unpadded_input_to_the_original():
    network = zoo.create("detr/tiny", queries=3)
    valid = torch.zeros(1, 80, 100, dtype=torch.bool)
    valid[:, 10:60, 20:100] = True  # a letterboxed picture of 25 x 160 original pixels, plus padding below
    matrix = torch.tensor([[[0.5, 0, 20], [0, 2, 10], [0, 0, 1]]], dtype=torch.float64)
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.4], [0.1, 0.1, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    logits = torch.full((1, 3, 11), -20.0)
    logits[0, 0, 4], logits[0, 1, 7], logits[0, 2, 10] = 1.0, 5.0, 5.0
    logits[0, 0, 10] = 0.0
    (found,) = network.results(detr.Answers(logits, boxes), Images(torch.zeros(1, 3, 80, 100), valid, matrix, ((25, 160),)))
    assert found.labels[:2].tolist() == [7, 4]
    torch.testing.assert_close(found.boxes[1], torch.tensor([40.0, 7.5, 120.0, 17.5]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 0.0, 48.0, 7.5]), rtol=0, atol=1e-3)
    assert found.scores[0] > 0.99 and found.scores[2] < 1e-6
