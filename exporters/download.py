"""Fetches one file over HTTP: resumed after an interruption, verified, and whole or not there.

While it arrives it is ``<target>.partial``, with a note beside it of which version of the file it is a part of. It gets its own
name when it is complete and, where a hash is known, when that hash is right. A token goes to the address that was asked for and
never to another host that it redirects to.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from forcefields.verification import sha256
from forcegate import __version__
from forcegate.errors import CheckpointMismatch, SetupError

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Told, while a file arrives: its name, the bytes that are there, and how many there will be (0 where the server does not say)."""

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
ATTEMPTS = 3
"""Failures in a row, with not one new byte between them, after which a download is given up."""
PAUSE = 0.5
"""Seconds before the first new attempt; each further one waits twice as long."""
REDIRECTS = 8
BUFFER = 1 << 18
"""Bytes that may be lost when the process is killed."""
SPARE_DISK = 50_000_000
"""Bytes that a download leaves free."""


@dataclass(frozen=True)
class Source:
    """One file to be fetched.

    Attributes:
        name: what it is called in messages.
        sha256: the only bytes that are accepted; empty where nobody has published a hash.
        token: sent as a bearer token to the host of ``url``, and to no other.
    """

    url: str
    name: str
    sha256: str = ""
    token: str = ""


class Unreachable(SetupError):
    """The server was not reached, or kept on breaking off."""


class Refused(SetupError):
    """The server does not give the file: 401, 403, 404 and the like."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail, "")
        self.http_status = status


class _Broken(Exception):
    """This attempt came to nothing; the next one may go on."""


def download(source: Source, target: Path, progress: Progress, say: Say) -> Path:
    """Fetches ``source`` to ``target``, or goes on where an earlier run was interrupted.

    Raises:
        Unreachable: no network, or the connection broke again and again; what has arrived is kept for the next run.
        Refused: the server says no; nothing is kept.
        CheckpointMismatch: the file is whole and has other bytes than published; nothing is kept.
        SetupError: the disk is full; nothing is kept.
    """
    partial = _Partial(target)
    failures, best, mismatch = 0, partial.size, False
    while True:
        try:
            _transfer(source, partial, progress, say)
            _verify(source, partial)
            return partial.finish()
        except _Broken as broken:
            failures = 1 if partial.size > best else failures + 1
            best = max(best, partial.size)
            if failures >= ATTEMPTS:
                kept = f" after {_mb(partial.size)}, which are kept" if partial.size else ""
                raise Unreachable(f"{source.name} could not be fetched from {source.url}: {broken}{kept}.", "") from None
            say(f"{source.name}: {broken}; trying again")
            time.sleep(PAUSE * 2 ** (failures - 1))
        except CheckpointMismatch:
            # Parts of two versions of the file may have met; a whole download in one go tells.
            resumed, mismatch = partial.resumed and not mismatch, True
            partial.discard()
            if not resumed:
                raise
            say(f"{source.name}: what was resumed has the wrong hash; fetching it from the beginning")
            failures, best = 0, 0
        except OSError as error:
            partial.discard()
            raise SetupError(f"{source.name} cannot be written to {target.parent}: {error.strerror}.", _room(error)) from None
        except Refused:
            partial.discard()
            raise


class _Partial:
    """The part of a file that has arrived."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f"{target.name}.partial")
        self._note = target.with_name(f"{target.name}.partial.json")
        self.resumed = False

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> dict[str, str]:
        """``validator`` names the version of the file (ETag or date), ``published`` its hash; empty where not known."""
        try:
            found = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begin(self, validator: str, published: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"validator": validator, "published": published}))
        self.resumed = False

    def finish(self) -> Path:
        os.replace(self.path, self._target)
        self._note.unlink(missing_ok=True)
        return self._target

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _transfer(source: Source, partial: _Partial, progress: Progress, say: Say) -> None:
    """One attempt to bring the rest of the file."""
    validator = partial.note.get("validator", "")
    # Without a hash or a version nothing would tell whether the rest belongs to what is there.
    have = partial.size if validator or source.sha256 else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": f"forcegate/{__version__}"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    try:
        with _opened(source, headers) as (response, published):
            if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it was there: an earlier run was ended before it could give the file its name
            total = _begin(source, response, published, partial, have)
            say(
                f"{source.name}: fetching {_mb(total) if total else 'it'}" + (f", {_mb(have)} are there" if partial.resumed else "")
            )
            _enough_disk(source, partial, total)
            with partial.path.open("ab", buffering=BUFFER) as file:
                done = file.tell()
                for chunk in response.iter_raw():
                    file.write(chunk)
                    done += len(chunk)
                    progress(source.name, done, total)
                file.flush()
                os.fsync(file.fileno())
    except httpx.HTTPError as error:
        raise _Broken(_reason(error)) from error
    if total and partial.size != total:
        raise _Broken(f"the server ended after {_mb(partial.size)} of {_mb(total)}")


