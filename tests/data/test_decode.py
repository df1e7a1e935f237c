import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.data.decode import decode, header
from opticus.structures import ImageError


def _noise(h, w, c=3):
    return np.random.default_rng(0).integers(0, 256, (h, w, c), dtype=np.uint8)


def _bytes(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_png_round_trip_and_all_sources(tmp_path):
    pixels = _noise(20, 30)
    data = _bytes(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(data)):
        got = decode(source).pixels
        assert np.array_equal(got.numpy(), pixels) and got.dtype == torch.uint8 and got.is_contiguous()
    got[0, 0, 0] = 1  # writable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly_once(orientation):
    turns = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, 1),
    }
    pixels = _noise(6, 9)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    data = _bytes(image, exif=exif)
    assert np.array_equal(decode(data).pixels.numpy(), turns[orientation](pixels))
    head = header(data)
    assert head.orientation == orientation and head.size == decode(data).size


def test_modes_become_rgb():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    same = np.repeat(gray[..., None], 3, 2)
    sixteen = Image.fromarray(gray.astype(np.uint16) * 257)
    cases = {
        "L": Image.fromarray(gray),
        "LA": Image.fromarray(np.stack([gray, gray[::-1]], -1), "LA"),
        "I;16": sixteen,
        "P": Image.fromarray(gray).convert("P"),
        "RGBA": Image.fromarray(np.concatenate([same, gray[..., None]], 2)),
    }
    for name, image in cases.items():
        assert np.array_equal(decode(_bytes(image)).pixels.numpy(), same), name
    palette = Image.fromarray(gray).convert("P")
    assert np.array_equal(decode(_bytes(palette, transparency=bytes(range(256)))).pixels.numpy(), same)
    bits = Image.fromarray((gray > 99).astype(np.uint8) * 255).convert("1")
    assert set(decode(_bytes(bits)).pixels.unique().tolist()) == {0, 255}
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode(_bytes(cmyk, "TIFF")).pixels[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(ImageError, match="floating-point"):
        decode(_bytes(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "f.tif")


def test_bad_pictures_are_named(tmp_path):
    jpeg = _bytes(Image.fromarray(_noise(64, 64)), "JPEG")
    png = _bytes(Image.fromarray(_noise(64, 64)))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    cases = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"hello, this is no picture", "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "head.png": (png[:20], "cannot be opened|not an image|corrupt"),
        "bits.png": (bytes(flipped), "corrupt"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=words) as caught:
            decode(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "absent.png")
    with pytest.raises(ImageError):
        decode(tmp_path)


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"bomb\.png.*pixels"):
        decode(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="1200 pixels, more than the budget of 1000"):
        decode(_bytes(Image.new("RGB", (30, 40))), budget=1000)
