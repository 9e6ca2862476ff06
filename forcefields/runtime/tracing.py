"""The spans of a model's calls, for the OpenTelemetry collector that Triton's own spans go to.

The environments of the families have nothing of OpenTelemetry. What is sent here is OTLP over HTTP with a JSON body, as Triton
sends it too, and the standard library is enough for that (https://opentelemetry.io/docs/specs/otlp/#otlphttp).
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any
from urllib.parse import unquote

import forcegate
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import Report

log = logging.getLogger(__name__)

WAITING = 2048
"""Calls that wait for the collector at most; the spans of more are dropped."""
TOGETHER = 512
"""Calls of one delivery at most; most have a few requests."""
DELAY_SECONDS = 1.0
SEND_SECONDS = 5.0
"""Time that one delivery may take; also what the end of the process may wait for it."""
COMPLAIN_SECONDS = 60.0
"""How often it is said that the collector does not take what it is sent."""
_TRACEPARENT = re.compile(r'"traceparent": ?"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}"')
"""In what Triton gives of a request's context, which is JSON."""
_INTERNAL, _ERROR = 1, 2


@dataclass(frozen=True)
class _Call:
    """One call of a model: when it was, in ns since the epoch, how many requests it had, and what is to be said of those traced.

    Attributes:
        traced: the trace, the span of Triton, and the attributes of each.
    """

    started: int
    ended: int
    size: int
    report: Report
    traced: Sequence[tuple[str, str, dict[str, Any]]]


class Spans:
    """A thread that tells the collector of calls after they have been answered. One that is away costs spans, and no call.

    Args:
        url: of the collector. ``OTEL_EXPORTER_OTLP_HEADERS`` names headers for it, such as those of its authentication.
        model: name of the model.
        device: where it runs.
        ca: PEM file with what the collector's certificate is signed with; empty for what this machine trusts.
    """

    def __init__(self, url: str, model: str, device: str, ca: str = "") -> None:
        self._url, self._device, self._ca = url, device, ca
        self._trusting: ssl.SSLContext | None = None
        self._headers = {"Content-Type": "application/json"} | _headers_of(os.environ)
        about = {"service.name": "forcegate-model", "service.namespace": "forcegate", "service.version": forcegate.__version__}
        self._resource = {"attributes": _attributes(about | {"forcegate.model": model})}
        self._waiting: Queue[_Call | None] = Queue(WAITING)
        self._complained = -COMPLAIN_SECONDS
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def tell(self, requests: Sequence[tuple[Any, Sequence[Job]]], report: Report, started: int) -> None:
        """Leaves the spans of one call to the thread: one of each request that Triton traces.

        Args:
            requests: of the call, Triton's objects, with the jobs of each.
            started: ns since the epoch.
        """
        ended = time.time_ns()
        try:
            traced = []
            for request, jobs in requests:
                if (context := request.trace().get_context()) and (found := _TRACEPARENT.search(context)):
                    traced.append((found[1], found[2], _own(request.request_id(), jobs)))
            if traced:
                self._waiting.put_nowait(_Call(started, ended, len(requests), report, traced))
        except Full:
            pass
        except Exception as error:  # the answers of the call are ready, and this must not take them away
            self._complain(error)

    def close(self) -> None:
        """Returns when all has been sent, or after a few seconds."""
        try:
            self._waiting.put_nowait(None)
        except Full:
            return
        self._thread.join(SEND_SECONDS)

    def _run(self) -> None:
        while True:
            calls = [self._waiting.get()]
            due = time.monotonic() + DELAY_SECONDS
            while calls[-1] is not None and len(calls) < TOGETHER:
                try:
                    calls.append(self._waiting.get(timeout=max(0.0, due - time.monotonic())))
                except Empty:
                    break
            known = [call for call in calls if call is not None]
            if known:
                self._send([span for call in known for span in self._spans(call)])
            if len(known) < len(calls):
                return

    def _spans(self, call: _Call) -> Iterator[dict[str, Any]]:
        report = call.report
        shared = {
            "forcegate.device": self._device,
            "forcegate.batch.requests": call.size,
            "forcegate.batch.structures": report.structures,
            "forcegate.batch.atoms": report.atoms,
            "forcegate.batch.pairs": report.edges,
            "forcegate.batch.passes": report.tally.passes,
            "forcegate.batch.graph_seconds": report.graph_seconds,
            "forcegate.batch.evaluation_seconds": report.evaluation_seconds,
        }
        for trace, parent, own in call.traced:
            yield _span(trace, parent, shared | own, call.started, call.ended)

    def _send(self, spans: list[dict[str, Any]]) -> None:
        scope = {"scope": {"name": "forcegate", "version": forcegate.__version__}, "spans": spans}
        body = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}).encode()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            if self._trusting is None and self._url.startswith("https:"):
                self._trusting = ssl.create_default_context(cafile=self._ca or None)
            with urllib.request.urlopen(request, timeout=SEND_SECONDS, context=self._trusting):
                pass
        except Exception as error:  # whatever it is, the thread goes on and the spans are lost
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if time.monotonic() - self._complained > COMPLAIN_SECONDS:
            self._complained = time.monotonic()
            # What the system or the collector has said; other errors may quote what was sent.
            why = {"why": str(error)} if isinstance(error, OSError) else {}
            log.warning("spans are lost", extra={"error": type(error).__name__, **why})


def _own(request_id: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a span says of its request."""
    own = {
        "forcegate.request_id": request_id,
        "forcegate.structures": len(jobs),
        "forcegate.atoms": sum(job.atoms for job in jobs),
    }
    error = next((job.error.code for job in jobs if job.error is not None), None)
    return own if error is None else own | {"error.type": error}


def _span(trace: str, parent: str, attributes: dict[str, Any], started: int, ended: int) -> dict[str, Any]:
    error = attributes.get("error.type")
    return {
        "traceId": trace,
        "spanId": secrets.token_hex(8),
        "parentSpanId": parent,
        "name": "execute",
        "kind": _INTERNAL,
        # 64-bit numbers are texts in this encoding.
        "startTimeUnixNano": str(started),
        "endTimeUnixNano": str(ended),
        "attributes": _attributes(attributes),
        "status": {} if error is None else {"code": _ERROR, "message": error},
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}


def _headers_of(environment: Any) -> dict[str, str]:
    """``name=value`` pairs, separated by commas and URL-encoded, as all of OpenTelemetry's programs read them."""
    text = environment.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environment.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    pairs = (part.partition("=") for part in text.split(","))
    return {unquote(name).strip(): unquote(value).strip() for name, separator, value in pairs if separator}