def _begin(source: Source, response: httpx.Response, published: str, partial: _Partial, have: int) -> int:
    """Takes the server's answer to the request for the rest, and returns the size of the whole, 0 where it is not known."""
    _check_status(source, response)
    if response.status_code == 416:
        partial.discard()
        raise _Broken("the server has no more of it than is there")
    length = int(response.headers.get("Content-Length", 0))
    if response.status_code == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            partial.discard()
            raise _Broken("the server sent another part than was asked for")
        partial.resumed = True
        return have + length if length else 0
    if not source.sha256 and "text/html" in response.headers.get("Content-Type", ""):
        raise Refused(response.status_code, f"{source.url} answered with a web page instead of {source.name}.")
    etag = response.headers.get("ETag", "")
    partial.begin(etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", ""), published)
    return length


def _check_status(source: Source, response: httpx.Response) -> None:
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise _Broken(f"the server answered {status}")
    if status not in (200, 206, 416):
        raise Refused(status, f"{source.url} answered {status} {response.reason_phrase}.")


@contextmanager
def _opened(source: Source, headers: dict[str, str]) -> Iterator[tuple[httpx.Response, str]]:
    """The response behind all redirects, and the sha256 that the hub publishes with the first of them, or an empty string."""
    url, published = httpx.URL(source.url), ""
    with httpx.Client(timeout=TIMEOUT, follow_redirects=False) as client:
        for _ in range(REDIRECTS):
            own = source.token and origin(str(url)) == origin(source.url)
            sent = headers | ({"Authorization": f"Bearer {source.token}"} if own else {})
            response = client.send(client.build_request("GET", url, headers=sent), stream=True)
            published = published or _published(response)
            try:
                if not response.has_redirect_location:
                    yield response, published
                    return
            finally:
                response.close()
            following = url.join(response.headers["Location"])
            if url.scheme == "https" and following.scheme != "https":
                raise Refused(response.status_code, f"{source.url} redirects to an address without encryption.")
            url = following
    raise Refused(response.status_code, f"{source.url} redirects more than {REDIRECTS} times.")


def _published(response: httpx.Response) -> str:
    """Hugging Face names the hash of a large file in its answer."""
    value = response.headers.get("X-Linked-ETag", "").strip('"').lower()
    return value if len(value) == 64 and set(value) <= set("0123456789abcdef") else ""


def _verify(source: Source, partial: _Partial) -> None:
    expected = source.sha256 or partial.note.get("published", "")
    if expected and (found := sha256(partial.path)) != expected:
        raise CheckpointMismatch(
            f"{source.name} from {source.url} should have sha256 {expected}, it has {found}.",
            "Nothing of it was kept. Either the file was changed upstream, or on its way: compare both before you trust it.",
        )


def _enough_disk(source: Source, partial: _Partial, total: int) -> None:
    need, free = total - partial.size, shutil.disk_usage(partial.path.parent).free
    if total and free < need + SPARE_DISK:
        partial.discard()
        raise SetupError(
            f"{source.name} takes {_mb(need)} of disk, and {_mb(free)} are free at {partial.path.parent}.",
            "Make room and try again.",
        )


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what has to be equal for a token to be sent."""
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return f"no connection to {error.request.url.host} ({error or type(error).__name__})"
    if isinstance(error, httpx.TimeoutException):
        return f"{error.request.url.host} sent nothing for {TIMEOUT.read:.0f} s"
    return f"the connection broke ({error or type(error).__name__})"


def _room(error: OSError) -> str:
    return "Make room and try again." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check permissions and try again."


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
