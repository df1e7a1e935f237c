from __future__ import annotations

import builtins
import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import opticus
from opticus.parity.fill import fill_module, picture
from opticus.structures import (
    CapabilityError,
    DataError,
    ImageError,
    Instances,
    MissingPackageError,
    Picture,
    UnknownNameError,
    UsageError,
)

NAMES, IDS = ("cat", "dog", "bird"), (7, 11, 42)


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    model = opticus.create("centernet/tiny", classes=3)
    model.card.labels, model.card.label_ids = NAMES, IDS
    return model.eval()


@pytest.fixture(scope="module")
def classifier() -> Any:
    model = opticus.create("lenet/5")
    fill_module(model)
    return model.eval()


def pixels(height: int = 96, width: int = 128, seed: int = 1) -> np.ndarray:
    return picture(height, width, seed)


def same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    assert a.labels.tolist() == b.labels.tolist()
    assert torch.allclose(a.scores, b.scores, rtol=0, atol=tolerance)
    assert torch.allclose(a.boxes, b.boxes, rtol=0, atol=max(tolerance * 1000, 1e-9))


def test_every_kind_of_source_gives_the_same_result(detector: Any, tmp_path: Path) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "one.png")
    Image.fromarray(array).save(tmp_path / "two.png")
    tensor = torch.from_numpy(array)
    first = detector.predict(array, threshold=0.0)[0]
    assert len(first) > 5 and first.size == (96, 128)
    sources: dict[str, Any] = {
        "file": str(tmp_path / "one.png"),
        "path": tmp_path / "one.png",
        "PIL": Image.open(tmp_path / "one.png"),
        "HWC tensor": tensor,
        "CHW tensor": tensor.permute(2, 0, 1),
        "Picture": Picture(tensor),
        "list": [array],
        "batch tensor": tensor[None],
        "not contiguous": np.asfortranarray(array),
    }
    for name, source in sources.items():
        found = detector.predict(source, threshold=0.0)
        assert len(found) == 1, name
        same(found[0], first)
    assert detector.predict(str(tmp_path / "one.png"))[0].id == "one.png"
    assert [p.id for p in detector.predict(tmp_path)] == ["one.png", "two.png"]
    assert [p.id for p in detector.predict([array, array])] == ["0", "1"]
    assert [p.id for p in detector.predict([tmp_path / "two.png", tmp_path / "one.png"])] == ["two.png", "one.png"]


def test_folders_are_searched_below_and_other_files_left_alone(detector: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "sub" / "b.JPG", "JPEG")
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [p.id for p in detector.predict(tmp_path)] == ["a.png", "sub/b.JPG"]


