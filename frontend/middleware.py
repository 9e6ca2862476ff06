"""Around every request: its id, its path without a trailing slash, its metrics, its log line, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forcegate.errors import ForcegateError, ServerUnavailable
from frontend.bodies import error_response
from frontend.telemetry import REQUEST_ID, UNMATCHED, Call, Metrics, request_id
from frontend.tracing import Tracing

access = logging.getLogger("frontend.access")
log = logging.getLogger(__name__)

QUIET = frozenset(("/health", "/live", "/ready", "/metrics"))
"""Routes that are asked every few seconds by machines; their log lines are at the level debug."""
CLIENT_GONE = 499
"""Status in logs and metrics of a request whose caller went away before its answer, as nginx has it."""


Endpoint = Callable[[Request], Awaitable[Response]]
Refuse = Callable[[Request, Exception], Awaitable[Response]]
Admit = Callable[[Scope, Call], Awaitable[None]]


class EveryRequest:
    """The outermost layer of the application.

    Args:
        app: the framework, which answers everything that ``direct`` does not.
        direct: endpoints by the path that is POSTed to. They are routes of ``app`` too; going past its layers saves a third of the
            time that a small calculation takes in the gateway.
        refuse: makes the answer for a typed error.
        admit: raises the typed error of a request that is not let in.
        tracing: makes the spans of requests, where they are wanted.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        direct: Mapping[str, Endpoint],
        refuse: Refuse,
        admit: Admit | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.direct = direct
        self.refuse = refuse
        self.admit = admit
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; websockets and lifespan pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _begin(scope)
        if self.tracing is not None and scope["path"] not in QUIET:
            call.trace = self.tracing.request(scope["headers"], call.request_id)
        token = REQUEST_ID.set(call.request_id)
        id_header = (b"x-request-id", call.request_id.encode())
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append(id_header)
            await send(message)

        self.metrics.requests_in_flight.inc()
        try:
            endpoint = self.direct.get(scope["path"]) if scope["method"] == "POST" else None
            if (refused := await self._refused(scope, receive, call)) is not None:
                await refused(scope, receive, send_with_id)
            elif endpoint is None:
                await self.app(scope, receive, send_with_id)
            else:
                call.route = scope["path"]
                await self._answer(endpoint, scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Either the watch in frontend.routes.calculations cancelled this task, since the caller has gone; or the service is
            # being stopped and the time to finish is over.
            if not call.gone:
                if status:
                    raise
                call.code = ServerUnavailable.code
                error = ServerUnavailable("The service is being stopped, and the time to finish this request is over.")
                await error_response(error, call.accept)(scope, receive, send_with_id)
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        except Exception:
            log.exception("a request broke the gateway")
            call.code = ForcegateError.code
            if not status:
                await error_response(broken(), call.accept)(scope, receive, send_with_id)
        finally:
            self.metrics.requests_in_flight.dec()
            self._finish(scope, call, CLIENT_GONE if call.gone else status)
            REQUEST_ID.reset(token)

    async def _refused(self, scope: Scope, receive: Receive, call: Call) -> Response | None:
        """The answer to a request that is not let in."""
        if self.admit is None:
            return None
        try:
            await self.admit(scope, call)
        except ForcegateError as error:
            response = await self.refuse(Request(scope, receive), error)
            if scope["method"] not in ("GET", "HEAD"):
                # Its body is not read, so the connection cannot be used again.
                response.headers["Connection"] = "close"
            return response
        return None

    async def _answer(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except ForcegateError as error:
            response = await self.refuse(request, error)
        await response(scope, receive, send)

    def _finish(self, scope: Scope, call: Call, status: int) -> None:
        route = call.route or getattr(scope.get("route"), "path", UNMATCHED)
        # Methods that no route knows would be labels that anybody can invent.
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS") else "other"
        self.metrics.seconds.labels(route, call.model).observe(call.seconds)
        self.metrics.requests.labels(route, method, str(status)).inc()
        if call.code:
            self.metrics.rejected.labels(call.code).inc()
        if call.structures:
            self.metrics.batch.labels(route).observe(call.structures)
        if call.trace is not None:
            call.trace.finish(call, route, method, status)
        level = logging.DEBUG if route in QUIET and status < 500 else logging.INFO
        if not access.isEnabledFor(level):
            return
        extra = {"method": method, "route": route, "status": status, "seconds": round(call.seconds, 6)}
        for name in ("model", "structures", "atoms", "code"):
            if value := getattr(call, name):
                extra[name] = value
        if call.key is not None:
            extra["key"], extra["user"] = call.key.id, call.key.user
        if call.trace is not None:
            extra["trace_id"] = call.trace.identifier
        # Not access.log: it would look through the stack for the line that calls it, and nobody reads that.
        access.handle(access.makeRecord(access.name, level, "", 0, "request", (), None, extra=extra))


def _begin(scope: Scope) -> Call:
    started = time.perf_counter()
    given = accept = ""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
        elif name == b"accept":
            accept = value.decode("latin-1")
    path = scope["path"]
    if len(path) > 1 and path.endswith("/"):
        scope["path"] = path.rstrip("/") or "/"
        scope["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
    call = Call(request_id(given), started, accept)
    scope["forcegate.call"] = call
    return call


def broken() -> ForcegateError:
    """What a caller is told of an error that nobody has foreseen."""
    return ForcegateError("The gateway failed on this request; it is not your fault.", "Its log has more under this request id.")
