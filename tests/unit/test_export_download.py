"""Downloads over a server that breaks off, lies, is slow or refuses: the file is whole and right, or it is not there."""

from __future__ import annotations

import hashlib
import random
import resource
import shutil
import socket
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from exporters import download as module
from exporters.download import Refused, Source, Unreachable, download
from forcegate.errors import CheckpointMismatch, SetupError
from tests.fileserver import FileServer, file_server

DATA = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = "/weights.pt"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        running.files[PATH] = DATA
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)


def fetch(server: FileServer, folder: Path, sha256: str = SHA256, token: str = "", path: str = PATH) -> Path:
    return download(
        Source(server.url + path, "weights.pt", sha256, token),
        folder / "weights.pt",
        lambda *_told: None,
        lambda _line: None,
    )


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_its_progress_is_told(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = Source(server.url + PATH, "weights.pt", SHA256)
    path = download(source, tmp_path / "weights.pt", lambda _name, done, total: told.append((done, total)), lambda _line: None)
    assert path.read_bytes() == DATA
    assert left(tmp_path) == ["weights.pt"]
    assert told[-1] == (len(DATA), len(DATA))
    assert [done for done, _total in told] == sorted(done for done, _total in told)


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_connection_that_breaks_is_resumed_where_it_broke(server: FileServer, tmp_path: Path, sha256: str) -> None:
    server.cuts = [1_200_000, 900_000]
    assert fetch(server, tmp_path, sha256).read_bytes() == DATA
    assert left(tmp_path) == ["weights.pt"]
    ranges = [headers.get("range") for _path, headers in server.seen]
    assert ranges[0] is None
    # What the client had not read when the connection broke comes again, so the places are not known to the byte.
    first, second = (int(value.removeprefix("bytes=").rstrip("-")) for value in ranges[1:])
    assert 0 < first <= 1_200_000
    assert first < second <= first + 900_000


def test_a_later_run_goes_on_where_the_first_gave_up(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(Unreachable, match="are kept"):
        fetch(server, tmp_path)
    assert left(tmp_path) == ["weights.pt.partial", "weights.pt.partial.json"]
    kept = (tmp_path / "weights.pt.partial").stat().st_size
    assert 0 < kept <= 1_000_000
    server.cuts = []
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.seen[-1][1]["range"] == f"bytes={kept}-"


def test_parts_of_two_versions_never_meet(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(Unreachable):
        fetch(server, tmp_path, sha256="")
    server.files[PATH] = DATA[::-1]
    server.cuts = []
    assert fetch(server, tmp_path, sha256="").read_bytes() == DATA[::-1]


def test_without_version_or_hash_nothing_is_resumed(server: FileServer, tmp_path: Path) -> None:
    server.etags = False
    server.cuts = [1_000_000]
    assert fetch(server, tmp_path, sha256="").read_bytes() == DATA
    assert all("range" not in headers for _path, headers in server.seen)


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_one_that_always_breaks_at_the_same_place_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000] * 50
    with pytest.raises(Unreachable):
        fetch(server, tmp_path)
    assert len(server.seen) < 10


def test_what_was_complete_when_the_run_was_killed_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.partial").write_bytes(DATA)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.seen[0][1]["range"] == f"bytes={len(DATA)}-"
    assert len(server.seen) == 1


def test_a_damaged_part_is_found_by_the_hash_and_fetched_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.partial").write_bytes(bytes(500_000))
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert [headers.get("range") for _path, headers in server.seen] == ["bytes=500000-", None]


def test_wrong_bytes_are_refused_and_nothing_is_kept(server: FileServer, tmp_path: Path) -> None:
    server.files[PATH] = wrong = DATA[:-1] + b"x"
    with pytest.raises(CheckpointMismatch) as caught:
        fetch(server, tmp_path)
    assert SHA256 in caught.value.detail
    assert hashlib.sha256(wrong).hexdigest() in caught.value.detail
    assert left(tmp_path) == []


def test_the_hash_that_the_hub_publishes_is_used_where_the_catalogue_has_none(server: FileServer, tmp_path: Path) -> None:
    server.headers = {"X-Linked-ETag": f'"{SHA256}"'}
    assert fetch(server, tmp_path, sha256="").read_bytes() == DATA
    (tmp_path / "weights.pt").unlink()
    server.files[PATH] = DATA[:-1] + b"x"
    with pytest.raises(CheckpointMismatch):
        fetch(server, tmp_path, sha256="")
    assert left(tmp_path) == []


def test_a_web_page_is_not_taken_for_weights(server: FileServer, tmp_path: Path) -> None:
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(Refused, match="web page"):
        fetch(server, tmp_path, sha256="")
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(server: FileServer, tmp_path: Path, status: int) -> None:
    server.answers = [status]
    with pytest.raises(Refused, match=str(status)) as caught:
        fetch(server, tmp_path)
    assert caught.value.http_status == status
    assert len(server.seen) == 1
    assert not tmp_path.exists() or left(tmp_path) == []


def test_an_overloaded_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.answers = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_a_token_never_follows_a_redirect_to_another_host(server: FileServer, tmp_path: Path) -> None:
    with file_server() as other:
        other.files["/elsewhere"] = DATA
        server.redirects = {"/gated": "/here", "/here": f"{other.url}/elsewhere"}
        assert fetch(server, tmp_path, token="hf_secret", path="/gated").read_bytes() == DATA
        assert [headers.get("authorization") for _path, headers in server.seen] == ["Bearer hf_secret"] * 2
        assert len(other.seen) == 1
        assert "authorization" not in other.seen[0][1]
        assert "hf_secret" not in str(other.seen)


def test_a_circle_of_redirects_ends(server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"/a": "/b", "/b": "/a"}
    with pytest.raises(Refused, match="redirects more than"):
        fetch(server, tmp_path, path="/a")


def test_a_server_that_falls_silent_is_given_up(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", httpx.Timeout(0.2))
    server.silence = 1.0
    with pytest.raises(Unreachable, match="sent nothing for"):
        fetch(server, tmp_path)


def test_a_slow_server_is_waited_for(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", httpx.Timeout(0.5))
    server.pause = 0.02  # 47 pieces: longer in all than the timeout, which is for silence alone
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_no_network_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(Unreachable, match=r"no connection to 127\.0\.0\.1"):
        fetch(FileServer(port=port), tmp_path)
    assert left(tmp_path) == []


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(SetupError, match=r"takes 3\.0 MB of disk, and 2\.0 MB are free"):
        fetch(server, tmp_path)
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile_keeps_nothing(server: FileServer, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(SetupError, match=r"weights\.pt cannot be written to .*: File too large"):
            fetch(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == []
