"""Tar shards: read as WebDataset writes them, streamed in an order known beforehand, resumed exactly, and their faults named."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import itertools
import json
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from opticus.data import shard_index, tar
from opticus.data.doctor import doctor
from opticus.data.export import export_data
from opticus.data.loader import Plan, batches
from opticus.data.open import open_data
from opticus.data.shards import expanded
from opticus.data.stream import LANES, Forward, Shape, StreamOrder, epoch_of
from opticus.structures import DataError, Error, Prepare, UsageError
from opticus.structures.targets import Text


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))


def png(seed, size=(5, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue(), torch.from_numpy(pixels)


def write(path, members, **options):
    """A tar file of (name, bytes or TarInfo)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def plain(first, count):
    """Members of samples first.. with class number % 5."""
    return [
        (f"{i:05d}.{end}", part)
        for i in range(first, first + count)
        for end, part in (("png", png(i)[0]), ("cls", str(i % 5).encode()))
    ]


@pytest.fixture
def folder(tmp_path):
    """Seven train shards of different lengths (66 samples in all) and one val shard."""
    first = 0
    for number, count in enumerate((12, 3, 9, 15, 1, 20, 6)):
        write(tmp_path / "data" / f"train-{number:06d}.tar", plain(first, count))
        first += count
    write(tmp_path / "data" / "val-000000.tar", plain(100, 4))
    return tmp_path / "data"


@pytest.fixture
def served(folder):
    """The folder behind a local HTTP server, and the paths of its requests."""
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            asked.append(self.requestline)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_folder_of_shards_is_read_in_place(folder):
    data = open_data(folder)
    assert (len(data), data.task, data.names, data.splits) == (66, "classify", tuple("01234"), ("train", "val"))
    for i in (0, 11, 12, 40, 65):
        assert torch.equal(data[i].picture.pixels, png(i)[1])
        assert int(data[i].target.labels[0]) == i % 5
    assert data[12].id == "train-000001/00012" and len(open_data(folder, "val")) == 4
    assert [s.id for s in data] == [data.id_of(i) for i in range(66)]
    with pytest.raises(IndexError):
        data[66]
    assert not [file for file in folder.rglob("*") if file.suffix != ".tar"]  # nothing was unpacked beside them
    same = open_data(str(folder / "train-{000000..000006}.tar"))
    assert same.hash == data.hash or same.splits != data.splits
    assert len(open_data(folder / "train-000003.tar")) == 15
    before = data.hash
    write(folder / "train-000004.tar", plain(500, 2))
    assert len(open_data(folder)) == 67 and open_data(folder).hash != before  # a changed shard is walked again


