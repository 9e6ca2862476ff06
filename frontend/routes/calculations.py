"""POST /api/v1/single_point, /batch and /multi_model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from forcegate.errors import InvalidRequest
from frontend import calculations
from frontend.bodies import ClientDisconnect, answer, media_type, read_body
from frontend.documentation import calculation
from frontend.requests import Calculation
from frontend.routes.submitting import decoded, waited
from frontend.service import Service, call_of, service_of
from frontend.tasks.submission import Submission
from frontend.telemetry import Call

TIMEOUT_HEADER: Final = "x-forcegate-timeout"
LONGEST_TIMEOUT: Final = 3600.0
_WATCH_AFTER: Final = 0.05
"""Seconds after which somebody looks whether the caller is still there. Most answers are out by then, and cost nothing."""

router = APIRouter(prefix="/api/v1", tags=["Calculations"])


@router.post("/single_point", **calculation("single_point"))
async def single_point(request: Request) -> Response:
    """Energy, forces and stress of one structure."""
    return await _calculate(request, "single_point", calculations.single_point)


@router.post("/batch", **calculation("batch"))
async def batch(request: Request) -> Response:
    """Energy, forces and stress of many structures with one model.

    The structures are evaluated side by side and share batches with everybody else's. The results come in the order of the
    structures. One that is malformed, or that the model refuses, has an `error` in its place and does not affect the others.
    """
    return await _calculate(request, "batch", calculations.batch)


@router.post("/multi_model", **calculation("multi_model"))
async def multi_model(request: Request) -> Response:
    """One structure with several models, and how far they agree.

    A model that fails has its error in its place and leaves the others. Total energies of different models have different zeros;
    the comparison gives atomization energies instead, and says what they are worth.
    """
    return await _calculate(request, "multi_model", calculations.multi_model)


DIRECT: Final = {
    "/api/v1/single_point": single_point,
    "/api/v1/batch": batch,
    "/api/v1/multi_model": multi_model,
}
"""The endpoints above by their paths, for ``frontend.middleware``."""


async def _calculate(
    request: Request, name: Calculation, calculate: Callable[[Service, Any, Call], Awaitable[dict[str, Any]]]
) -> Response:
    service, call = service_of(request), call_of(request)
    call.allow(timeout(request, service.settings.deadline_seconds))
    media = media_type(request.scope)
    try:
        body = await read_body(request, call, service.admission, service.body_limit)
        with Watch(request, call):
            task = await decoded(request, service, call, name, body, media)
            del body
            if isinstance(task, Submission):
                # Anything but single points goes through the queue, which has more time.
                call.allow(timeout(request, service.settings.sync_seconds))
                return await waited(request, service, call, task)
            result = await calculate(service, task, call)
            return await answer(result, call)
    except ClientDisconnect:
        call.gone = True
        return Response(status_code=400)  # nobody is there to read it


def timeout(request: Request, default: float) -> float:
    """Seconds that the caller allows, or ``default``.

    Raises:
        InvalidRequest: the header is not a number above 0 and at most an hour.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidRequest(f"X-Forcegate-Timeout has to be a number of seconds, above 0 and at most {LONGEST_TIMEOUT:g}.", "")
    return seconds


class Watch:
    """Cancels the work when the caller goes away; the cancelled gRPC call tells the model not to begin."""

    def __init__(self, request: Request, call: Call) -> None:
        self._request = request
        self._call = call
        self._watching: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._worker = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._start)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._call.gone = True
        if self._worker is not None:
            self._worker.cancel()
