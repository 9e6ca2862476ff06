"""Connections to the gateway's own server: headers that do not come or do not end, HTTPS, and pages of other origins."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from forcegate.errors import SetupError
from frontend import connections
from frontend.security import listening
from frontend.settings import Settings, load
from tests.service import ROOT, free_ports
from tests.unit.test_gateway_app import client

REQUEST = b"GET /live HTTP/1.1\r\nHost: a\r\n"


answer = PlainTextResponse("ok")
"""The smallest application."""


@contextmanager
def listening_server(**options: str) -> Iterator[int]:
    """A server as the gateway's; its port."""
    server = uvicorn.Server(
        uvicorn.Config(answer, http=connections.Connection, log_config=None, lifespan="off", timeout_keep_alive=30, **options)  # type: ignore[arg-type]
    )
    shared = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([shared],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield shared.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        shared.close()


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEADER_SECONDS", 0.3)
        yield


@pytest.fixture(scope="module")
def port(short: None) -> Iterator[int]:  # noqa: ARG001
    with listening_server() as found:
        yield found


def ended(peer: socket.socket) -> bool:
    """Whether the server closes within a few seconds without having said anything."""
    peer.settimeout(5)
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"G", REQUEST, REQUEST + b"X-Long: "])
def test_headers_that_do_not_come_end_the_connection(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(sent)
        started = time.monotonic()
        assert ended(peer)
        assert time.monotonic() - started > 0.2, "not at once"


def test_a_header_a_second_does_not_help(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(REQUEST)
        started = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sent_for_ever(peer, b"A: b\r\n", pause=0.05)
        assert time.monotonic() - started < 2


def test_headers_without_an_end_end_the_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(REQUEST)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sent_for_ever(peer, b"A: " + b"b" * 4000 + b"\r\n", pause=0)


def reply(peer: socket.socket) -> bytes:
    """A whole answer of the application."""
    peer.settimeout(5)
    found = b""
    while not found.endswith(b"\r\n\r\nok"):
        found += (more := peer.recv(1000))
        assert more, found
    return found


def sent_for_ever(peer: socket.socket, line: bytes, pause: float) -> None:
    """Sends the same line for at most five seconds, or 40 MB."""
    until = time.monotonic() + 5
    for _ in range(10_000):
        if time.monotonic() > until:
            return
        peer.sendall(line)
        time.sleep(pause)


def test_a_connection_that_is_kept_may_wait_for_its_next_request(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        for _ in range(2):
            peer.sendall(REQUEST + b"\r\n")
            assert reply(peer).startswith(b"HTTP/1.1 200")
            time.sleep(0.5)
        peer.sendall(REQUEST)
        assert ended(peer), "the headers of a further request are waited for as long"


def test_a_long_body_that_comes_with_its_headers_is_no_long_header(port: int) -> None:
    body = b"x" * 2**20
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(head + body)
        assert reply(peer).startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        *subject,
    ]
    subprocess.run([*command, "-keyout", "a.key", "-out", "a.pem"], cwd=folder, check=True, capture_output=True)
    return folder / "a.pem", folder / "a.key"


def test_https(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    with listening_server(ssl_certfile=str(chain), ssl_keyfile=str(key)) as port:
        trusting = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(f"https://127.0.0.1:{port}/", verify=trusting, trust_env=False).text == "ok"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)


def test_a_certificate_that_cannot_be_used_stops_the_start(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = certificate
    listening.check(Settings(tls_certificate=str(chain), tls_key=str(key)))
    for broken in ({"tls_certificate": str(chain)}, {"tls_certificate": str(tmp_path / "none"), "tls_key": str(key)}):
        with pytest.raises(SetupError, match="certificate cannot be used"):
            listening.check(Settings(**broken))


@pytest.mark.parametrize("allowed", [True, False])
def test_pages_of_other_origins_are_let_in_by_setting_alone(tmp_path: Path, allowed: bool) -> None:
    origin = "https://example.org"
    origins = origin if allowed else ""
    settings = load(grpc_port=free_ports(1)[0], state=tmp_path, root=ROOT, keys="off", cors_origins=origins)
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    async def scene() -> None:
        async with client(settings) as gateway:
            preflight = await gateway.options("/api/v1/single_point", headers=asks)
            assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
            plain = await gateway.get("/live", headers={"Origin": origin})
            assert plain.status_code == 200
            assert (plain.headers.get("access-control-allow-origin") == origin) == allowed
            other = await gateway.get("/live", headers={"Origin": "https://example.com"})
            assert "access-control-allow-origin" not in other.headers

    asyncio.run(scene())
