"""A structure that kills its model, in the middle of other people's: over REST."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.service import ROOT, RunningService, serving


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """lj-argon, and the family that fails on purpose (tests/families/faulty)."""
    with serving(tmp_path_factory.mktemp("fragile"), ("lj-argon", "faulty"), families=ROOT / "tests" / "families") as running:
        yield running


def three(symbol: str) -> dict[str, Any]:
    """Three atoms; the last one makes the faulty model misbehave, unless it is argon."""
    return {"symbols": ["Ar", "Ar", symbol], "positions": [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0]]}


def test_a_structure_that_kills_its_model_gets_an_error_and_its_neighbours_their_answers(fragile: RunningService) -> None:
    single = f"{fragile.url}/api/v1/single_point"
    expected = httpx.post(single, json={"model_name": "lj-argon", "atoms": three("Ar")}).json()["energy"]
    structures = [three("Ar")] * 10 + [three("Pm")] + [three("Ar")] * 5
    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(httpx.post, single, json={"model_name": "faulty", "atoms": three("Ar")}, timeout=90) for _ in range(20)
        ]
        response = httpx.post(f"{fragile.url}/api/v1/batch", json={"model_name": "faulty", "atoms": structures}, timeout=90)
        results = response.json()["results"]
        assert {other.result().status_code for other in others} == {200}
    error = results.pop(10)["error"]
    assert (error["code"], error["retryable"]) == ("evaluation_failed", False)
    assert [result["energy"] for result in results] == pytest.approx([expected] * 15, abs=1e-9)
    # Somebody who sends it again is told at once, and the model stays up.
    stub = fragile.stub("faulty").pid
    again = httpx.post(single, json={"model_name": "faulty", "atoms": three("Pm")}, timeout=90)
    assert (again.status_code, again.json()["code"]) == (422, "evaluation_failed")
    assert fragile.stub("faulty").pid == stub


def test_a_killed_model_is_waited_for_and_shows_as_loading(fragile: RunningService) -> None:
    single = f"{fragile.url}/api/v1/single_point"
    fragile.stub("lj-argon").kill()
    answer = httpx.post(single, json={"model_name": "lj-argon", "atoms": three("Ar")}, timeout=90)
    assert answer.status_code == 200, answer.text
    assert 'forcegate_retries_total{code="model_crashed",model="lj-argon"}' in httpx.get(f"{fragile.url}/metrics").text


def test_without_a_server_the_answer_is_quick_and_says_that_it_will_be_back(fragile: RunningService) -> None:
    fragile.tritonserver().kill()
    answer = httpx.post(f"{fragile.url}/api/v1/single_point", json={"model_name": "lj-argon", "atoms": three("Ar")}, timeout=90)
    # The supervisor may have been faster than this request.
    if answer.status_code != 200:
        assert answer.status_code == 503
        assert answer.json()["retryable"]
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.elapsed.total_seconds() < 3
    assert httpx.get(f"{fragile.url}/live").status_code == 200
    deadline = time.monotonic() + 30
    while answer.status_code != 200:
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)
        answer = httpx.post(f"{fragile.url}/api/v1/single_point", json={"model_name": "lj-argon", "atoms": three("Ar")}, timeout=90)
