"""What somebody does who means harm, against a running service with keys: refused with the right code, and the service goes on."""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import psutil
import pytest

from frontend.security.keys import KeyStore, Scope
from frontend.settings import load
from tests.service import ROOT, RunningService, serving

ARGON = {"model_name": "lj-argon", "atoms": {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}}
CONNECTIONS = 1000
INTERNALS = re.compile(r"Traceback|site-packages|tritonserver|python_backend|\.py\b|/dev/shm|sqlite", re.IGNORECASE)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="module")
def store(state: Path) -> Iterator[KeyStore]:
    made = KeyStore(load(state=state, root=ROOT))
    yield made
    made.close()


@pytest.fixture(scope="module")
def keys(store: KeyStore) -> dict[Scope, str]:
    return {scope: store.create(str(scope), "mallory", scope)[0] for scope in Scope}


@pytest.fixture(scope="module")
def service(state: Path, keys: Mapping[Scope, str]) -> Iterator[RunningService]:  # noqa: ARG001  # it starts when there are keys
    with serving(state, ("lj-argon",), keys="on", max_body_mb=1, workers=0) as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(service: RunningService, keys: Mapping[Scope, str]) -> Iterator[None]:
    """After each attack another user's question is answered, by the same processes, and memory has not grown."""
    gateway, triton = service.gateway(), service.tritonserver()
    before = gateway.memory_info().rss
    yield
    assert ask(service, keys[Scope.COMPUTE]).json()["energy"] < 0
    assert psutil.pid_exists(gateway.pid)
    assert (service.gateway().pid, service.tritonserver().pid) == (gateway.pid, triton.pid)
    assert gateway.memory_info().rss - before < 200 * 2**20


def ask(service: RunningService, key: str, body: Mapping[str, Any] = ARGON) -> httpx.Response:
    return httpx.post(f"{service.url}/api/v1/single_point", json=body, headers={"X-API-Key": key}, timeout=60)


