"""Spans of a gateway whose Triton does not exist, and what is started and loaded where traces are wanted or not."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from forcefields.runtime import tracing as of_models
from forcefields.runtime.engine import Report
from forcegate.errors import SetupError
from frontend import settings
from frontend.app import create_app
from frontend.supervisor import triton
from frontend.tracing import Tracing
from tests.certificates import signed
from tests.collector import Collector, Span, collecting
from tests.service import ROOT, free_ports, wait_until

ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
SINGLE = {"model_name": "lj-argon", "atoms": ARGON}


def ask(state: Path, *requests: tuple[str, str, dict[str, Any]], **changes: Any) -> list[httpx.Response]:
    """The answers of a gateway without a Triton; it has stopped, and sent its spans, when they are returned."""
    app = create_app(settings.load(grpc_port=free_ports(1)[0], state=state, root=ROOT, **changes))

    async def steps() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(steps())


def spans_of(collector: Collector, *names: str) -> list[Span]:
    assert sorted(span.name for span in collector.spans) == sorted(names)
    return sorted(collector.spans, key=lambda span: span.start)


def test_errors_of_the_service_are_errors_and_refusals_have_their_code(tmp_path: Path) -> None:
    asked = [
        ("POST", "/api/v1/single_point", {"json": SINGLE}),
        ("POST", "/api/v1/single_point", {"content": b"{"}),
        ("GET", "/api/v1/nothing/3.8", {}),
        ("GET", "/live", {}),
    ]
    with collecting() as collector:
        answers = ask(tmp_path, *asked, traces=collector.url)
        post = "POST /api/v1/single_point"
        away, unreadable, missing = spans_of(collector, post, post, "GET unmatched")
    assert [answer.status_code for answer in answers] == [503, 400, 404, 200]
    assert (away.error, away.attributes["error.type"]) == (True, answers[0].json()["code"])
    assert (unreadable.error, unreadable.attributes["error.type"]) == (False, "invalid_request")
    assert (missing.error, missing.attributes["http.response.status_code"]) == (False, 404)
    assert [span.attributes["forcegate.request_id"] for span in (away, unreadable, missing)] == [
        answer.headers["x-request-id"] for answer in answers[:3]
    ]
    assert len({span.trace for span in (away, unreadable, missing)}) == 3


def test_the_ratio_chooses_and_the_caller_chooses_before_it(tmp_path: Path) -> None:
    sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    asked = [("GET", "/api/v1/nothing", {})] * 20 + [("GET", "/api/v1/nothing", {"headers": {"traceparent": sampled}})]
    with collecting() as collector:
        ask(tmp_path, *asked, traces=collector.url, traces_ratio=0)
        (span,) = spans_of(collector, "GET unmatched")
        assert (span.trace, span.parent) == (sampled[3:35], sampled[36:52])
        ask(tmp_path, *asked, traces=collector.url, traces_ratio=0.5)
        assert 2 < len(collector.spans) < 22


def test_what_is_handed_on_is_a_child_of_the_caller_s_trace_and_short() -> None:
    tracing = Tracing(f"http://127.0.0.1:{free_ports(1)[0]}", "gateway")
    given = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def handed_on(state: bytes) -> dict[str, str]:
        trace = tracing.request([(b"traceparent", given), (b"tracestate", state)], "a")
        assert trace is not None
        with trace.span("ModelInfer", {}, client=True) as metadata:
            return dict(metadata)

    carried = handed_on(b"vendor=1")
    assert carried["traceparent"][:35] == given[:35].decode()
    assert carried["traceparent"][36:52] != given[36:52].decode()
    assert carried["tracestate"] == "vendor=1"
    # Triton's gRPC has a limit for headers: a client must not be able to make its calls fail by it.
    for state in (b"vendor=" + 600 * b"1", b"\xff\xfe=1", b"===,"):
        assert set(handed_on(state)) == {"traceparent"}


def test_headers_of_the_environment_reach_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc,x-scope=one")
    with collecting() as collector:
        ask(tmp_path, ("GET", "/api/v1/nothing", {}), traces=collector.url)
        spans = of_models.Spans(settings.load(traces=collector.url).traces_url, "lj-argon", "cpu")
        spans.tell([(Request("0af7651916cd43dd8448eb211c80319c"), [])], Report(), time.time_ns())
        spans.close()
        assert {span.service for span in collector.spans} == {"forcegate-gateway", "forcegate-model"}
        assert {(found["authorization"], found["x-scope"]) for found in collector.headers} == {("Basic abc", "one")}


def test_a_collector_with_https_gets_spans_where_its_authority_is_trusted_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "")  # of other programs, not of this one
    certificates = signed(tmp_path, "server")
    with collecting(certificates) as collector:
        for ca, services in ((str(certificates / "ca.pem"), {"forcegate-gateway", "forcegate-model"}), ("", set())):
            collector.spans.clear()
            caplog.clear()
            ask(tmp_path, ("GET", "/api/v1/nothing", {}), traces=collector.url, traces_ca=ca)
            spans = of_models.Spans(f"{collector.url}/v1/traces", "lj-argon", "cpu", ca)
            spans.tell([(Request("0af7651916cd43dd8448eb211c80319c"), [])], Report(), time.time_ns())
            spans.close()
            assert {span.service for span in collector.spans} == services
            lost = [vars(record) for record in caplog.records if record.message == "spans are lost"]
            assert [line["error"] for line in lost] == ([] if ca else ["URLError"])
            assert all("certificate verify failed" in line["why"] for line in lost)


def test_an_authority_without_https_or_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for changes, told in (
        ({"traces": "http://127.0.0.1:4318", "traces_ca": str(tmp_path)}, "no https:// address"),
        ({"traces": "https://127.0.0.1:4318", "traces_ca": str(tmp_path / "none.pem")}, r"none\.pem cannot be read"),
    ):
        with pytest.raises(SetupError, match=told):
            settings.load(**changes).export_tls()


class Request:
    """What a model's spans need to know of one of Triton's requests."""

    def __init__(self, trace: str) -> None:
        self.context = f'{{"traceparent":"00-{trace}-b7ad6b7169203331-01"}}'

    def trace(self) -> Request:
        return self

    def get_context(self) -> str:
        return self.context

    def request_id(self) -> str:
        return "a"


def test_without_a_collector_requests_are_answered_and_the_gateway_ends(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    started = time.monotonic()
    answers = ask(tmp_path, *[("GET", "/api/v1/nothing", {})] * 50, traces=nowhere)
    assert {answer.status_code for answer in answers} == {404}
    assert time.monotonic() - started < 30


def test_a_model_drops_spans_while_its_collector_hangs() -> None:
    with collecting() as collector:
        collector.hanging = True
        spans = of_models.Spans(f"{collector.url}/v1/traces", "lj-argon", "cpu")
        count = 2 * (of_models.WAITING + of_models.TOGETHER)
        for _ in range(count):
            spans.tell([(Request("0" * 31 + "1"), [])], Report(), 0)
        collector.hanging = False
        # The collector takes also the delivery that it was given first, unless the model has stopped waiting for it.
        wait_until(lambda: len(collector.spans) >= of_models.WAITING, "what waited has not come", 30)
        spans.close()
        # Two deliveries can have been under way. With a queue that makes its callers wait all would have come.
        assert len(collector.spans) <= of_models.WAITING + 2 * of_models.TOGETHER < count


def test_where_no_collector_is_named_the_sdk_is_not_imported() -> None:
    script = (
        "import sys; from frontend.app import create_app; from frontend.settings import load;"
        "create_app(load()); print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert loaded.stdout.strip() == "[]"


def test_triton_traces_what_the_gateway_has_chosen(tmp_path: Path) -> None:
    def options(**changes: Any) -> list[str]:
        chosen = settings.load(root=ROOT, state=tmp_path, tritonserver="/opt/tritonserver", **changes)
        return [option for option in triton.command(chosen, tmp_path / "none") if option.startswith("--trace-config")]

    assert options() == []
    set_ = options(traces="http://collector:4318")
    assert "--trace-config=rate=0" in set_
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in set_


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", ""),
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://tempo/otlp/v1/traces", "http://tempo/otlp/v1/traces"),
    ],
)
def test_an_address_without_a_path_gets_the_usual_one(given: str, url: str) -> None:
    assert settings.load(traces=given).traces_url == url


@pytest.mark.parametrize("given", ["collector:4318", "grpc://collector:4317", "http://", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(SetupError, match=r"traces: .*http://127\.0\.0\.1:4318"):
        settings.load(traces=given)
