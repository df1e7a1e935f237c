"""probe on data of queries and a database: published folders, embedded sets, multi-scale vectors, protocols, bad words."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import opticus
from opticus.cli.main import main
from opticus.data.embedded.copies import BLOCKS, Copies, square
from opticus.data.embedded.views import Views, overlaps
from opticus.data.open import open_data
from opticus.data.subset import Samples, Subset
from opticus.structures import CapabilityError, DataError, Embedding, Relevant, Sample, UsageError
from opticus.transforms.prepare import prepare
from opticus.verbs.features import Taken, extract, take


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))


def few(split: str, count: int = 24) -> Any:
    """The queries of three photographs' places and the database pictures of the first six."""
    data = Views(split)
    return Subset(data, range(count if split == "database" else 4))


def oxford(root: Path, change: Any = None) -> Path:
    """A tiny set in the published layout: six pictures of database, two queries."""
    (root / "jpg").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"im{i}" for i in range(6)] + ["q0", "q1"]:
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(root / "jpg" / f"{name}.jpg")
    truth = [
        {"bbx": np.asarray([4.0, 5.0, 30.4, 35.0]), "easy": np.asarray([0, 1]), "hard": np.asarray([2]), "junk": np.asarray([3])},
        {"bbx": [0, 0, 48, 40], "easy": [], "hard": [5], "junk": []},
    ]
    content: dict[str, Any] = {"imlist": [f"im{i}" for i in range(6)], "qimlist": ["q0", "q1"], "gnd": truth}
    if change is not None:
        change(content)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_the_published_layout_is_read_without_running_it(tmp_path: Path, protocol: int) -> None:
    root = oxford(tmp_path / "rox")
    content = pickle.loads((root / "gnd_roxford5k.pkl").read_bytes())
    content["gnd"][1]["bbx"] = [np.float64(value) for value in (0, 0, 48, 40)]  # scalars of NumPy
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    database, queries = open_data(root, "database"), open_data(root, "query")
    assert (len(database), len(queries)) == (6, 2) and database.splits == ("database", "query") and database.task == "embed"
    assert [database.id_of(i) for i in (0, 5)] == ["im0", "im5"] and database.target_of(0) is None
    truth = queries.target_of(0)
    assert isinstance(truth, Relevant) and [t.tolist() for t in (truth.easy, truth.hard, truth.junk)] == [[0, 1], [2], [3]]
    whole = np.asarray(Image.open(root / "jpg" / "q0.jpg"))
    assert np.array_equal(queries[0].picture.pixels.numpy(), whole[5:35, 4:30]), "the query is cropped to its box"
    assert open_data(root, "train").hash == database.hash != queries.hash
    found = opticus.probe(opticus.create("resnet/tiny"), root, quiet=True)
    assert [row.method for row in found.rows] == ["retrieval"], "pictures of several sizes have no raw-pixel baseline"
    assert set(found.rows[0].values) >= {"mAP_medium", "mAP_hard", "mAP_easy"} and found.rows[0].protocol["database"] == 6


