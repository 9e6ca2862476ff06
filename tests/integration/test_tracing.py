"""Traces of a real service in a collector: from REST through gRPC and Triton to the model's execute."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from forcegate.connection import Connection
from forcegate.structure import Structure
from tests.collector import Collector, Span, collecting, context, several_times
from tests.service import RunningService, serving, stop, wait_until

ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8123456789]]}
ONE = ["POST /api/v1/single_point", "queue", "ModelInfer", "InferRequest", "lj-argon", "compute", "execute"]
"""Spans of a single point: two of the gateway below the request's, Triton's three, and the model's."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(tmp_path_factory.mktemp("traced"), ("lj-argon",), traces=collector.url, traces_ratio=0) as running:
        yield running


def post(service: RunningService, path: str, body: dict[str, object], headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{service.url}/api/v1/{path}", json={"model_name": "lj-argon", **body}, headers=headers, timeout=60)


def by_name(spans: list[Span]) -> dict[str, Span]:
    named = {span.name: span for span in spans}
    assert len(named) == len(spans), sorted(span.name for span in spans)
    return named


@several_times
def test_one_request_is_one_tree_below_the_client_s_span(traced: RunningService, collector: Collector) -> None:
    trace, client, headers = context()
    response = post(traced, "single_point", {"atoms": ARGON}, {**headers, "X-Request-ID": "tree-1"})
    assert response.status_code == 200, response.text
    spans = by_name(collector.of(trace, len(ONE)))
    assert sorted(spans) == sorted(ONE)
    root, call, execute = spans[ONE[0]], spans["ModelInfer"], spans["execute"]
    parents = {
        name: next((other.name for other in spans.values() if other.identifier == span.parent), None)
        for name, span in spans.items()
    }
    assert parents == {
        ONE[0]: None,
        "queue": ONE[0],
        "ModelInfer": ONE[0],
        "InferRequest": "ModelInfer",
        "lj-argon": "InferRequest",
        "compute": "lj-argon",
        "execute": "lj-argon",
    }
    assert root.parent == client
    assert (
        root.start
        <= spans["queue"].start
        <= spans["queue"].end
        <= call.start
        <= execute.start
        < execute.end
        <= call.end
        <= root.end
    )
    services = {name: span.service for name, span in spans.items()}
    assert services == dict.fromkeys(ONE[:3], "forcegate-gateway") | dict.fromkeys(ONE[3:6], "forcegate-triton") | {
        "execute": "forcegate-model"
    }
    assert root.attributes == {
        "forcegate.request_id": "tree-1",
        "forcegate.model": "lj-argon",
        "forcegate.structures": 1,
        "forcegate.atoms": 2,
        "http.request.method": "POST",
        "http.route": "/api/v1/single_point",
        "http.response.status_code": 200,
    }
    assert spans["lj-argon"].attributes["triton.request_id"] == "tree-1"
    assert not any(span.error for span in spans.values())
    own = {
        key: execute.attributes[f"forcegate.{key}"] for key in ("request_id", "structures", "atoms", "batch.atoms", "batch.passes")
    }
    assert own == {"request_id": "tree-1", "structures": 1, "atoms": 2, "batch.atoms": 2, "batch.passes": 1}
    assert 0 < execute.attributes["forcegate.batch.evaluation_seconds"] < (execute.end - execute.start) / 1e9
    wait_until(lambda: f'"trace_id":"{trace}"' in traced.log("gateway"), "the log line has no trace")


@several_times
def test_a_batch_has_a_span_for_each_request_that_it_travels_as(traced: RunningService, collector: Collector) -> None:
    trace, _, headers = context()
    response = post(traced, "batch", {"atoms": [ARGON] * 40}, headers)
    assert response.json()["succeeded"] == 40
    # At most 32 structures travel as one request, so these are two.
    spans = collector.of(trace, 1 + 2 * 6)
    names = sorted(span.name for span in spans)
    assert names == sorted(["POST /api/v1/batch", *2 * ONE[1:]])
    root = next(span for span in spans if span.name.startswith("POST"))
    assert root.attributes["forcegate.structures"] == 40
    calls = {span.identifier for span in spans if span.name == "ModelInfer"}
    assert {span.parent for span in spans if span.name == "InferRequest"} == calls
    assert sum(span.attributes["forcegate.structures"] for span in spans if span.name == "execute") == 40
    assert sum(span.attributes["forcegate.structures"] for span in spans if span.name == "queue") == 40


@several_times
def test_what_the_model_refuses_is_an_error_in_its_spans(traced: RunningService, collector: Collector) -> None:
    trace, _, headers = context()
    nearly = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 0.01]]}
    response = post(traced, "single_point", {"atoms": nearly}, headers)
    assert response.status_code == 422, response.text
    code = response.json()["code"]
    spans = by_name(collector.of(trace, len(ONE)))
    assert {name for name, span in spans.items() if span.error} == {"ModelInfer", "execute"}
    assert {spans[name].attributes["error.type"] for name in (ONE[0], "ModelInfer", "execute")} == {code}


