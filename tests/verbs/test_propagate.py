"""propagate: the votes are those of the definition, a frozen network beats the first mask, files are DAVIS's, bad input is named."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opticus
from opticus.cli.main import main
from opticus.data.davis import write_ids
from opticus.data.decode import decode_indices
from opticus.data.embedded.videos import Videos
from opticus.metrics.passport import Passport
from opticus.structures import CapabilityError, DataError, Picture, Prepare, UnknownNameError, UsageError
from opticus.transforms.whole import whole
from opticus.verbs import propagate as room
from opticus.verbs.models import Card, bind
from opticus.verbs.propagate import Settings, follow, propagated, whole_rule


class Colours(nn.Module):
    """Features that are the mean colours of cells of four pixels: enough to follow coloured things."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare = Prepare(resize="fixed", size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
        self.config = None
        self.strides, self.widths = (4,), (3,)
        self.weight = nn.Parameter(torch.ones(()))

    def features(self, pixels: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(pixels, 4) * self.weight]

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        return pixels.mean((2, 3))


def colours() -> Any:
    return bind(Colours(), Card("colours/4", "embed", (), own=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return opticus.export_data("videos", "davis", tmp_path_factory.mktemp("davis") / "DAVIS", limit=2)


def votes_by_hand(query: Tensor, keys: Tensor, labels: Tensor, grid: tuple[int, int], s: Settings) -> Tensor:
    """Every place, every frame, every key, one after the other."""
    rows, columns = grid
    out = torch.zeros(rows * columns, labels.shape[2], dtype=labels.dtype)
    for n in range(rows * columns):
        found = []
        for t in range(len(keys)):
            for m in range(rows * columns):
                apart = max(abs(n // columns - m // columns), abs(n % columns - m % columns))
                if s.neighbourhood == 0 or apart <= s.neighbourhood:
                    found.append((math.exp(float(query[n] @ keys[t, m]) / s.temperature), labels[t, m]))
        found = sorted(found, key=lambda one: -one[0])[: s.nearest]
        total = sum(weight for weight, _ in found)
        for weight, label in found:
            out[n] += weight / total * label
    return out


@pytest.mark.parametrize("budget", [1, 1 << 24])
@pytest.mark.parametrize("neighbourhood", [0, 1, 2, 9])
def test_votes_are_those_of_the_definition(neighbourhood: int, budget: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "BUDGET", budget)
    torch.manual_seed(0)
    grid, settings = (5, 7), Settings(7, neighbourhood, 4, 0.1)
    query, keys = (F.normalize(torch.randn(n, 35, 6, dtype=torch.float64), dim=2) for n in (1, 3))
    labels = torch.rand(3, 35, 3, dtype=torch.float64)
    found = propagated(query[0], keys, labels, grid, settings)
    torch.testing.assert_close(found, votes_by_hand(query[0], keys, labels, grid, settings), rtol=0, atol=1e-12)


def test_a_video_is_followed_as_the_definition_says():
    """First frame and the last two, soft labels carried on, bilinear, each object scaled to [0, 1], the strongest wins."""
    torch.manual_seed(0)
    maps = F.normalize(torch.randn(6, 30, 8, dtype=torch.float64), dim=2)
    start = np.zeros((20, 24), np.uint8)
    start[4:12, 4:12], start[10:18, 14:20] = 1, 2
    settings = Settings(2, 3, 5, 0.1)
    frames = [Picture(torch.zeros(20, 24, 3, dtype=torch.uint8)) for _ in range(6)]
    turn = iter(maps)
    found, lost = follow(frames, start, lambda _: (next(turn), (5, 6)), settings)
    small = torch.from_numpy(start[2::4, 2::4].astype(np.int64))
    given = (maps[0], F.one_hot(small.flatten(), 3).double())
    memory: list[tuple[Tensor, Tensor]] = []
    assert lost == [] and np.array_equal(found[0], start)
    for t in range(1, 6):
        context = [given, *memory]
        labels = votes_by_hand(
            maps[t], torch.stack([c[0] for c in context]), torch.stack([c[1] for c in context]), (5, 6), settings
        )
        memory = [*memory, (maps[t], labels)][-2:]
        large = F.interpolate(labels.T.reshape(1, 3, 5, 6), scale_factor=4, mode="bilinear", align_corners=False)[0]
        for one in large:
            if one.max() > 0:
                one -= one.min().clone()
                one /= one.max().clone()
        assert np.array_equal(found[t], large.argmax(0).numpy().astype(np.uint8)), t


def test_sizes_are_those_of_the_reference():
    rule = Prepare()
    for size, short, stride, expected in (
        ((480, 854), 480, 16, (480, 832)),  # facebookresearch/dino at 480p
        ((480, 854), 480, 8, (480, 832)),
        ((854, 480), 480, 16, (832, 480)),
        ((480, 910), None, 14, (476, 910)),  # patches of 14: multiples of 14
        ((128, 128), None, 4, (128, 128)),
        ((100, 60), None, 8, (64, 56)),
    ):
        found = whole_rule(rule, size, short, stride)
        assert found.size == expected and (found.resize, found.crop, found.antialias) == ("fixed", None, False), (size, stride)
    with pytest.raises(UsageError, match="size must be at least 16"):
        whole(rule, (480, 480), 8, 16)


def test_frozen_features_beat_the_first_mask_and_files_are_davis(exported: Path, tmp_path: Path):
    model = colours().train()
    found = opticus.probe(model, exported, methods=("propagation",), out=tmp_path, quiet=True)
    assert isinstance(found, room.Propagation) and model.training
    assert found["propagation"] > found["still"] + 0.1 > 0.2
    row = found.rows[0]
    assert row.protocol["split"] == "test" and row.protocol["frames"] == 7 and row.protocol["neighbourhood"] == 12
    assert {one["sequence"] for one in json.loads((tmp_path / "propagation.json").read_text())[0]["objects"]} == {
        "test00",
        "test01",
    }
    lines = (tmp_path / "global_results-test.csv").read_text().splitlines()
    assert lines[0] == "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay"
    assert float(lines[1].split(",")[0]) == pytest.approx(row.values["J&F"], abs=5e-4)
    assert (tmp_path / "per-sequence_results-test.csv").read_text().startswith("Sequence,J-Mean,F-Mean\ntest00_1,")
    assert Passport.read(tmp_path / "colours-4-propagation").numbers["J&F"].value == row.values["J&F"]
    assert Passport.read(tmp_path / "still").numbers["J&F"].value == found["still"]
    files = sorted(str(f.relative_to(tmp_path / "predictions")) for f in (tmp_path / "predictions").rglob("*.png"))
    assert files == [f"test0{s}/{t:05d}.png" for s in (0, 1) for t in range(20)]
    again = decode_indices(tmp_path / "predictions/test00/00000.png")
    assert np.array_equal(again.numpy(), Videos("test").target_of(0).labels.numpy()), "the first mask is given"
    assert found.strip is not None and (tmp_path / "strip.png").is_file()


def test_the_command_line_and_any_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    file = opticus.save(opticus.create("resnet/tiny"), tmp_path / "resnet.safetensors")
    words = ["probe", str(file), "data=videos", "methods=propagation", "limit=1", "frames=1", "quiet=true", "split=val"]
    assert main([*words, f"out={tmp_path}"]) == 0
    assert "J&F" in capsys.readouterr().out and (tmp_path / "predictions/val00/00019.png").is_file()


def test_frames_without_annotation_are_predicted_and_not_scored(exported: Path, tmp_path: Path):
    folder = Path(shutil.copytree(exported, tmp_path / "D"))
    for file in (folder / "Annotations/480p/val00").glob("000[01]?.png"):
        if file.stem != "00000":
            file.unlink()
    found = opticus.propagate(colours(), folder, split="val", limit=1, out=tmp_path / "out", quiet=True)
    assert found.rows[0].values == {} and found.notes == [
        "1 of 1 sequences have no annotation beyond the first frame and are not scored"
    ]
    assert "-" in found.table() and len(list((tmp_path / "out/predictions/val00").iterdir())) == 20
    assert not (tmp_path / "out/global_results-val.csv").exists()
    found = opticus.propagate(colours(), folder, split="val", quiet=True)
    assert found.rows[0].values["J&F"] > 0 and len(found.rows[0].metric) == 1


def test_bad_input_is_named(exported: Path, tmp_path: Path):
    folder = Path(shutil.copytree(exported, tmp_path / "D"))
    model = colours()
    place = folder / "Annotations/480p/val00"
    (place / "00004.png").unlink()
    with pytest.raises(DataError, match=r"val00/00004: the annotation is missing \(19 of 20 frames of val00 have one\)"):
        opticus.propagate(model, folder, split="val", quiet=True)
    write_ids(np.ones((64, 128), np.uint8), place / "00004.png")
    with pytest.raises(DataError, match="expected 128x128 pixels as in the frame, found 128x64"):
        opticus.propagate(model, folder, split="val", quiet=True)
    write_ids(np.ones((128, 128), np.uint8), place / "00004.png")
    write_ids(np.zeros((128, 128), np.uint8), place / "00000.png")
    with pytest.raises(DataError, match="val00/00000: the annotation of the first frame shows no object"):
        opticus.propagate(model, folder, split="val", quiet=True)
    (folder / "ImageSets/2017/val.txt").write_text("")
    with pytest.raises(DataError, match="split 'val' lists no sequence"):
        opticus.propagate(model, folder, split="val", quiet=True)
    with pytest.raises(DataError, match=r"needs videos .* found detect data"):
        opticus.propagate(model, "scenes", quiet=True)
    with pytest.raises(CapabilityError, match=r"has no features\(\)"):
        opticus.propagate(opticus.create("linear/softmax"), "videos", quiet=True)
    for options, words in (
        ({"nearest": 0}, "nearest must be a whole number of at least 1, found 0"),
        ({"frames": -1}, "frames must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"level": 1}, r"level must be in 0..0 for colours/4, found 1"),
        ({"size": 2}, "size must be at least 4"),
        ({"limit": 0}, "limit must be"),
    ):
        with pytest.raises(UsageError, match=words):
            opticus.propagate(model, "videos", quiet=True, **options)
    with pytest.raises(UsageError, match="one at a time"):
        opticus.probe(model, "videos", methods=("propagation", "knn"))
    with pytest.raises(UnknownNameError, match="option of propagation 'neighborhood'; did you mean 'neighbourhood'"):
        opticus.probe(model, "videos", methods=("propagation",), neighborhood=3)


def test_objects_that_vanish_on_the_feature_map_are_told():
    start = np.zeros((64, 64), np.uint8)
    start[0, 0], start[20:40, 20:40] = 1, 2
    features = F.normalize(torch.randn(16, 4), dim=1)
    pictures = [Picture(torch.zeros(64, 64, 3, dtype=torch.uint8))] * 2
    _, lost = follow(pictures, start, lambda _: (features, (4, 4)), Settings())
    assert lost == [1]
