"""The queue in front of a model, before the real one: who waits for whom, and what those are told who have to come back."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from ase.build import bulk

from forcefields.cost import Cost
from forcegate.structure import from_atoms, to_mapping
from tests.api.gateways import OwnGateway, gateway_beside
from tests.service import RunningService

CELL = to_mapping(from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True)))
CRYSTAL = to_mapping(from_atoms(bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)))
LIMIT = 5.0


@pytest.fixture(scope="module")
def gateway(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnGateway]:
    """One that takes on five seconds of work, and knows what sevennet-0 takes: a calibration as the models write it."""
    state = tmp_path_factory.mktemp("state")
    shutil.copytree(service.state / "reports", state / "reports")
    shutil.copy(service.state / "triton.key", state)
    # The first call warms the model up.
    for _ in range(2):
        body = {"model_name": "sevennet-0", "atoms": [CRYSTAL] * 8}
        seconds = httpx.post(f"{service.url}/api/v1/batch", json=body, timeout=120).elapsed.total_seconds() / 8
    report = json.loads((state / "reports" / "sevennet-0.json").read_text())
    report["cost"] = Cost(0.0, seconds / len(CRYSTAL["symbols"]), 0.0, 0.0, 0).as_dict()
    (state / "reports" / "sevennet-0.json").write_text(json.dumps(report))
    with gateway_beside(replace(service, state=state), state, max_queue_seconds=LIMIT) as own:
        yield own


def post(gateway: OwnGateway, kind: str, atoms: Any, **more: Any) -> httpx.Response:
    body = {"model_name": "sevennet-0", "atoms": atoms, **more}
    return httpx.post(f"{gateway.url}/api/v1/{kind}", json=body, timeout=120)


def metric(gateway: OwnGateway, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} ([0-9.e+-]+)$", httpx.get(f"{gateway.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_too_much_at_once_is_told_how_long_the_others_take(gateway: OwnGateway) -> None:
    started = time.monotonic()
    finished: list[float] = []

    def ask(_: int) -> httpx.Response:
        answer = post(gateway, "single_point", CRYSTAL)
        if answer.status_code == 200:
            finished.append(time.monotonic() - started)
        return answer

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.json()["code"] for answer in refused} == {"overloaded"}
    advised = max(int(answer.headers["retry-after"]) for answer in refused)
    # Estimates are good to a factor of two; whole seconds, and requests that come one after the other, add to that.
    assert max(finished) / 2 - 1 <= advised <= 2 * max(finished) + 1
    assert metric(gateway, 'forcegate_refused_total{reason="queue"}') >= len(refused)
    assert post(gateway, "single_point", CRYSTAL).status_code == 200


def test_a_batch_does_not_hold_up_a_single_structure(gateway: OwnGateway) -> None:
    spans: dict[str, float] = {}

    def batch() -> None:
        started = time.monotonic()
        assert post(gateway, "batch", [CELL] * 128).json()["succeeded"] == 128
        spans["batch"] = time.monotonic() - started

    thread = threading.Thread(target=batch)
    thread.start()
    waiting = 'forcegate_queue_structures{class="bulk",model="sevennet-0"}'
    deadline = time.monotonic() + 20
    while not metric(gateway, waiting):
        assert time.monotonic() < deadline, "the batch does not wait"
        time.sleep(0.02)
    started = time.monotonic()
    assert post(gateway, "single_point", CELL).status_code == 200
    spans["single"] = time.monotonic() - started
    assert "batch" not in spans, "the batch was still at it"
    thread.join()
    # First in, first out would have been all of what was left of the batch.
    assert spans["single"] < 0.3 * spans["batch"], spans


def test_a_caller_who_leaves_is_forgotten(gateway: OwnGateway) -> None:
    evaluated = 'forcegate_gateway_evaluation_seconds_count{model="sevennet-0"}'
    before = metric(gateway, evaluated)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{gateway.url}/api/v1/batch",
            json={"model_name": "sevennet-0", "atoms": [CRYSTAL] * 40},
            timeout=httpx.Timeout(5, read=0.5),
        )
    deadline = time.monotonic() + 5
    while metric(gateway, "forcegate_structures_in_flight"):
        assert time.monotonic() < deadline, "its place was not freed"
        time.sleep(0.02)
    assert metric(gateway, 'forcegate_queue_structures{class="bulk",model="sevennet-0"}') == 0
    assert metric(gateway, evaluated) - before < 20, "most of its structures never reached the model"


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once(gateway: OwnGateway) -> None:
    before = metric(gateway, 'forcegate_refused_total{reason="deadline"}')
    started = time.monotonic()
    answer = httpx.post(
        f"{gateway.url}/api/v1/batch",
        json={"model_name": "sevennet-0", "atoms": [CRYSTAL] * 200},
        headers={"X-Forcegate-Timeout": "1"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert time.monotonic() - started < 0.9, "before the deadline itself"
    assert metric(gateway, 'forcegate_refused_total{reason="deadline"}') == before + 1