def test_wrong_ground_truth_is_named(tmp_path: Path) -> None:
    def entry(key: str, value: Any) -> Any:
        return lambda content: content["gnd"][0].__setitem__(key, value)

    wrong = {
        "the list 'hard' is missing": lambda c: c["gnd"][0].pop("hard"),
        "expected a list 'qimlist'": lambda c: c.pop("qimlist"),
        "2 queries in qimlist but 1 entries": lambda c: c["gnd"].pop(),
        "query q0: the list 'easy' names picture 6 of 6": entry("easy", [6]),
        "must hold whole numbers": entry("easy", [0.5]),
        "names a picture twice": entry("easy", [1, 1]),
        "picture 2 is in the lists 'hard' and 'junk'": entry("junk", [2]),
        "does not hold positions": entry("junk", ["a"]),
        "bbx must be x0, y0, x1, y1": entry("bbx", [5, 5, 5, 9]),
        "bbx must be four numbers": entry("bbx", "here"),
        "1 of 2 pictures of gnd_roxford5k.pkl are missing, such as gone.jpg": lambda c: c["qimlist"].__setitem__(1, "gone"),
        "found a list": lambda c: c["gnd"].__setitem__(0, []),
    }
    for number, (words, change) in enumerate(wrong.items()):
        with pytest.raises(DataError, match=words):
            open_data(oxford(tmp_path / str(number), change), "query")
    outside = oxford(tmp_path / "outside", entry("bbx", [500, 500, 600, 600]))
    with pytest.raises(DataError, match=r"q0: the query's box .* holds no pixel"):
        open_data(outside, "query")[0]
    with pytest.raises(DataError, match="no split 'val'; there is database, query"):
        open_data(outside, "val")
    evil = oxford(tmp_path / "evil")
    (evil / "gnd_roxford5k.pkl").write_bytes(b"cposix\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(DataError, match="refused"):
        open_data(evil, "query")
    (evil / "gnd_roxford5k.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="expected a dictionary with imlist"):
        open_data(evil, "query")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "gnd_x.pkl").write_bytes(pickle.dumps({"imlist": ["a"], "qimlist": ["b"], "gnd": [{}]}))
    with pytest.raises(DataError, match="the folder jpg/ with the pictures is missing"):
        open_data(bare, "query")


def test_copydays_folders(tmp_path: Path) -> None:
    copies = Copies("query")
    for name in ("original", "distractors", "strong", "jpegqual/3", "crops/10"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(square(number * 8)).save(tmp_path / "original" / f"20{number}000.png")
        Image.fromarray(square(100 + number)).save(tmp_path / "distractors" / f"d{number}.png")
        Image.fromarray(square(number * 8)).resize((32, 32)).save(tmp_path / "jpegqual/3" / f"20{number}000.png")
        Image.fromarray(copies[number * 8 * len(BLOCKS) + 4].picture.pixels.numpy()).save(
            tmp_path / "crops/10" / f"20{number}000.png"
        )
    Image.fromarray(copies[0].picture.pixels.numpy()).save(tmp_path / "strong" / "200001.png")
    database, queries = open_data(tmp_path, "database"), open_data(tmp_path, "query")
    assert len(database) == 6 and len(queries) == 7 and database.id_of(5) == "distractors/d2.png"
    strong = queries.target_of(0)
    assert isinstance(strong, Relevant) and strong.easy.tolist() == [0] and strong.group == "strong"
    found = opticus.probe(opticus.create("resnet/tiny"), tmp_path, quiet=True)
    assert [row.method for row in found.rows] == ["copy"]
    assert set(found.rows[0].values) == {"mAP", "muAP", "mAP_strong", "mAP_jpegqual/3", "mAP_crops/10"}
    (tmp_path / "strong" / "900001.png").write_bytes((tmp_path / "strong" / "200001.png").read_bytes())
    with pytest.raises(DataError, match=r"900001.png: no picture of original/ has this name or begins with '9000'"):
        open_data(tmp_path, "query")


def test_views_and_copies_are_functions_of_their_seed() -> None:
    database, queries = Views("database"), Views("query")
    assert (len(database), len(queries)) == (288, 48) and Views("query", seed=1).hash != queries.hash
    assert np.array_equal(database[7].picture.pixels.numpy(), Views("database")[7].picture.pixels.numpy())
    table = overlaps(0, 4, 6)
    for i in range(0, 48, 5):
        truth = queries.target_of(i)
        assert isinstance(truth, Relevant) and len(truth.easy) and len(truth.hard)
        near = torch.cat([truth.easy, truth.hard, truth.junk]).tolist()
        assert sorted(near) == np.flatnonzero(table[i] > 0).tolist() and len(set(near)) == len(near)
        assert table[i][truth.easy].min() >= 0.5 and table[i][truth.hard].min() >= 0.2
    place = database.target_of(13)
    assert isinstance(place, Embedding) and place.identity == 2
    copies = Copies("query")
    assert len(copies) == 7 * len(Copies("database")) // 2
    assert len({copies.id_of(i) for i in range(len(copies))}) == len(copies)
    seen = {square(i).tobytes() for i in range(len(Copies("database")))}
    assert len(seen) == len(Copies("database")), "no original is a distractor"
    for data in ("views", "copies"):
        assert not opticus.doctor(data).errors


def test_a_frozen_network_is_scored_beside_raw_pixels(tmp_path: Path) -> None:
    model = opticus.create("resnet/tiny")
    pair = (few("database"), few("query"))
    found = opticus.probe(model, pair, methods=("retrieval",), out=tmp_path / "out", quiet=True)
    assert [row.features for row in found.rows] == ["resnet/tiny", "pixels"] and found["retrieval"] == found.rows[0].values[
        "mAP_medium"
    ]
    assert 0.3 < found["retrieval"] <= 1 and found.rows[0].protocol["prepare"]["size"]
    again = opticus.compare(tmp_path / "out" / "resnet-tiny-retrieval", tmp_path / "out" / "pixels-retrieval")["mAP_medium"]
    assert again.difference == pytest.approx(found.rows[1].values["mAP_medium"] - found["retrieval"])
    assert "mAP_medium" in found.table() and json.dumps(found.to_json())
    scaled = opticus.probe(model, pair, methods=("retrieval",), scales=(1.0, 2**-0.5, 0.5), gem=4.0, baseline=False, quiet=True)
    assert scaled.rows[0].protocol["vector"] == {"scales": (1.0, 2**-0.5, 0.5), "gem": 4.0}
    opticus.probe(model, pair, methods=("retrieval",), scales=(1.0, 0.5), out=tmp_path / "b", baseline=False, quiet=True)
    saved = json.loads((tmp_path / "b" / "probe.json").read_text())
    assert saved[0]["protocol"]["vector"] == {"scales": [1.0, 0.5]}
    compared = opticus.compare(tmp_path / "out" / "resnet-tiny-retrieval", tmp_path / "b" / "resnet-tiny-retrieval")
    assert compared["mAP_medium"].a == found["retrieval"], "what vectors are worth is compared under one protocol of scoring"


def test_vectors_are_those_of_the_published_evaluations() -> None:
    data = few("database")
    model = opticus.create("vit/tiny").eval()
    pixels = prepare([data[i].picture for i in range(3)], model.prepare).pixels
    with torch.no_grad():
        net: Any = model
        scaled = [
            net.embed(F.interpolate(pixels, scale_factor=s, mode="bilinear")) if s != 1 else net.embed(pixels)
            for s in (1, 2**-0.5, 0.5)
        ]
        torch.testing.assert_close(take(model, pixels, Taken((1.0, 2**-0.5, 0.5))), sum(scaled) / 3)
        tokens = net.tokens(pixels)[0]
        blocks: list[torch.Tensor] = []
        handles = [block.register_forward_hook(lambda _m, _g, out: blocks.append(out)) for block in net.blocks]
        net.embed(pixels)
        for handle in handles:
            handle.remove()
        want = torch.cat([net.norm(out)[:, 0] for out in blocks[-2:]] + [tokens[:, 1:].mean(1)], 1)
        torch.testing.assert_close(take(model, pixels, Taken(layers=2, average=True)), want)
        maps = net.features(pixels)[-1].clamp(min=1e-6)
        pooled = (maps**4).mean((2, 3)) ** 0.25
        torch.testing.assert_close(take(model, pixels, Taken(gem=4.0)), torch.cat([net.embed(pixels), pooled], 1))
    whole = extract(model, Samples([Sample.of(torch.zeros(100, 50, 3, dtype=torch.uint8), None, "a")]), "test", taken=Taken(longest=64),
                    labelled=False, cache=False, quiet=True)  # fmt: skip
    assert whole.vectors.shape == (1, 96) and whole.labels.tolist() == [-1]


def test_bad_questions_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    model = opticus.create("resnet/tiny")
    pair = (few("database"), few("query"))
    with pytest.raises(CapabilityError, match=r"retrieval needs queries and a database.*found digits"):
        opticus.probe(model, "digits", methods=("retrieval",))
    with pytest.raises(CapabilityError, match="knn needs data with one label per picture"):
        opticus.probe(model, "views", methods=("retrieval", "knn"), quiet=True)
    with pytest.raises(CapabilityError, match=r"classifiers need data with one label.*views has queries, use methods=retrieval"):
        opticus.probe(model, "views", methods=("knn",), quiet=True)
    with pytest.raises(CapabilityError, match="use methods=retrieval"):
        opticus.probe(model, "views", methods=("copy",), quiet=True)
    with pytest.raises(UsageError, match="scales must be above 0"):
        opticus.probe(model, pair, scales=(0.0,))
    with pytest.raises(CapabilityError, match="resnet/tiny has no blocks with a class token"):
        opticus.probe(model, pair, layers=4, quiet=True)
    with pytest.raises(UsageError, match="layers=9 blocks were asked for, vit/tiny has 4"):
        opticus.probe(opticus.create("vit/tiny"), pair, layers=9, quiet=True)
    with pytest.raises(DataError, match="a query needs a Relevant target"):
        opticus.probe(model, (pair[0], pair[0]))
    with pytest.raises(DataError, match="found 0 pictures"):
        opticus.probe(model, (Subset(Views("database"), []), pair[1]))
    with torch.no_grad():
        model.get_parameter("conv1.weight").fill_(float("nan"))
    with pytest.raises(DataError, match="database000000: the network's vector of this picture holds values that are not finite"):
        opticus.probe(model, pair, quiet=True)
    assert main(["probe", "resnet/tiny", "data=views", "methods=retreival"]) == 2
    capsys.readouterr()