def test_a_video_is_looked_at_frame_by_frame(detector: Any, tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(pixels(48, 64, number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    found = detector.predict(tmp_path / "clip.mkv", threshold=0.0, batch=2)
    assert [p.id for p in found] == [f"clip.mkv#{n}" for n in range(5)]
    for number, prediction in enumerate(found):
        same(prediction, detector.predict(pixels(48, 64, number), threshold=0.0)[0], 1e-5)
    assert torch.equal(found[3].picture.pixels, torch.from_numpy(pixels(48, 64, 3)))


def test_streaming_is_lazy_and_memory_stays_flat(detector: Any) -> None:
    alive: list[weakref.ref[Any]] = []

    def source() -> Iterator[torch.Tensor]:
        for number in range(24):
            one = torch.from_numpy(pixels(64, 64, number))
            alive.append(weakref.ref(one))
            yield one

    stream = detector.predict(source(), stream=True, batch=4)
    assert alive == []
    next(stream)
    assert len(alive) == 4
    most = 0
    for _ in stream:
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 24
    assert most <= 8


def test_the_batch_size_changes_nothing(detector: Any, classifier: Any) -> None:
    pictures = [pixels(128, 128, n) for n in range(5)]
    for model in (detector, classifier):
        one = model.predict(pictures, threshold=0.0, batch=1)
        many = model.predict(pictures, threshold=0.0, batch=4)
        for a, b in zip(one, many):
            order_a, order_b = a.labels.argsort(stable=True), b.labels.argsort(stable=True)
            assert a.labels[order_a].tolist() == b.labels[order_b].tolist()
            assert torch.allclose(a.scores, b.scores, rtol=0, atol=1e-5)
            if isinstance(a.result, Instances):
                assert torch.allclose(a.boxes, b.boxes, rtol=0, atol=1e-2)


def test_threshold_labels_and_limit(detector: Any, classifier: Any) -> None:
    every = detector.predict(pixels(), threshold=0.0)[0]
    middle = float(every.scores.median())
    above = detector.predict(pixels(), threshold=middle)[0]
    assert len(above) == int((every.scores >= middle).sum()) < len(every)
    assert bool((above.scores >= middle).all())
    dogs = detector.predict(pixels(), threshold=0.0, labels=["dog"])[0]
    assert set(dogs.labels.tolist()) == {1} and len(dogs) == int((every.labels == 1).sum())
    three = detector.predict(pixels(), threshold=0.0, limit=3)[0]
    assert len(three) == 3
    same(three, every[:3] if isinstance(every, Instances) else every.result[:3])
    assert len(detector.predict(pixels(), threshold=1.0)[0]) == 0
    digits = classifier.predict(pixels(32, 32), limit=2)[0]
    assert len(digits) == 2 and digits.scores[0] >= digits.scores[1] and digits.probs.shape == (10,)


def test_results_know_names_json_and_the_data_sets_own_ids(detector: Any) -> None:
    found = detector.predict(pixels(), threshold=0.0, limit=4)[0]
    records = found.to_coco(image_id=139)
    assert len(records) == 4
    for record, box, label in zip(records, found.boxes.tolist(), found.labels.tolist()):
        assert record["image_id"] == 139 and record["category_id"] == IDS[label]
        assert record["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]])
    described = found.to_json()
    assert described["size"] == [96, 128] and {o["name"] for o in described["objects"]} <= set(NAMES)
    assert found.name_of(2) == "bird" and found.name_of(9) == "9"


def test_outputs_that_are_no_class_do_not_reach_results(detector: Any) -> None:
    every = detector.predict(pixels(), threshold=0.0)[0]
    assert 1 in every.labels.tolist()
    names, ids = detector.card.labels, detector.card.label_ids
    try:
        detector.card.labels, detector.card.label_ids = ("cat", "N/A", "bird"), (1, 2, 3)
        found = detector.predict(pixels(), threshold=0.0)[0]
    finally:
        detector.card.labels, detector.card.label_ids = names, ids
    assert found.names == ("cat", "bird") and found.label_ids == (1, 3)
    assert len(found) == int((every.labels != 1).sum())
    assert sorted(found.labels.tolist()) == sorted(0 if k == 0 else 1 for k in every.labels.tolist() if k != 1)


def test_plot_and_save(detector: Any, classifier: Any, tmp_path: Path) -> None:
    found = detector.predict(pixels(200, 300), threshold=0.0, limit=3)[0]
    drawn = found.plot()
    assert np.abs(np.asarray(drawn.convert("RGB"), dtype=int)[:200, :300] - pixels(200, 300)).max() > 50
    for name in ("x.png", "deep/er/x.jpg", "x.webp"):
        assert Image.open(found.save(tmp_path / name)).size[0] >= 300
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(UnknownNameError, match=r"unknown picture suffix '\.doc'"):
        found.save(tmp_path / "x.doc")
    assert not (tmp_path / "x.doc").exists()
    assert classifier.predict(pixels(64, 64))[0].save(tmp_path / "c.png").is_file()


def test_supervision_gets_boxes_names_and_scores_or_is_asked_for(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detector.predict(pixels(), threshold=0.0, limit=4)[0]
    there = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "supervision":
            raise ImportError("No module named 'supervision'")
        return there(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "supervision", raising=False)
        patch.setattr(builtins, "__import__", absent)
        with pytest.raises(MissingPackageError, match=r"pip install 'opticus\[supervision\]'"):
            found.to_supervision()


def test_conversions_of_classes_are_refused_with_a_sentence(classifier: Any) -> None:
    found = classifier.predict(pixels(32, 32))[0]
    for verb in ("to_coco", "to_supervision"):
        with pytest.raises(CapabilityError, match=f"{verb} needs detected objects, picture has Classes"):
            getattr(found, verb)()


def test_pictures_turned_by_exif_have_boxes_in_the_turned_frame(detector: Any, tmp_path: Path) -> None:
    upright = pixels(96, 160, 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; to be shown after a quarter turn clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "turned.png", exif=exif)
    turned = detector.predict(tmp_path / "turned.png", threshold=0.0)[0]
    assert turned.size == (96, 160) and turned.picture.size == (96, 160)
    same(turned, detector.predict(upright, threshold=0.0)[0])
    assert bool((turned.boxes[:, 2] <= 160).all()) and bool((turned.boxes[:, 3] <= 96).all())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_tiny_and_thin_pictures(detector: Any, classifier: Any, height: int, width: int) -> None:
    array = pixels(height, width)
    found = detector.predict(array, threshold=0.0)[0]
    assert found.size == (height, width) and bool(torch.isfinite(found.boxes).all())
    assert bool((found.boxes[:, 2] <= width).all()) and bool((found.boxes >= 0).all())
    assert found.plot().size[0] >= 1
    assert len(classifier.predict(array)[0]) == 10


def test_gray_and_transparent_pictures(detector: Any, tmp_path: Path) -> None:
    gray = pixels()[..., 0]
    three = np.repeat(gray[..., None], 3, 2)
    expected = detector.predict(three, threshold=0.0)[0]
    same(detector.predict(gray, threshold=0.0)[0], expected)
    same(detector.predict(gray[..., None], threshold=0.0)[0], expected)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    same(detector.predict(tmp_path / "gray.png", threshold=0.0)[0], expected)
    clear = np.concatenate([three, np.full((*gray.shape, 1), 128, np.uint8)], 2)
    same(detector.predict(Image.fromarray(clear), threshold=0.0)[0], expected)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    same(detector.predict(tmp_path / "clear.png", threshold=0.0)[0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_left_as_it_was(detector: Any, training: bool) -> None:
    frozen = detector.get_submodule(next(n for n, m in detector.named_modules() if n and list(m.children())))
    try:
        detector.train(training)
        expected = [m.training for m in detector.modules()]
        detector.predict(pixels())
        assert [m.training for m in detector.modules()] == expected
        frozen.eval()
        expected = [m.training for m in detector.modules()]
        detector.predict(pixels())
        assert [m.training for m in detector.modules()] == expected
    finally:
        detector.eval()


def test_no_gradient_is_recorded_and_no_parameter_moves(detector: Any) -> None:
    before = [p.clone() for p in detector.state_dict().values()]
    found = detector.predict(pixels(), threshold=0.0)[0]
    assert not found.scores.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, detector.state_dict().values()))


BAD: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((8, 8, 3), np.float32), ImageError, "expected uint8 pixels in 0..255, found torch.float32"),
    (torch.full((3, 8, 8), float("nan")), ImageError, "expected uint8 pixels"),
    (np.zeros((8, 8, 5), np.uint8), ImageError, r"expected 1 or 3 channels, found shape \(8, 8, 5\)"),
    (np.zeros((8,), np.uint8), ImageError, r"expected a picture \(H, W, 3\)"),
    (np.zeros((0, 8, 3), np.uint8), ImageError, "the picture is empty"),
    (5, DataError, "cannot look at a int"),
    (None, DataError, "cannot look at a NoneType"),
    ("nowhere.png", DataError, "nowhere.png: no such file or folder"),
]


@pytest.mark.parametrize(("source", "kind", "words"), BAD)
def test_what_is_no_picture_is_refused_with_a_sentence(detector: Any, source: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        detector.predict(source)


def test_an_empty_list_has_no_results_and_an_empty_folder_is_an_error(detector: Any, tmp_path: Path) -> None:
    assert detector.predict([]) == []
    with pytest.raises(DataError, match="no pictures in this folder"):
        detector.predict(tmp_path)


def test_broken_files_are_named(detector: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"bad\.png: the picture is corrupt or truncated"):
        detector.predict(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 50)
    with pytest.raises(ImageError, match=r"clip\.mp4: the video cannot be decoded"):
        detector.predict(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], found 1.5"),
        ({"threshold": float("nan")}, "threshold must be in"),
        ({"batch": 0}, "batch must be at least 1, found 0"),
        ({"limit": 0}, "limit must be at least 1, found 0"),
        ({"labels": ["cow"]}, "unknown label 'cow'; known: cat, dog, bird"),
        ({"labels": ["dogg"]}, "unknown label 'dogg'; did you mean 'dog'"),
        ({"device": "warp"}, "unknown device 'warp'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_wrong_keywords_are_named(detector: Any, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        detector.predict(pixels(), **keywords)


def test_a_missing_gpu_is_said(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device 'cuda' was asked for, but torch sees no CUDA GPU here"):
        detector.predict(pixels(), device="cuda")


def test_reduced_precision_stays_near(detector: Any) -> None:
    exact = detector.predict(pixels(), threshold=0.0, limit=1)[0]
    rough = detector.predict(pixels(), threshold=0.0, limit=1, precision="bf16")[0]
    assert rough.scores.dtype == torch.float32
    assert float((exact.scores - rough.scores).abs().max()) < 0.05
