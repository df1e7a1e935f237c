"""k nearest neighbours: the course's worked example, scikit-learn's answers, the rules for ties, and the whole life of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import opticus
from opticus import zoo
from opticus.cli.main import main
from opticus.data.open import open_data
from opticus.data.subset import Subset
from opticus.models.classical.knn import smallest
from opticus.recipes.choose import default
from opticus.structures import Batch, Classes, DataError, Images, Picture, Progress, Sample, UsageError, WeightsError
from opticus.transforms.prepare import prepare

TEST = [[56, 32, 10, 18], [90, 23, 128, 133], [24, 26, 178, 200], [2, 0, 255, 220]]
TRAIN = [[10, 20, 24, 17], [8, 10, 89, 100], [12, 16, 178, 170], [4, 32, 233, 112]]


def machine(count: int, **changes: Any) -> Any:
    return zoo.create("knn/l1", **{"channels": 1, "capacity": count, "k": 1, **changes})


def rows_of(data: Any, indices: range, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    network = machine(1, size=size)
    pixels = prepare([data[i].picture for i in indices], network.prepare).pixels
    return pixels, torch.tensor([int(data.target_of(i).labels[0]) for i in indices])


def test_the_worked_example_gives_456() -> None:
    """Course 004, "Image Classification with kNN": the L1 distance of the two 4x4 pictures."""
    network = machine(1, size=4)
    network.store(torch.tensor(TRAIN)[None, None].float(), torch.tensor([3]))
    test = torch.tensor(TEST)[None, None].float()
    assert network.nearest(network.embed(test))[0].tolist() == [[456]]
    assert network(test)[0].argmax() == 3
    squares = machine(1, size=4, distance="l2")
    squares.store(torch.tensor(TRAIN)[None, None].float(), torch.tensor([3]))
    assert squares.nearest(squares.embed(test))[0].item() == (np.subtract(TEST, TRAIN) ** 2).sum()


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize(("distance", "metric"), [("l1", "manhattan"), ("l2", "euclidean")])
def test_results_equal_scikit_learn(distance: str, metric: str, k: int) -> None:
    """600 real digits stored, 200 asked for: the same distances, shares and best classes (equal votes included) for every one."""
    pixels, labels = rows_of(open_data("digits", "train"), range(600))
    network = machine(600, size=28, k=k, distance=distance)
    network.store(pixels, labels)
    queries, _ = rows_of(open_data("digits", "test"), range(200))
    theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(pixels.flatten(1).double().numpy(), labels.numpy())
    rows = queries.flatten(1).double().numpy()
    apart, _ = theirs.kneighbors(rows)
    ours, _ = network.nearest(queries.flatten(1))
    np.testing.assert_allclose(ours.double().sqrt() if distance == "l2" else ours, apart, rtol=1e-7)
    beyond = network.distances(queries.flatten(1)).sort(1).values[:, k]
    assert bool((beyond > ours[:, -1]).all()), "no tie at the border, so that the neighbours are the same set"
    shares = network(queries)
    np.testing.assert_allclose(shares.numpy(), theirs.predict_proba(rows), atol=1e-6)
    best = [
        int(r.labels[0]) for r in network.results(shares, Images(queries, None, torch.eye(3).expand(200, 3, 3), ((28, 28),) * 200))
    ]
    assert best == theirs.predict(rows).tolist()
    if k == 10:
        tops = shares.topk(2).values
        assert bool((tops[:, 0] == tops[:, 1]).any()), "some votes are equal, so that the rule was seen"


def test_rules_for_ties() -> None:
    """Of equally distant pictures the one stored first is nearer; of equal votes the lower label wins."""
    levels = torch.tensor([10.0, 30.0, 10.0, 30.0]).reshape(4, 1, 1, 1)
    network = machine(4, size=1, k=3, classes=4)
    network.store(levels, torch.tensor([3, 2, 1, 0]))
    query = torch.full((1, 1, 1, 1), 20.0)
    distances, places = network.nearest(network.embed(query))
    assert distances.tolist() == [[10, 10, 10]] and places.tolist() == [[0, 1, 2]]
    votes = network(query)
    assert votes[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    result = network.results(votes, Images(query, None, torch.eye(3)[None], ((1, 1),)))[0]
    assert result.labels.tolist() == [1, 2, 3, 0]


def test_smallest_equals_a_stable_sort() -> None:
    torch.manual_seed(0)
    for k in (1, 3, 20):
        values = torch.randint(0, 6, (50, 20)).double()
        found, columns = smallest(values, k)
        expected = values.sort(dim=1, stable=True)
        assert torch.equal(found, expected.values[:, :k]) and torch.equal(columns, expected.indices[:, :k])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and questions are cut into blocks; the answers are those of one block."""
    torch.manual_seed(0)
    network = machine(37, size=3, k=5)
    network.store(torch.randint(0, 256, (37, 1, 3, 3)).float(), torch.arange(37) % 10)
    rows = torch.randint(0, 256, (23, 9)).float()
    whole = network.nearest(rows)
    monkeypatch.setattr("opticus.models.classical.knn.BLOCK", 40)
    cut = network.nearest(rows)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])


def test_large_pictures_stay_exact() -> None:
    """Sums that float32 cannot hold: 256x256x3 pictures that differ by one grey level in one pixel."""
    network = zoo.create("knn/l1", size=256, capacity=2, k=1)
    near = torch.zeros(1, 3, 256, 256)
    near[0, 0, 0, 0] = 1
    network.store(torch.cat([torch.zeros_like(near), near]), torch.tensor([0, 1]))
    assert network.distances(torch.full((1, 3 * 256 * 256), 255.0)).tolist() == [[255 * 196608, 255 * 196608 - 1]]


