"""An HTTP server on loopback that serves files as badly as it is told to."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 64 * 1024


@dataclass
class FileServer:
    """What it serves and how.

    Attributes:
        cuts: after how many bytes of the body the connection breaks, one entry for each request; None for not at all.
        answers: statuses to answer with instead of the file, one entry for each request.
        pause: seconds between two pieces of 64 KiB.
        silence: seconds before anything is answered.
        seen: path and headers of each request.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    ranges: bool = True
    etags: bool = True
    pause: float = 0.0
    silence: float = 0.0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Serves until the block ends."""
    server = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            server.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
            time.sleep(server.silence)
            if server.answers and (status := server.answers.pop(0)) != 200:
                self._answer(status, {})
            elif self.path in server.redirects:
                self._answer(302, {"Location": server.redirects[self.path]})
            elif self.path not in server.files:
                self._answer(404, {})
            else:
                self._file(server.files[self.path])

        def _answer(self, status: int, headers: dict[str, str], length: int = 0) -> None:
            self.send_response(status)
            for key, value in (server.headers | headers | {"Content-Length": str(length), "Connection": "close"}).items():
                self.send_header(key, value)
            self.end_headers()

        def _file(self, data: bytes) -> None:
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            headers = {"ETag": etag} if server.etags else {}
            wanted, version = self.headers.get("Range"), self.headers.get("If-Range", etag)
            if wanted and server.ranges and version == etag:
                first = int(wanted.removeprefix("bytes=").rstrip("-"))
                if first >= len(data):
                    self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
                    return
                self._answer(206, headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, len(data) - first)
                data = data[first:]
            else:
                self._answer(200, headers, len(data))
            cut = server.cuts.pop(0) if server.cuts else None
            data = data[:cut]
            for start in range(0, len(data), PIECE):
                try:
                    self.wfile.write(data[start : start + PIECE])
                    self.wfile.flush()
                except OSError:  # the client has gone
                    return
                time.sleep(server.pause)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
