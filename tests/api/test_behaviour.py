"""The gateway among many: busy, full, asked to stop, left by its callers."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import httpx
import psutil
import pytest
from ase.build import bulk

from forcegate.structure import from_atoms, to_mapping
from tests.api.gateways import gateway_beside
from tests.service import ROOT, RunningService, in_flight, wait_until

CRYSTAL = to_mapping(from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (3, 3, 3)))
"""216 atoms: about a second of sevennet-0 on one core."""
SLOW = {"model_name": "sevennet-0", "atoms": CRYSTAL}


@contextmanager
def busy(url: str, clients: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "tests.api.load", url, str(clients)], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def latencies(url: str, seconds: float) -> list[float]:
    """Seconds that each /health took, over one connection."""
    parsed = urlparse(url)
    connection = http.client.HTTPConnection(str(parsed.hostname), parsed.port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        started = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        found.append(time.perf_counter() - started)
        time.sleep(0.005)
    connection.close()
    return sorted(found)


@pytest.mark.parametrize("large_body", [False, True], ids=["64 evaluations", "64 evaluations and a 40 MB body"])
def test_health_answers_at_once_whatever_is_going_on(service: RunningService, large_body: bool) -> None:
    structures = [
        {"symbols": ["Ar"] * count, "positions": [[round(3.834567 * k, 6), 2.345678, 3.456789] for k in range(count)]}
        for count in (*[10_000] * 8, 950_000)  # the last one is read, and then refused
    ]
    body = json.dumps({"model_name": "lj-argon", "atoms": structures}).encode()
    assert len(body) > 40e6
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(
            httpx.post(f"{service.url}/api/v1/batch", content=body, headers={"Content-Type": "application/json"}, timeout=120)
        )

    with busy(service.url, 64):
        wait_until(lambda: in_flight(service.url) >= 64, "the clients did not start")
        thread = threading.Thread(target=send)
        if large_body:
            thread.start()
        measured = latencies(service.url, 6)
        if large_body:
            thread.join()
    assert len(measured) > 200
    assert measured[int(0.99 * len(measured))] < 0.05, [round(1e3 * s) for s in measured[-10:]]
    if large_body:
        assert answers[0].status_code == 200, answers[0].text[:300]
        assert (answers[0].json()["succeeded"], answers[0].json()["failed"]) == (8, 1)


def test_a_full_gateway_says_when_to_come_back(service: RunningService, tmp_path: Path) -> None:
    with gateway_beside(service, tmp_path, max_in_flight=3) as gateway, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{gateway.url}/api/v1/single_point", json=SLOW, timeout=60), range(12)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len(answers) - len(refused) >= 3
        for answer in refused:
            assert answer.json()["code"] == "overloaded"
            assert answer.json()["retryable"]
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert httpx.post(f"{gateway.url}/api/v1/single_point", json=SLOW, timeout=60).status_code == 200
        assert httpx.get(f"{gateway.url}/health").status_code == 200


def test_a_caller_that_goes_away_frees_its_place(service: RunningService, tmp_path: Path) -> None:
    with gateway_beside(service, tmp_path) as gateway:
        parsed = urlparse(gateway.url)
        body = json.dumps(SLOW | {"atoms": CRYSTAL}).encode()
        head = "POST /api/v1/single_point HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connections = [socket.create_connection((str(parsed.hostname), parsed.port or 80)) for _ in range(4)]
        for connection in connections:
            connection.sendall(head.encode() + body)
        wait_until(lambda: in_flight(gateway.url) == 4, "the requests did not arrive")
        for connection in connections:
            connection.close()
        started = time.monotonic()
        wait_until(lambda: in_flight(gateway.url) == 0, "the places were not freed")
        assert time.monotonic() - started < 1.0, "they were evaluated all the same"
        wait_until(lambda: gateway.log_text().count('"status":499') == 4, gateway.log_text())
        assert "Traceback" not in gateway.log_text()


def test_sigterm_lets_requests_in_flight_finish(service: RunningService, tmp_path: Path) -> None:
    with gateway_beside(service, tmp_path, drain_seconds=120) as gateway, ThreadPoolExecutor(6) as pool:
        children = psutil.Process(gateway.process.pid).children()
        answers = [pool.submit(httpx.post, f"{gateway.url}/api/v1/single_point", json=SLOW, timeout=60) for _ in range(6)]
        wait_until(lambda: in_flight(gateway.url) == 6, "the requests did not arrive")
        gateway.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 6
        assert gateway.process.wait(30) == 0
        assert children, "a decoder is started ahead of need"
        assert not any(child.is_running() for child in children)
        log = gateway.log_text()
        assert "Traceback" not in log
        assert all(json.loads(line)["process"] == "gateway" for line in log.splitlines())


def test_a_drain_that_takes_too_long_ends_with_errors_that_can_be_tried_elsewhere(service: RunningService, tmp_path: Path) -> None:
    with gateway_beside(service, tmp_path, drain_seconds=1) as gateway, ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(httpx.post, f"{gateway.url}/api/v1/single_point", json=SLOW, timeout=60) for _ in range(12)]
        wait_until(lambda: in_flight(gateway.url) == 12, "the requests did not arrive")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 0
        late = [answer.result() for answer in answers if answer.result().status_code != 200]
        assert late
        assert {answer.status_code for answer in late} == {503}
        assert all(answer.json()["retryable"] for answer in late)


def test_a_decoder_does_not_outlive_a_killed_gateway(service: RunningService, tmp_path: Path) -> None:
    with gateway_beside(service, tmp_path) as gateway:
        children = psutil.Process(gateway.process.pid).children()
        gateway.process.kill()
        gateway.process.wait()
        assert children
        wait_until(lambda: not any(child.is_running() for child in children), "a decoder process is left behind")