def test_shards_of_webdataset_are_read_and_ours_by_it(tmp_path):
    wds = pytest.importorskip("webdataset")
    (tmp_path / "theirs").mkdir()
    with wds.ShardWriter(str(tmp_path / "theirs" / "train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"a.b/{i:03d}", "png": png(i)[1].numpy(), "json": {"label": i % 3, "size": [5, 7]}})
    data = open_data(tmp_path / "theirs")
    assert len(data) == 10 and len(data.shards) == 3 and data.names == ("0", "1", "2")
    assert torch.equal(data[5].picture.pixels, png(5)[1]) and int(data[5].target.labels[0]) == 2
    export_data("crops", "shards", tmp_path / "ours", limit=6)
    ours = open_data(tmp_path / "ours")
    theirs = list(wds.WebDataset(str(tmp_path / "ours" / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    assert [s["cls"] for s in theirs] == [int(ours.target_of(i).labels[0]) for i in range(6)]
    assert all(np.array_equal(s["png"], ours[i].picture.pixels.numpy()) for i, s in enumerate(theirs))
    keys = [s["__key__"] for s in wds.WebDataset(str(tmp_path / "theirs" / "train-000001.tar"), shardshuffle=False)]
    assert keys == [data.id_of(i).partition("/")[2] for i in range(4, 8)]


def test_export_keeps_splits_classes_and_pixels(tmp_path):
    export_data("crops", "shards", tmp_path / "a", limit=7)
    export_data("crops", "shards", tmp_path / "b", limit=7)
    assert (tmp_path / "a" / "train-000000.tar").read_bytes() == (tmp_path / "b" / "train-000000.tar").read_bytes()
    crops, data = open_data("crops"), open_data(tmp_path / "a")
    assert data.names == crops.names and set(data.splits) == {"train", "val", "test"}
    assert all(torch.equal(data[i].picture.pixels, crops[i].picture.pixels) for i in range(7))
    assert all(torch.equal(data.target_of(i).labels, crops.target_of(i).labels) for i in range(7))
    assert doctor(tmp_path / "a", splits=["train"]).errors == 0
    with pytest.raises(UsageError, match="shards does not hold"):
        export_data("scenes", "shards", tmp_path / "c")
    pictures = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), {"cat": "red", "dog": "blue"}[name]).save(pictures / name / "x.1.jpg")
    export_data(str(pictures), "shards", tmp_path / "d")
    own = open_data(tmp_path / "d")
    assert own.names == ("cat", "dog") and own.raw_of(1).picture == (pictures / "dog" / "x.1.jpg").read_bytes()


def test_class_names_and_captions(tmp_path):
    members = [
        (f"{i}.{end}", part)
        for i in range(3)
        for end, part in (("json", json.dumps({"class": "ba"[i % 2]}).encode()), ("jpg", png(i)[0]))
    ]
    write(tmp_path / "named" / "train-0.tar", members)
    write(tmp_path / "named" / "val-0.tar", [("9.jpg", png(9)[0]), ("9.json", b'"c"')])
    data = open_data(tmp_path / "named")
    assert data.names == ("a", "b", "c") and [int(data.target_of(i).labels[0]) for i in range(3)] == [1, 0, 1]
    (tmp_path / "named" / "classes.txt").write_text("c\nb\n")
    with pytest.raises(DataError, match=r"'a', but classes\.txt names 2"):
        open_data(tmp_path / "named")
    write(
        tmp_path / "told" / "0.tar",
        [(f"{i}.{end}", part) for i in range(2) for end, part in (("txt", b" a dog\n"), ("webp", png(i)[0]))],
    )
    told = open_data(tmp_path / "told")
    assert told.task == "caption" and told[1].target == Text("a dog") == told.target_of(1) and told.splits == ("train",)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walking_equals_tarfile(tmp_path, format):
    names = ["a.txt", "d" * 60 + "/" + "e" * 90 + ".png"]
    if format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".png", "ö/" + "ü" * 120 + ".cls"]
    path = write(tmp_path / "a.tar", [(name, name.encode() * 7) for name in names], format=format)
    with tarfile.open(path) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file]
    reads = tar.Reads()
    assert [(m.name, m.offset, m.size) for m in tar.walk(reads.of(str(path)))] == expected
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert [(m.name, m.offset, m.size) for m in tar.walk(reads.of(str(tmp_path / "a.tar.gz")))] == expected


def test_patterns():
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{train,val}/{0..1}.tar") == ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]
    for bad, words in (
        ("a-{3..1}.tar", "upwards"),
        ("a-{}.tar", "braces"),
        ("a-{0..1.tar", "braces"),
        ("pipe:cat a.tar", "no commands"),
    ):
        with pytest.raises(UsageError, match=words):
            expanded(bad)
    with pytest.raises(DataError, match=r"a-1\.tar: the shard cannot be opened"):
        open_data("a-{1..2}.tar")


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def test_the_doctor_names_every_fault_and_unpacks_nothing(folder, tmp_path):
    good = write(tmp_path / "good.tar", plain(0, 6)).read_bytes()
    data = tmp_path / "sick"
    data.mkdir()
    (data / "train-0.tar").write_bytes(good[: 512 * 9 + 100])  # in the middle of a member
    (data / "train-1.tar").write_bytes(good[: len(good) // 10240 * 10240 - 10240 + 512])
    write(
        data / "train-2.tar",
        [
            *plain(20, 2),
            ("a.cls", b"1"),
            ("b.png", png(31)[0]),
            ("c.png", png(32)[0]),
            ("c.cls", b"cat"),
            ("d.png", png(33)[0][:60]),
            ("d.cls", b"2"),
            ("e.png", png(34)[0]),
            ("e.png", png(34)[0]),
            ("e.cls", b"2"),
            *plain(20, 1),
            ("../f.png", png(35)[0]),
            ("/g.png", png(36)[0]),
            special("h.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("i.png", tarfile.LNKTYPE, "a.cls"),
            special("j.png", tarfile.CHRTYPE),
        ],
    )
    damaged = bytearray(good)
    damaged[512 * 4 + 20] ^= 1
    (data / "train-3.tar").write_bytes(bytes(damaged))
    report = doctor(data)
    found = {(f.kind, f.record or f.file.rpartition("/")[2]) for f in report.findings if f.severity == "error"}
    assert found >= {
        ("damaged shard", "train-0.tar"),
        ("damaged shard", "train-1.tar"),
        ("damaged shard", "train-3.tar"),
        ("missing member", "train-2/a"),
        ("missing member", "train-2/b"),
        ("bad class", "train-2/c"),
        ("unreadable picture", "train-2/d"),
        ("duplicate member", "train-2/e"),
        ("duplicate id", "train-2/00020"),
        ("unsafe member", "train-2.tar"),
    }
    unsafe = [f.detail for f in report.findings if f.kind == "unsafe member"]
    assert [detail.split("'")[1] for detail in unsafe] == ["../f.png", "/g.png", "h.png", "i.png", "j.png"]
    assert sorted(file.name for file in data.iterdir()) == [f"train-{i}.tar" for i in range(4)]
    with pytest.raises(DataError, match="damaged shard"):
        open_data(data)
    for shard in data.glob("train-[013].tar"):
        shard.unlink()
    with pytest.raises(DataError, match="unsafe member"):
        open_data(data)
    kept = open_data(data, on_bad="keep")
    with pytest.raises(DataError, match="'b' has no class"):
        kept.target_of([kept.id_of(i) for i in range(len(kept))].index("train-2/b"))


def test_bad_samples_can_be_left_out(tmp_path):
    write(tmp_path / "x" / "train-0.tar", [*plain(0, 3), ("b.png", png(31)[0]), ("c.png", png(32)[0]), ("c.cls", b"-1")])
    with pytest.warns(UserWarning, match="2 of 5 records"):
        assert [s.id for s in open_data(tmp_path / "x", on_bad="quarantine")] == [f"train-0/0000{i}" for i in range(3)]


def test_every_prefix_of_a_shard_is_a_named_fault(tmp_path):
    good = write(tmp_path / "good.tar", plain(0, 2)).read_bytes()
    end = good.rstrip(b"\0")
    ends_at = -(-len(end) // 512) * 512 + 1024
    for length in range(0, len(good), 256):
        (tmp_path / "cut.tar").write_bytes(good[:length])
        faults = [kind for kind, _, _ in shard_index.index_of(str(tmp_path / "cut.tar")).faults]
        assert ("damaged shard" in faults) == (length < ends_at), length


def test_the_index_of_a_million_samples_is_flat(tmp_path):
    n = 20_000
    with tarfile.open(tmp_path / "train-000000.tar", "w") as file:
        for i in range(n):
            for end, part in (("jpg", b"x"), ("cls", str(i % 1000).encode())):
                info = tarfile.TarInfo(f"n0144{i % 10000:04d}_{i:08d}.{end}")
                info.size = len(part)
                file.addfile(info, io.BytesIO(part))
    data = open_data(tmp_path / "train-{000000..000000}.tar")
    assert len(data) == n and data.nbytes / n * 1_000_000 <= 50e6


# --- streams


def records(stream, count):
    return [(batch.ids, batch.images.pixels) for batch in itertools.islice(stream, count)]


RULE = Prepare(resize="none", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_an_epoch_sends_every_record_of_whole_batches_once():
    shard_of = np.repeat(np.arange(7), [12, 3, 9, 15, 1, 20, 6]).astype(np.int32)
    for world, batch in ((1, 4), (2, 6), (3, 6), (1, 66)):
        shape = Shape(5, batch // world, 66 // batch, world, hold=16)
        taken = []
        for rank in range(world):
            for keys in itertools.islice(StreamOrder(shape, shard_of, 0, rank), 66 // batch):
                taken += [i for epoch, i, _ in keys if epoch == 0]
        assert len(taken) == len(set(taken)) == 66 // batch * batch
        order = epoch_of(shape, shard_of, 0)
        assert sorted(order.read.tolist()) == list(range(66)) and set(taken) == set(order.sent.tolist())
        assert order.sent.tolist() != epoch_of(shape, shard_of, 1).sent.tolist() != sorted(order.sent.tolist())
        for first, last in itertools.pairwise(order.starts.tolist()):  # nothing leaves the buffer before it was read
            at = {record: k for k, record in enumerate(order.read[first:last].tolist())}
            assert all(at[record] <= k + 16 // LANES for k, record in enumerate(order.sent[first:last].tolist()))


class Counted:
    """Records what is read; a record costs a restart if an earlier one of its shard is asked for."""

    def __init__(self, shard_of):
        self.sequential, self.shard_of, self.read = True, shard_of, []

    def raw_of(self, index, reads=None):
        self.read.append(index)
        return index

    def sample_of(self, index, raw):
        assert raw == index
        return index


@pytest.mark.parametrize("start", [0, 3, 13, 17])
def test_a_stream_reads_forwards_holds_little_and_skips_what_was_sent(start):
    shard_of = np.repeat(np.arange(9), 40).astype(np.int32)
    shape = Shape(1, 20, 18, 1, hold=32)
    data = Counted(shard_of)
    forward, held, sent = Forward(data, shape), 0, []
    for keys in itertools.islice(StreamOrder(shape, shard_of, start, 0), 18 - start):
        for epoch, index, _ in keys:
            sent.append(forward.sample(epoch, index))
            held = max(held, len(forward._waiting))
    assert sorted(data.read) == sorted(sent)  # each is read once, and only what this run sends
    assert held <= 32
    order = epoch_of(shape, shard_of, 0)
    at = {record: k for k, record in enumerate(order.read.tolist())}
    lane = np.searchsorted(order.starts, [at[record] for record in data.read], side="right")
    for number in set(lane.tolist()):
        places = [at[record] for record, where in zip(data.read, lane) if where == number]
        assert places == sorted(places)


@pytest.mark.parametrize("packed", [False, True])
def test_streams_equal_at_any_start_and_number_of_workers(folder, served, packed):
    if packed:
        for shard in sorted(folder.glob("*.tar")):
            (folder / f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes()))
            shard.unlink()
        source = folder
    else:
        source = served[0] + "/train-{000000..000006}.tar"
    data = open_data(source)
    assert data.sequential and len(data) == 66 and torch.equal(data[30].picture.pixels, png(30)[1])
    whole = records(batches(data, (), RULE, Plan(3, 8)), 20)
    assert len({name for names, _ in whole[:8] for name in names}) == 64
    for workers, start in ((0, 5), (2, 0), (2, 7), (3, 11)):
        part = records(batches(open_data(source), (), RULE, Plan(3, 8, workers=workers), start=start), 20 - start)
        assert [names for names, _ in part] == [names for names, _ in whole[start:]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(part, whole[start:]))
    halves = [records(batches(data, (), RULE, Plan(3, 8), rank=rank, world=2), 8) for rank in range(2)]
    names = [name for half in halves for names, _ in half for name in names]
    assert len(set(names)) == len(names) == 64
    with pytest.raises(UsageError, match="sampling"):
        batches(data, (), RULE, Plan(3, 8, shares=(1 / 66,) * 66))


def test_a_stream_without_its_bad_samples(folder, served):
    write(folder / "train-000002.tar", [*plain(15, 8), ("bad.png", png(1)[0])])
    with pytest.warns(UserWarning, match="1 of 66"):
        data = open_data(served[0] + "/train-{000000..000006}.tar", on_bad="quarantine")
    names = [name for names, _ in records(batches(data, (), RULE, Plan(0, 13)), 5) for name in names]
    assert len(set(names)) == 65 and "train-000002/bad" not in names


def test_broken_servers_are_named(folder, served):
    url, asked = served
    with pytest.raises(DataError, match=r"train-000007\.tar: cannot be fetched \(HTTP 404"):
        open_data(url + "/train-{000000..000007}.tar")
    asked.clear()
    data = open_data(url + "/train-{000000..000006}.tar")
    assert not [line for line in asked if line.startswith("GET") and ".tar" in line]  # the index comes from the cache
    shutil.copy(folder / "train-000004.tar", folder / "train-000005.tar")
    with pytest.raises(Error, match=r"train-000005\.tar"):
        list(data)