@several_times
def test_nothing_is_sent_of_requests_that_are_not_chosen(traced: RunningService, collector: Collector) -> None:
    declined, _, no = context(sampled=False)
    chosen, _, yes = context()
    broken = {"traceparent": "00-" + "0" * 32 + "-x"}
    before = len(collector.spans)
    for headers in ({}, no, broken):
        assert post(traced, "single_point", {"atoms": ARGON}, headers).status_code == 200
    # What is sent of a later request comes behind what would have been sent of these.
    assert post(traced, "single_point", {"atoms": ARGON}, yes).status_code == 200
    collector.of(chosen, len(ONE))
    assert {span.trace for span in collector.spans[before:]} == {chosen}
    assert declined not in {span.trace for span in collector.spans}


@several_times
def test_a_grpc_client_s_trace_reaches_the_model(traced: RunningService, collector: Collector) -> None:
    trace, client, headers = context()
    connection = Connection("lj-argon", traced.grpc)
    structure = Structure(np.array([18, 18], dtype=np.int32), np.array([[0, 0, 0], [0, 0, 3.8]]))
    request = connection.request([structure], ["energy"], None, "direct-1")
    connection.stub.ModelInfer(request, timeout=30, metadata=tuple(headers.items()))
    connection.close()
    spans = by_name(collector.of(trace, 4))
    assert spans["InferRequest"].parent == client
    assert spans["execute"].attributes["forcegate.request_id"] == "direct-1"


def test_a_task_has_a_trace_with_a_link_to_the_request_that_queued_it(traced: RunningService, collector: Collector) -> None:
    trace, _, headers = context()
    response = post(traced, "optimization", {"atoms": ARGON}, headers)
    assert response.status_code == 200, response.text
    assert response.json()["request_id"]

    def linked() -> list[Span]:
        return [span for span in list(collector.spans) if trace in span.links]

    wait_until(linked, "no span of a task", 15)
    (task,) = linked()
    assert (task.service, task.name, task.error) == ("forcegate-worker", "task optimization", False)
    assert task.trace != trace
    assert task.attributes["forcegate.attempt"] == 1
    assert [value.string_value for value in task.attributes["forcegate.models"].values] == ["lj-argon"]


@several_times
def test_no_key_and_no_position_is_in_what_was_sent(traced: RunningService, collector: Collector) -> None:
    trace, _, headers = context()
    secret = "fg_averysecretkeythatnobodyshouldsee"
    tokens = {"Authorization": f"Bearer {secret}", "X-API-Key": secret, "Cookie": secret, "baggage": f"a={secret}"}
    assert post(traced, "single_point", {"atoms": ARGON}, headers | tokens).status_code == 200
    collector.of(trace, len(ONE))
    sent = b"".join(collector.bodies)
    assert trace.encode() in sent or bytes.fromhex(trace) in sent
    for private in (secret.encode(), b"3.81234", b"8123456789", np.float64(3.8123456789).tobytes()):
        assert private not in sent


@pytest.mark.parametrize("how", ["broken", "hanging"])
@several_times
def test_a_collector_that_does_not_take_spans_delays_nobody(traced: RunningService, collector: Collector, how: str) -> None:
    setattr(collector, how, True)
    before = collector.deliveries
    try:
        _, _, headers = context()
        # Longer than the senders wait, so that some requests come while they are waiting for the collector.
        slowest, end = 0.0, time.monotonic() + 4
        while time.monotonic() < end:
            response = post(traced, "single_point", {"atoms": ARGON}, headers)
            assert response.status_code == 200
            slowest = max(slowest, response.elapsed.total_seconds())
            time.sleep(0.02)
        assert collector.deliveries > before
        assert slowest < 4, "the senders wait for 5 s"
    finally:
        setattr(collector, how, False)
    trace, _, headers = context()
    post(traced, "single_point", {"atoms": ARGON}, headers)
    assert len(collector.of(trace, len(ONE))) == len(ONE), "it is used again when it is back"


def test_the_service_stops_while_its_collector_hangs(traced: RunningService, collector: Collector) -> None:
    collector.hanging = True
    try:
        _, _, headers = context()
        assert post(traced, "single_point", {"atoms": ARGON}, headers).status_code == 200
        started = time.monotonic()
        assert stop(traced, patience=60) == 0
        assert time.monotonic() - started < 25
    finally:
        collector.hanging = False