def test_an_empty_or_half_full_memory() -> None:
    network = machine(5, size=1, k=3)
    query = torch.zeros(1, 1, 1, 1)
    assert network(query)[0].tolist() == pytest.approx([0.1] * 10)
    network.store(torch.tensor([1.0, 200.0]).reshape(2, 1, 1, 1), torch.tensor([4, 7]))
    assert len(network) == 2
    assert network(query)[0].nonzero().flatten().tolist() == [4, 7]
    with pytest.raises(UsageError, match="6 pictures do not fit into a memory of capacity=5"):
        network.store(torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UsageError, match="k=7 and capacity=5"):
        machine(5, k=7)


def test_mixed_labels_are_refused() -> None:
    objective = zoo.paper("knn").objective(machine(2, size=1))
    images = Images(torch.zeros(1, 1, 1, 1), None, torch.eye(3)[None], ((1, 1),))
    mixed = Classes(torch.tensor([1, 2]), torch.tensor([0.5, 0.5]))
    with pytest.raises(DataError, match="mixed: k-NN stores pictures with one label"):
        objective(Batch(images, (mixed,), ("mixed",)), Progress(0, 0, 1, 1))


def test_a_fitted_machine_of_scikit_learn_loads(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (12, 48)).astype(np.float64)
    theirs = KNeighborsClassifier(3, metric="manhattan", algorithm="brute").fit(rows, np.arange(12) % 4)
    np.savez(tmp_path / "m.npz", _fit_X=theirs._fit_X, _y=theirs._y)
    changes: dict[str, Any] = {"size": 4, "capacity": 12, "k": 3, "classes": 4}
    network = opticus.load("knn/l1", tmp_path / "m.npz", **changes)
    queries = np.random.default_rng(1).integers(0, 256, (9, 48))
    found = network(torch.from_numpy(queries).float().reshape(9, 3, 4, 4))
    np.testing.assert_allclose(found.numpy(), theirs.predict_proba(queries), atol=1e-6)
    np.savez(tmp_path / "scaled.npz", _fit_X=theirs._fit_X / 255, _y=theirs._y)
    with pytest.raises(WeightsError, match="_fit_X"):
        opticus.load("knn/l1", tmp_path / "scaled.npz", **changes)


def test_neighbours_of_a_picture_are_pictures() -> None:
    data = open_data("digits", "train")
    pixels, labels = rows_of(data, range(40))
    network = machine(40, size=28, k=10)
    network.store(pixels, labels)
    sheet = network.neighbours(pixels[:2])
    assert [len(row) for row in sheet] == [10, 10]
    assert torch.equal(sheet[1][0].pixels, data[1].picture.pixels)  # nothing is nearer than the picture itself


# --- the life of a run -----------------------------------------------------------------------------------------------------


def part(split: str, count: int) -> Any:
    return Subset(open_data("digits", split), range(count))


def test_it_trains_saves_loads_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`opticus train knn/l1 data=digits`, val and predict; all 1,097 pictures are stored though no batch size divides them."""
    run, picture = tmp_path / "run", tmp_path / "digit.png"
    assert main(["train", "knn/l1", "data=digits", f"out={run}", "quiet=true"]) == 0
    for name in ("args.json", "env.json", "results.csv", "passport.json", "report.html", "weights/last.safetensors", "state"):
        assert (run / name).exists(), name
    model = opticus.load(run)
    assert len(model) == len(open_data("digits", "train")) == 1097 and model.pixels.dtype == torch.uint8
    capsys.readouterr()
    assert main(["val", str(run), "data=digits", "quiet=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"]["top1"] > 0.95
    sample = open_data("digits", "test")[0]
    from PIL import Image

    Image.fromarray(sample.picture.pixels[..., 0].numpy()).save(picture)
    assert main(["predict", str(run), str(picture), "--json", "--no-save"]) == 0
    found = json.loads(capsys.readouterr().out)["classes"][0]
    assert found["name"] == str(int(sample.target.labels[0])) and found["score"] >= 0.5


def test_seed_and_batch_do_not_matter(tmp_path: Path) -> None:
    runs = [
        opticus.train("knn/l1", part("train", 24), out=tmp_path / f"{i}", quiet=True, **changes).model.state_dict()
        for i, changes in enumerate(({}, {"seed": 5}, {"batch": 3}, {"batch": 6, "accumulate": 2}, {"epochs": 4}))
    ]
    assert all(torch.equal(runs[0][key], other[key]) for other in runs[1:] for key in runs[0])


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch": 3, "save_every": 1, "quiet": True}
    whole = opticus.train("knn/l2", part("train", 24), out=tmp_path / "whole", **settings)
    data, seen = part("train", 24), 0
    original = type(data).__getitem__

    class Broken(Exception): ...

    def fails(self: Any, index: int) -> Sample:
        nonlocal seen
        seen += 1
        if seen == 12:
            raise Broken
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(data), "__getitem__", fails)
        with pytest.raises(Broken):
            opticus.train("knn/l2", data, out=tmp_path / "broken", **settings)
    again = opticus.train("knn/l2", part("train", 24), out=tmp_path / "broken", resume=True, **settings)
    assert again.outcome.steps == 8
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key])


def test_the_recipe_fits_the_data() -> None:
    recipe = default("knn/l1", open_data("digits", "train"))
    assert recipe.changes == {"capacity": 1097, "size": 28, "channels": 1} and recipe.batch == 1097
    blank = [Sample.of(torch.zeros(64, 48, 3, dtype=torch.uint8), Classes(torch.tensor([i % 2])), f"{i}") for i in range(4)]
    from opticus.data.subset import Samples

    assert default("knn/l2", Samples(blank)).changes == {"capacity": 4, "size": 32, "channels": 3}
    assert isinstance(blank[0].picture, Picture)
