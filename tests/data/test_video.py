import builtins

import av
import numpy as np
import pytest

from opticus.data.video import frames, rate
from opticus.structures import ImageError, MissingPackageError


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(7):
            picture = np.full((48, 64, 3), 30 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


def test_frames_come_in_order(film):
    seen = [float(frame.pixels.float().mean()) for frame in frames(film)]
    assert len(seen) == 7 and np.allclose(seen, [30 * i for i in range(7)], atol=4)
    assert next(iter(frames(film))).pixels.shape == (48, 64, 3) and rate(film) == 10


def test_files_that_are_no_video(tmp_path, film, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    for path, words in ((tmp_path / "x.mp4", "cannot be decoded"), (tmp_path / "absent.mp4", "no such file")):
        with pytest.raises(ImageError, match=words):
            list(frames(path))
    with pytest.raises(ImageError, match="budget"):
        list(frames(film, budget=100))
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: (_ for _ in ()).throw(ImportError()) if name == "av" else real(name, *a, **k)
    )
    with pytest.raises(MissingPackageError, match=r"opticus\[video\]"):
        list(frames(film))
