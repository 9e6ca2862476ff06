"""tritonserver or the gateway is killed; the service is stopped in the middle of work; its own supervisor is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from forcegate.evaluation import evaluate
from forcegate.structure import from_atoms, to_mapping
from tests.chaos.test_model_process import ARGON, with_element
from tests.service import ROOT, RunningService, in_flight, serving, stop, wait_until


def single_point(service: RunningService, symbol: str = "Ar", model: str = "lj-argon") -> httpx.Response:
    body = {"model_name": model, "atoms": to_mapping(from_atoms(with_element(symbol)))}
    return httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=90)


def test_killed_tritonserver_gives_503_and_heals(fragile: RunningService) -> None:
    before = single_point(fragile).json()["energy"]
    server = fragile.tritonserver()
    stubs = server.children(recursive=True)
    server.kill()
    killed = time.monotonic()
    statuses: list[int] = []
    while time.monotonic() - killed < 30:
        answer = single_point(fragile)
        statuses.append(answer.status_code)
        if answer.status_code == 200:
            break
        assert answer.status_code == 503, answer.text
        assert answer.json()["retryable"] is True
        assert int(answer.headers["retry-after"]) >= 1
        time.sleep(0.1)
    healed = time.monotonic() - killed
    assert statuses[-1] == 200, f"not healed after 30 s: {statuses}"
    assert healed < 30
    assert answer.json()["energy"] == pytest.approx(before, abs=1e-9)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in stubs), "its model processes went with it"
    # The faulty model was resident too, so it is back as well.
    assert evaluate([ARGON], "faulty", address=fragile.grpc, timeout=30)[0].energy == pytest.approx(before, abs=1e-9)
    alive = {region.split("_")[1] for region in fragile.shared_memory()}
    assert alive == {str(fragile.grpc_port)}
    assert len(fragile.shared_memory()) <= 6, "the dead server's regions were removed"


def test_sigterm_lets_requests_in_flight_finish_and_leaves_nothing(tmp_path: Path) -> None:
    families = ROOT / "tests" / "families"
    with serving(tmp_path, ("faulty",), families=families, drain_seconds=20) as service:
        processes = service.descendants()
        answers: list[httpx.Response] = []
        # He takes a second: these are being evaluated, or wait in Triton's queue, when the signal comes.
        threads = [threading.Thread(target=lambda: answers.append(single_point(service, "He", "faulty"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: in_flight(service.url) + len(answers) == len(threads), "the requests did not arrive")
        assert not answers, "some are in flight when the signal comes"
        assert stop(service) == 0
        for thread in threads:
            thread.join(10)
        assert [answer.status_code for answer in answers] == [200] * 6
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert service.shared_memory() == []
        assert "nothing is left behind" in service.log("serve")


def test_killed_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    with serving(tmp_path, ("lj-argon",), drain_seconds=2) as service:
        processes = service.descendants()
        service.process.kill()
        service.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        assert service.shared_memory() == []


def test_stopping_while_models_are_loading(tmp_path: Path) -> None:
    with serving(tmp_path, ("chgnet-0.3.0",), until="loading chgnet") as service:
        time.sleep(1.0)
        processes = service.descendants()
        assert processes
        assert stop(service) == 0
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert service.shared_memory() == []


def test_interrupt_stops_as_sigterm_does(tmp_path: Path) -> None:
    with serving(tmp_path, ("lj-argon",)) as service:
        processes = service.descendants()
        os.kill(service.pid, signal.SIGINT)
        assert service.process.wait(60) == 0
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert service.shared_memory() == []
