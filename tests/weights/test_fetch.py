from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from opticus.structures import UsageError, WeightsError
from opticus.weights import cache, fetch
from opticus.weights.cache import cache_folder, file_name, writable_folder

BODY = bytes((i * 7 + i // 251) % 256 for i in range(3_000_000))
DIGEST = hashlib.sha256(BODY).hexdigest()


class Site:
    """What the server does: bodies by path, and how it misbehaves."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {"/w.pth": BODY}
        self.etag = '"one"'
        self.ranges = True
        self.cut_after: list[int] = []  # bytes after which the connection drops, one per request
        self.codes: list[int] = []
        self.redirect: dict[str, str] = {}
        self.lengths = True
        self.requests: list[tuple[str, str | None]] = []


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, str]]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.codes:
                return self.send_error(state.codes.pop(0))
            if self.path in state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect[self.path])
                self.end_headers()
                return None
            if self.path not in state.bodies:
                return self.send_error(404)
            body, start = state.bodies[self.path], 0
            if wanted and state.ranges and self.headers.get("If-Range") == state.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if state.lengths:
                self.send_header("Content-Length", str(len(body) - start))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[start : start + state.cut_after.pop(0)] if state.cut_after else body[start:])
            self.close_connection = True
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(p.name.partition("-")[2] for p in folder.iterdir())


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper(), DIGEST[:8]])
def test_a_file_is_downloaded_once(site: tuple[Site, str], tmp_path: Path, digest: str) -> None:
    state, root = site
    first = fetch.fetch(f"{root}/w.pth", digest, folder=tmp_path)
    assert first.read_bytes() == BODY and first.parent == tmp_path
    assert fetch.fetch(f"{root}/w.pth", digest, folder=tmp_path) == first
    assert len(state.requests) == 1
    assert names(tmp_path) == ["w.pth", "w.pth.checked", "w.pth.lock"]


def test_wrong_content_is_removed_and_named(site: tuple[Site, str], tmp_path: Path) -> None:
    _, root = site
    wrong = "0" * 64
    with pytest.raises(WeightsError) as error:
        fetch.fetch(f"{root}/w.pth", wrong, folder=tmp_path)
    assert all(part in str(error.value) for part in (f"{root}/w.pth", wrong, DIGEST, "removed"))
    assert names(tmp_path) == ["w.pth.lock"]


def test_a_truncated_file_is_an_error_that_keeps_what_came(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    state.cut_after = [1000, 500, 500]
    with pytest.raises(WeightsError, match=r"truncated: 2000 of 3000000 bytes arrived; the 2000 bytes .* are kept"):
        fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path)
    assert "w.pth" not in names(tmp_path) and "w.pth.part" in names(tmp_path)
    # the next call takes it up where it broke
    state.requests.clear()
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY
    assert state.requests == [("/w.pth", "bytes=2000-")]
    assert names(tmp_path) == ["w.pth", "w.pth.checked", "w.pth.lock"]


def test_a_drop_is_resumed_within_one_call(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    state.cut_after = [1_500_000]
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY
    assert [r for _, r in state.requests] == [None, "bytes=1500000-"]


def test_a_server_without_ranges_starts_again(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    state.cut_after, state.ranges = [1_500_000], False
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY
    assert len(state.requests) == 2


def test_two_versions_are_never_joined(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    state.cut_after = [1_000_000] * 3
    state.bodies["/v"] = BODY
    state.cut_after = [1000, 1000, 1000]
    with pytest.raises(WeightsError):
        fetch.fetch(f"{root}/v", folder=tmp_path, tell=lambda s: None)
    state.bodies["/v"], state.etag = BODY[::-1], '"two"'
    assert fetch.fetch(f"{root}/v", folder=tmp_path, tell=lambda s: None).read_bytes() == BODY[::-1]
    # a server that marks no versions is not asked to resume at all
    state.etag, state.cut_after, state.requests = "", [1000], []
    assert fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=lambda s: None).read_bytes() == BODY
    assert [r for _, r in state.requests] == [None, None]


def test_a_complete_part_left_by_a_killed_process_is_used(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    part = tmp_path / (file_name(f"{root}/w.pth") + ".part")
    part.write_bytes(BODY)
    part.with_name(part.name + ".version").write_text(state.etag)
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY
    part.write_bytes(BODY + b"more")  # and one that is too long is not
    part.with_name(part.name + ".version").write_text(state.etag)
    os.unlink(tmp_path / file_name(f"{root}/w.pth"))
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_answers_of_the_server(site: tuple[Site, str], tmp_path: Path, code: int, requests: int) -> None:
    state, root = site
    state.codes = [code] * 3
    with pytest.raises(WeightsError, match=rf"/w\.pth: the server answered {code}"):
        fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path)
    assert len(state.requests) == requests
    state.codes = [503]  # a hiccup
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).is_file()


def test_an_unreachable_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    with pytest.raises(WeightsError, match=r"localhost:1/w: could not be fetched \(.*refused"):
        fetch.fetch("http://localhost:1/w", DIGEST, folder=tmp_path)


def test_a_file_without_a_digest_is_told_and_pinned(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    told: list[str] = []
    path = fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=told.append)
    assert len(told) == 1 and DIGEST in told[0] and "pinned" in told[0]
    assert fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=told.append) == path and len(told) == 1
    path.unlink()
    state.bodies["/w.pth"] = BODY[:-1] + b"!"
    with pytest.raises(WeightsError, match=f"wrong content: sha256 {DIGEST} was expected"):
        fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=told.append)
    assert not path.exists()
    state.bodies["/w.pth"] = BODY
    assert fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=told.append) == path and len(told) == 1
    path.unlink()
    pinned = path.with_name(path.name + ".pin.json")
    pinned.write_text("{}")
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch.fetch(f"{root}/w.pth", folder=tmp_path, tell=told.append)


def test_by_default_sentences_are_warnings(site: tuple[Site, str], tmp_path: Path) -> None:
    _, root = site
    with pytest.warns(UserWarning, match=DIGEST):
        fetch.fetch(f"{root}/w.pth", folder=tmp_path)


def test_a_damaged_cached_file_is_fetched_again(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    path = fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path)
    path.write_bytes(BODY[:-5])
    told: list[str] = []
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path, tell=told.append).read_bytes() == BODY
    assert len(state.requests) == 2 and "downloaded again" in told[0]
    # a file that was checked against nothing is checked when a digest is asked for
    with pytest.raises(WeightsError, match="wrong content"):
        fetch.fetch(f"{root}/w.pth", "1" * 64, folder=tmp_path, tell=told.append)


@pytest.mark.parametrize(
    "url", ["http://example.org/w.pth", "file:///etc/passwd", "ftp://example.org/w", "w.pth", "https://", "hf://owner/repo"]
)
def test_only_safe_addresses_are_used(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="http"):
        fetch.fetch(url.replace("hf://owner/repo", "hf://http/x"), folder=tmp_path)


def test_redirects_stay_on_safe_addresses(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    state.redirect = {"/good": f"{root}/w.pth", "/plain": "http://example.org/w", "/local": "file:///etc/passwd"}
    assert fetch.fetch(f"{root}/good", DIGEST, folder=tmp_path).read_bytes() == BODY
    with pytest.raises(UsageError, match="plain http"):
        fetch.fetch(f"{root}/plain", DIGEST, folder=tmp_path)
    with pytest.raises((UsageError, WeightsError)):
        fetch.fetch(f"{root}/local", DIGEST, folder=tmp_path)


@pytest.mark.parametrize("digest", ["abc", "xyzxyzxyz", "0" * 65])
def test_a_digest_must_be_one(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UsageError, match="not a sha256"):
        fetch.fetch("https://example.org/w", digest, folder=tmp_path)


def test_hub_addresses() -> None:
    assert fetch._plain("hf://facebook/detr-resnet-50/model.safetensors") == (
        "https://huggingface.co/facebook/detr-resnet-50/resolve/main/model.safetensors"
    )


def test_a_full_disk_is_one_sentence(site: tuple[Site, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, root = site

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.os, "fsync", full)
    with pytest.raises(WeightsError, match="the disk is full; what was downloaded is kept"):
        fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert fetch.fetch(f"{root}/w.pth", DIGEST, folder=tmp_path).read_bytes() == BODY


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "weights"
    assert writable_folder() == (tmp_path / "home" / "weights", None)
    monkeypatch.delenv("OPTICUS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "opticus" / "weights"


def test_a_read_only_home_falls_back_with_a_sentence(
    site: tuple[Site, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = site
    blocked = tmp_path / "home"
    blocked.write_text("a file where a folder is wanted, which stops even root")
    monkeypatch.setenv("OPTICUS_HOME", str(blocked))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    told: list[str] = []
    path = fetch.fetch(f"{root}/w.pth", DIGEST, tell=told.append)
    assert path.is_relative_to(tmp_path) and str(blocked) in told[0] and "OPTICUS_HOME" in told[0]
    assert path.parents[1].stat().st_mode & 0o077 == 0
    path.parents[1].chmod(0o777)  # anybody could put weights there
    with pytest.raises(WeightsError, match="set OPTICUS_HOME"):
        fetch.fetch(f"{root}/w.pth", DIGEST, tell=told.append)


def test_files_in_a_read_only_cache_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICUS_HOME", str(tmp_path))
    target = cache_folder() / file_name("https://example.org/w.pth")
    target.parent.mkdir()
    target.write_bytes(BODY)
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    assert fetch.fetch("https://example.org/w.pth", DIGEST) == target


def test_names_in_the_cache_are_tame() -> None:
    assert file_name("https://a.org/x/r%2e%2e%2f..%5cn.pth?download=1").endswith("_n.pth")
    for url in ("https://a.org/../../etc/passwd", "https://a.org/%2e%2e/.hidden", "https://a.org/", "https://a.org/" + "x" * 500):
        name = file_name(url)
        assert Path(name).name == name and len(name) < 120 and not name.startswith(".")
    assert file_name("https://a.org/model.pth") != file_name("https://b.org/model.pth")


def _fetch_in_child(url: str, folder: str, queue) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            queue.put(fetch.fetch(url, folder=Path(folder)).read_bytes() == BODY)
    except Exception as error:
        queue.put(repr(error))


def test_processes_share_one_download(site: tuple[Site, str], tmp_path: Path) -> None:
    state, root = site
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_fetch_in_child, args=(f"{root}/w.pth", str(tmp_path), queue)) for _ in range(3)]
    for child in children:
        child.start()
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert results == [True, True, True]
    assert len(state.requests) == 1
