"""Spans of the gateway and of the workers (OpenTelemetry), sent to the collector that ``FORCEGATE_TRACES`` names.

Nothing of OpenTelemetry's SDK is imported while that is empty. A span has names, numbers and codes: no structure, no key, no text
of an error. They are sent by a thread from a bounded queue: a collector that is away costs spans, never a request.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import forcegate
from forcegate.errors import ForcegateError

if TYPE_CHECKING:
    import requests
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from frontend.tasks.attempt import Attempt
    from frontend.telemetry import Call

Metadata = tuple[tuple[str, str], ...]
"""What a gRPC call carries beside its message."""

EXPORT_SECONDS: Final = 5.0
"""Time that one delivery to the collector may take, with its retries, and that the end of a process may wait for it."""
DELAY_MILLISECONDS: Final = 1000
_CONTEXT: Final = (b"traceparent", b"tracestate")
_LONGEST: Final = 512
"""Characters of a ``tracestate`` that is handed on, as many as W3C asks for: gRPC refuses calls whose headers are too long."""
_OFF: Final[AbstractContextManager[None]] = nullcontext()


class Tracing:
    """The spans of one process.

    Args:
        url: of the collector.
        service: name of the process in traces: ``gateway`` or ``worker``.
        ratio: part of the requests to trace, of those whose caller has not decided it.
        ca: PEM file with what the collector's certificate is signed with; empty for what this machine trusts.
    """

    def __init__(self, url: str, service: str, ratio: float = 1.0, ca: str = "") -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._propagator, self._nobody = trace, TraceContextTextMapPropagator(), Context()
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(
                {"service.name": f"forcegate-{service}", "service.namespace": "forcegate", "service.version": forcegate.__version__}
            ),
            shutdown_on_exit=False,
        )
        # Left alone, it would trust the list that comes with a Python package and not that of the machine.
        trusted = ssl.get_default_verify_paths()
        certificates = ca or trusted.cafile or trusted.capath
        exporter = OTLPSpanExporter(url, certificate_file=certificates, timeout=EXPORT_SECONDS, session=_session())
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=DELAY_MILLISECONDS))
        self._tracer: Tracer = self._provider.get_tracer("forcegate", forcegate.__version__)

    def request(self, headers: Iterable[tuple[bytes, bytes]], request_id: str) -> Trace | None:
        """The trace of a request that has come in, or None where it is not to be traced.

        The caller's ``traceparent`` decides that where there is one, else the ratio of the settings.
        """
        given = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT and len(value) <= _LONGEST}
        parent = self._propagator.extract(given, self._nobody)
        attributes = {"forcegate.request_id": request_id}
        root = self._tracer.start_span("request", parent, kind=self._api.SpanKind.SERVER, attributes=attributes)
        return Trace(self, root) if root.is_recording() else None

    def task(self, attempt: Attempt, carry_out: Callable[[Attempt], str]) -> None:
        """Carries out one attempt at a task in a trace of its own, with a link to the request that queued it.

        Args:
            carry_out: gives the code of the error that the attempt ended with, or nothing.
        """
        asking = self._propagator.extract({"traceparent": attempt.asked_by}, self._nobody)
        attributes: dict[str, Any] = {
            "forcegate.task": attempt.task,
            "forcegate.attempt": attempt.number,
            "forcegate.models": tuple(json.loads(attempt.models)),
        }
        links = [self._api.Link(self._api.get_current_span(asking).get_span_context())]
        kind = self._api.SpanKind.CONSUMER
        span = self._tracer.start_span(f"task {attempt.kind}", self._nobody, kind=kind, attributes=attributes, links=links)
        with self.ending(span):
            if code := carry_out(attempt):
                self.failed(span, code)

    @contextmanager
    def ending(self, span: Span) -> Iterator[None]:
        """Ends a span with the block, as an error with its code where the block raises."""
        try:
            yield
        except BaseException as error:
            self.failed(span, error.code if isinstance(error, ForcegateError) else type(error).__name__)
            raise
        finally:
            span.end()

    def failed(self, span: Span, code: str) -> None:
        """Marks a span as an error."""
        span.set_attribute("error.type", code)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, code))

    def start(self, name: str, context: Context, attributes: Mapping[str, Any], client: bool) -> Span:
        """A span below ``context``; ``client`` for one that another process answers."""
        kind = self._api.SpanKind.CLIENT if client else self._api.SpanKind.INTERNAL
        return self._tracer.start_span(name, context, kind=kind, attributes=attributes)

    def below(self, span: Span) -> Context:
        """The context of what is done within a span."""
        return self._api.set_span_in_context(span)

    def headers(self, context: Context) -> dict[str, str]:
        """``traceparent``, and ``tracestate`` where there is one, for another process."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return carrier

    def close(self) -> None:
        """Sends what is left; returns after a few seconds in any case."""
        self._provider.shutdown()


def _session() -> requests.Session:
    """What spans are POSTed with. It trusts what it is told to: requests by itself lets ``REQUESTS_CA_BUNDLE`` go before that."""
    from requests import Session

    class Trusting(Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            return super().merge_environment_settings(url, proxies, stream, self.verify if verify is None else verify, cert)

    return Trusting()


class Trace:
    """One request that is traced: its own span, and what is done for it below."""

    __slots__ = ("_context", "_root", "_tracing")

    def __init__(self, tracing: Tracing, root: Span) -> None:
        self._tracing, self._root = tracing, root
        self._context = tracing.below(root)

    @property
    def identifier(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return f"{self._root.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """The request's own span for another process."""
        return self._tracing.headers(self._context)["traceparent"]

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any], client: bool = False) -> Iterator[Metadata]:
        """One piece of the work; gives what a gRPC call within it carries."""
        span = self._tracing.start(name, self._context, attributes, client)
        with self._tracing.ending(span):
            yield tuple(self._tracing.headers(self._tracing.below(span)).items()) if client else ()

    def finish(self, call: Call, route: str, method: str, status: int) -> None:
        """Ends the request's span. A refusal (4xx) is no failure of the service, and has its code alone."""
        root = self._root
        root.update_name(f"{method} {route}")
        root.set_attribute("http.request.method", method)
        root.set_attribute("http.route", route)
        root.set_attribute("http.response.status_code", status)
        for name in ("model", "structures", "atoms"):
            if value := getattr(call, name):
                root.set_attribute(f"forcegate.{name}", value)
        if status >= 500:
            self._tracing.failed(root, call.code or str(status))
        elif call.code:
            root.set_attribute("error.type", call.code)
        root.end()


def waiting(call: Call, model: str, structures: int) -> AbstractContextManager[object]:
    """Around the wait for a model's turn."""
    if call.trace is None:
        return _OFF
    return call.trace.span("queue", {"forcegate.model": model, "forcegate.structures": structures})


def sending(call: Call, model: str) -> AbstractContextManager[Metadata | None]:
    """Around one call of Triton; gives what the call carries."""
    if call.trace is None:
        return _OFF
    rpc = {"rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService", "rpc.method": "ModelInfer"}
    return call.trace.span("ModelInfer", {**rpc, "forcegate.model": model}, client=True)