def refused(answer: httpx.Response, status: int, code: str) -> None:
    """A typed error without anything of the inside."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert not INTERNALS.search(answer.text), answer.text


def raw(service: RunningService, text: bytes, patience: float = 30) -> bytes:
    """What comes back for these bytes until the connection ends or nothing more comes."""
    with socket.create_connection(("127.0.0.1", service.port)) as peer:
        peer.settimeout(patience)
        peer.sendall(text)
        found = b""
        try:
            while more := peer.recv(2**16):
                found += more
                if b"\r\n\r\n" in found and b"Connection: close" not in text:
                    peer.settimeout(0.3)
        except TimeoutError:
            pass
        return found


def test_without_a_key_no_route_but_the_open_ones_says_anything(service: RunningService) -> None:
    paths = orjson.loads((ROOT / "docs" / "openapi.json").read_bytes())["paths"]
    opened = {"/", "/live", "/ready", "/health", "/docs", "/redoc", "/openapi.json", "/docs/assets/{name}"}
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for path, methods in paths.items():
            for method in methods:
                answer = client.request(method.upper(), path.replace("{", "").replace("}", ""))
                if path in opened:
                    assert answer.status_code != 401, path
                else:
                    refused(answer, 401, "unauthenticated")
        for wrong in ("x", "fgk_0123456789abcdef_" + "A" * 43, "\u00e4" * 50, "Bearer"):
            refused(client.get("/api/v1/models", headers={"X-API-Key": wrong.encode()}), 401, "unauthenticated")


def test_a_key_that_is_too_small_and_one_that_was_revoked(
    service: RunningService, store: KeyStore, keys: Mapping[Scope, str]
) -> None:
    refused(ask(service, keys[Scope.READ]), 403, "forbidden")
    unload = f"{service.url}/api/v1/models/lj-argon/unload"
    refused(httpx.post(unload, headers={"X-API-Key": keys[Scope.COMPUTE]}, timeout=30), 403, "forbidden")
    token, key = store.create("lost", "alice", Scope.COMPUTE)
    assert ask(service, token).status_code == 200
    store.revoke(key.id)
    until = time.monotonic() + 5
    while (answer := ask(service, token)).status_code == 200 and time.monotonic() < until:
        time.sleep(0.1)
    refused(answer, 401, "unauthenticated")


def test_bodies_that_are_too_long_or_do_not_come(service: RunningService, keys: Mapping[Scope, str]) -> None:
    headers = {"X-API-Key": keys[Scope.COMPUTE]}
    long = httpx.post(f"{service.url}/api/v1/single_point", content=b" " * (2**20 + 1), headers=headers, timeout=30)
    refused(long, 413, "body_too_large")
    head = f"POST /api/v1/single_point HTTP/1.1\r\nHost: a\r\nX-API-Key: {keys[Scope.COMPUTE]}\r\nConnection: close\r\n"
    started = time.monotonic()
    slow = raw(service, head.encode() + b"Content-Length: 100\r\n\r\n{")
    assert b" 504 " in slow.split(b"\r\n")[0], slow
    assert time.monotonic() - started < 20


def test_a_thousand_connections_leave_room_for_others(service: RunningService, keys: Mapping[Scope, str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CONNECTIONS)), hard))
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            peer.sendall((b"", b"GET /live HTTP/1.1\r\n", b"\x16\x03\x01")[number % 3])
        assert ask(service, keys[Scope.COMPUTE]).status_code == 200


def test_what_is_no_grpc(service: RunningService) -> None:
    for text in (b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500):
        with socket.create_connection(("127.0.0.1", service.grpc_port), timeout=10) as peer:
            peer.sendall(text)
    with grpc.insecure_channel(service.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message in (b"", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f"):
            with pytest.raises(grpc.RpcError):
                infer(message, timeout=10)


def test_headers_cannot_be_smuggled_into_an_answer(service: RunningService, keys: Mapping[Scope, str]) -> None:
    for identifier in (b"a\tb: c", b"x" * 5000, b"\xff\xfe", b"a%0d%0aSet-Cookie: b=1"):
        request = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: " + identifier + b"\r\n\r\n"
        head = raw(service, request).partition(b"\r\n\r\n")[0]
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")), head
        assert b"set-cookie" not in head.lower()
        assert all(len(line) < 300 for line in head.split(b"\r\n"))
    for smuggled in (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Content-Length: 5\r\nContent-Length: 6"):
        request = (
            b"POST /api/v1/single_point HTTP/1.1\r\nHost: a\r\nX-API-Key: " + keys[Scope.COMPUTE].encode() + b"\r\n" + smuggled
        )
        answer = raw(service, request + b"\r\n\r\n0\r\n\r\nGET /api/v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/1.1 400" in answer[:15] or answer.count(b"HTTP/1.1 ") == 1, answer[:500]


@pytest.mark.parametrize(
    "path",
    [
        "/docs/assets/..%2f..%2f..%2fpyproject.toml",
        "/docs/assets/....//....//pyproject.toml",
        "/api/v1/tasks/..%2f..%2ftriton.key",
        "/api/v1/tasks/..%2f..%2ftriton.key/trajectory",
        "/api/v1/tasks/%00/logs",
        "/api/v1/models/..%2f..%2fpyproject.toml",
        "//etc/passwd",
    ],
)
def test_paths_lead_nowhere(service: RunningService, keys: Mapping[Scope, str], path: str) -> None:
    answer = httpx.get(service.url + path, headers={"X-API-Key": keys[Scope.OPERATE]}, timeout=30)
    assert answer.status_code in (400, 404), answer.text
    assert not INTERNALS.search(answer.json()["detail"].replace(path, "")), answer.text


def cif(operations: int, atoms: int) -> str:
    """A CIF that is short and means a large number of sites."""
    lines = ["data_a", *(f"_cell_length_{name} 100" for name in "abc")]
    lines += [f"_cell_angle_{name} 90" for name in ("alpha", "beta", "gamma")]
    lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'x+{k}/{operations},y,z'" for k in range(operations))]
    lines += ["loop_", "_atom_site_label", *(f"_atom_site_fract_{name}" for name in "xyz")]
    return "\n".join([*lines, *(f"Ar 0 {k / atoms:.6f} 0" for k in range(atoms))])


@pytest.mark.parametrize("name", ["pickle", "traj", "json", "db", "python", "../../etc/passwd", "xyz:../../a", "bundletrajectory"])
def test_formats_that_execute_or_open_anything_are_not_there(service: RunningService, keys: Mapping[Scope, str], name: str) -> None:
    refused(
        ask(service, keys[Scope.COMPUTE], ARGON | {"atoms": {"format": name, "text": "cos\nsystem\n(S'true'\ntR."}}),
        422,
        "invalid_structure",
    )


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("cif", cif(10_000, 1_000)),  # 10^7 sites
        ("cif", "\x1f\x8b\x08" + "\x00" * 1000),
        ("cif", "PK\x03\x04" + "\x00" * 1000),
        ("cif", "data_a\n" + "loop_\n" * 100_000),
        ("xyz", "100000000\n\nAr 0 0 0"),
        ("extxyz", '1\nLattice="' + "9" * 100_000 + '"\nAr 0 0 0'),
        ("poscar", "a\n" + "1" * 300_000 + "\n"),
        ("pdb", "CRYST1" + " 1e308" * 1000),
    ],
    ids=["many sites", "gzip", "zip", "loops", "count", "lattice", "scale", "cell"],
)
def test_files_made_to_hurt(service: RunningService, keys: Mapping[Scope, str], form: str, text: str) -> None:
    started = time.monotonic()
    answer = ask(service, keys[Scope.COMPUTE], ARGON | {"atoms": {"format": form, "text": text}})
    assert 400 <= answer.status_code < 500, answer.text
    assert not INTERNALS.search(answer.json()["detail"]), answer.text
    assert time.monotonic() - started < 30
