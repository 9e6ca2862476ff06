"""An OpenTelemetry collector in the test's own process: OTLP over HTTP, read with the real protobuf messages."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.service import wait_until

P = ParamSpec("P")
T = TypeVar("T")
SECONDS = 20.0
"""Spans are sent once in a second; a busy machine takes longer."""


class Incomplete(AssertionError):
    """Spans of a trace are missing."""


@dataclass(frozen=True)
class Span:
    """One span as it came; ids are hexadecimal, times ns since the epoch."""

    service: str
    name: str
    trace: str
    identifier: str
    parent: str
    start: int
    end: int
    error: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]


@dataclass
class Collector:
    """What has come. ``broken`` refuses deliveries from then on, ``hanging`` leaves them without an answer."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    broken: bool = False
    hanging: bool = False
    deliveries: int = 0

    def of(self, trace: str, count: int) -> list[Span]:
        """The spans of a trace, as soon as there are so many, in the order of their starts."""
        found: list[Span] = []

        def enough() -> bool:
            found[:] = [span for span in list(self.spans) if span.trace == trace]
            return len(found) >= count

        try:
            wait_until(enough, "", SECONDS)
        except AssertionError:
            last = [(span.service, span.name, span.trace) for span in self.spans[-12:]]
            names = sorted(span.name for span in found)
            raise Incomplete(f"{len(found)} of {count} spans: {names}; {self.deliveries} deliveries, last {last}") from None
        return sorted(found, key=lambda span: span.start)

    def take(self, body: bytes, media: str) -> None:
        """Reads one delivery.

        Raises:
            ValueError: it is no ExportTraceServiceRequest.
        """
        self.bodies.append(body)
        request = ExportTraceServiceRequest()
        if media.startswith("application/json"):
            json_format.Parse(json.dumps(_binary_ids(json.loads(body))), request)
        else:
            request.ParseFromString(body)
        for group in request.resource_spans:
            service = _values(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                self.spans.extend(_span(service, span) for span in scope.spans)


def context(sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A client's trace, its span, and the header that tells of them. A service whose ratio is 0 traces nothing else."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-{'01' if sampled else '00'}"}


def several_times(test: Callable[P, T]) -> Callable[P, T]:
    """Repeats what misses spans: Triton 2.51 itself leaves out one in 20 to 50 of the requests that it should trace
    (docs/monitoring.md), whatever their ids."""

    @functools.wraps(test)
    def repeated(*arguments: P.args, **named: P.kwargs) -> T:
        for _ in range(4):
            try:
                return test(*arguments, **named)
            except Incomplete:
                pass
        return test(*arguments, **named)

    return repeated


@contextmanager
def collecting(certificates: Path | None = None) -> Iterator[Collector]:
    """A collector on a free port of loopback; with HTTPS where there is a folder of ``tests.certificates`` with a ``server``."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.deliveries += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            while collector.hanging:
                time.sleep(0.05)
            status = 503
            if not collector.broken and self.path == "/v1/traces":
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                zipped = self.headers.get("Content-Encoding") == "gzip"
                try:
                    collector.take(gzip.decompress(body) if zipped else body, self.headers["Content-Type"])
                    status = 200
                except (ValueError, KeyError, json_format.ParseError):
                    status = 400
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    collector.url = f"http{'' if certificates is None else 's'}://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        collector.hanging = False
        server.shutdown()
        server.server_close()


def _span(service: str, span: Any) -> Span:
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        _values(span.attributes),
        tuple(link.trace_id.hex() for link in span.links),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _binary_ids(value: Any) -> Any:
    """OTLP's JSON has ids in hexadecimal, where protobuf's has bytes in base64."""
    if isinstance(value, list):
        return [_binary_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(each)).decode() if key in ("traceId", "spanId", "parentSpanId") else _binary_ids(each)
        for key, each in value.items()
    }
