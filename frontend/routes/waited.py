"""POST /api/v1/optimization and the other calculations of the queue, for callers who wait for the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

from frontend.bodies import ClientDisconnect
from frontend.routes.calculations import Watch, timeout
from frontend.routes.submitting import submission_of, waited
from frontend.service import call_of, service_of
from frontend.task_documentation import waited_calculation
from frontend.tasks.kinds import CALCULATIONS

router = APIRouter(prefix="/api/v1", tags=["Calculations"])


def _endpoint(kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def calculate(request: Request) -> Response:
        service, call = service_of(request), call_of(request)
        call.allow(timeout(request, service.settings.sync_seconds))
        try:
            submission = await submission_of(request, service, call, kind)
            with Watch(request, call):
                return await waited(request, service, call, submission)
        except ClientDisconnect:
            call.gone = True
            return Response(status_code=400)  # nobody is there to read it

    return calculate


for _name, _kind in CALCULATIONS.items():
    if _name != "single-point":
        router.add_api_route(
            f"/{_name.replace('-', '_')}",
            _endpoint(_name),
            methods=["POST"],
            name=_name.replace("-", "_"),
            summary=_kind.title,
            description=f"{_kind.title} The same as POST /api/v1/tasks/{_name}, before other tasks, and waited for. Where no "
            "answer comes in time the task goes on, and the error names it. A caller who leaves cancels it, unless "
            "`options.detach` is true or there is an idempotency key.",
            **waited_calculation(_kind),
        )
