"""/api/v1/tasks: submit, list, look, result, logs, cancel, retry; and what waits in the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from forcegate.errors import InvalidRequest
from frontend import task_schemas
from frontend.bodies import ClientDisconnect, answer
from frontend.routes.calculations import timeout
from frontend.routes.submitting import own_task, seen_by, submission_of, submit, user_of
from frontend.service import call_of, service_of
from frontend.task_documentation import listing, of_task, queued
from frontend.tasks import answers
from frontend.tasks.kinds import KINDS
from frontend.tasks.task import Priority, Status

router = APIRouter(prefix="/api/v1", tags=["Tasks"])

PAGE = 50
LONGEST_PAGE = 500
LARGE = 1_000_000
"""Stands for the size of an answer of unknown length, so that it is encoded in a thread."""

_Word = TypeVar("_Word", bound=str)


def _endpoint(kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def submitted(request: Request) -> Response:
        service, call = service_of(request), call_of(request)
        call.allow(timeout(request, service.settings.deadline_seconds))
        try:
            view = await submit(request, service, call, await submission_of(request, service, call, kind))
        except ClientDisconnect:
            call.gone = True
            return Response(status_code=400)  # nobody is there to read it
        where = f"/api/v1/tasks/{view.id}"
        body = answers.accepted(view) | {"status_url": where, "request_id": call.request_id}
        return await answer(body, call, 202, {"Location": where})

    return submitted


for _kind in KINDS.values():
    router.add_api_route(
        f"/tasks/{_kind.name}",
        _endpoint(_kind.name),
        methods=["POST"],
        name=f"submit_{_kind.name.replace('-', '_')}",
        summary=f"Queue: {_kind.title}",
        description=f"{_kind.title} Queued; everything that can be checked is checked before. The answer names the task.",
        **queued(_kind),
    )


@router.get("/tasks", **listing())
async def tasks(request: Request) -> Response:
    """Tasks, the newest first, by state, kind, model and user."""
    call, query = call_of(request), request.query_params
    kind = query.get("kind")
    if kind is not None and kind.replace("_", "-") not in KINDS:
        raise InvalidRequest("`kind` is not known.", f"It is one of {', '.join(KINDS)}.")
    user = query.get("user")
    me = user_of(request)  # a malformed header is told of whether it matters or not
    total, views = await service_of(request).tasks.find(
        status=_one_of(request, "status", Status),
        kind=None if kind is None else kind.replace("_", "-"),
        model=_canonical(request, query.get("model")),
        user=seen_by(request) or (me if user == "me" else _plain("user", user)),
        limit=number(request, "limit", PAGE, 1, LONGEST_PAGE),
        offset=number(request, "offset", 0, 0, 10**9),
    )
    return await answer({"total": total, "tasks": [answers.described(view) for view in views]}, call)


@router.get("/tasks/{task_id}", **of_task(task_schemas.TaskView, "The task."))
async def task(request: Request) -> Response:
    """One task: its state, its place in the queue, and how far it is."""
    view = await service_of(request).tasks.view(await own_task(request))
    return await answer(answers.described(view), call_of(request))


@router.get("/tasks/{task_id}/result", **of_task(task_schemas.TaskResult, "The result.", 409, 413, 422, 503, 504))
async def result(request: Request) -> Response:
    """The result of a completed task; the error of one that failed; 409 where there is none yet."""
    call = call_of(request)
    body = answers.result_of(await service_of(request).tasks.view(await own_task(request), result=True))
    call.atoms = LARGE
    return await answer(body, call)


@router.get("/tasks/{task_id}/logs", **of_task(task_schemas.TaskLogs, "The lines, the oldest first."))
async def logs(request: Request) -> Response:
    """What the worker has to tell."""
    identifier = await own_task(request)
    return await answer({"task_id": identifier, "lines": await service_of(request).tasks.logs(identifier)}, call_of(request))


@router.post("/tasks/{task_id}/cancel", **of_task(task_schemas.TaskView, "The task as it is now."))
async def cancel(request: Request) -> Response:
    """Asks for an end: at once where the task waits, within one step where it runs. One that is final stays as it is."""
    return await answer(answers.described(await service_of(request).tasks.cancel(await own_task(request))), call_of(request))


@router.post("/tasks/{task_id}/retry", **of_task(task_schemas.TaskView, "The task, queued again.", 409, 429))
async def retry(request: Request) -> Response:
    """Queues a task that failed, was cancelled or timed out once more; it goes on from its last state."""
    return await answer(answers.described(await service_of(request).tasks.retry(await own_task(request))), call_of(request))


@router.get("/scheduler/queue", tags=["Scheduler"], **of_task(task_schemas.Queue, "What waits.", named=False))
async def queue(request: Request) -> Response:
    """What waits, by priority, with positions and waiting times; and how many run.

    Where keys are needed, only one's own tasks are listed unless the key may operate; the numbers count all.
    """
    found, mine = service_of(request).tasks, seen_by(request)
    (waiting, views), (running, _) = await asyncio.gather(
        found.find(status=Status.QUEUED, limit=LONGEST_PAGE), found.find(status=Status.RUNNING, limit=1)
    )
    now = time.time()
    priorities: dict[str, Any] = {priority.value: {"waiting": 0, "tasks": []} for priority in Priority}
    for view in sorted(views, key=lambda view: (view.position or 0, view.created)):
        entry = priorities[view.priority.value]
        entry["waiting"] += 1
        if mine not in (None, view.user):
            continue
        entry["tasks"].append(
            answers.accepted(view)
            | {"kind": view.kind, "models": list(view.models), "waiting_seconds": round(max(0.0, now - view.created), 3)}
        )
    body = {
        "waiting": waiting,
        "running": running,
        "listed": sum(len(entry["tasks"]) for entry in priorities.values()),
        "priorities": priorities,
    }
    return await answer(body, call_of(request))


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number in the query of an address.

    Raises:
        InvalidRequest: it is none, or out of bounds.
    """
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        value = int(given) if given.isascii() and len(given) < 12 else low - 1
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise InvalidRequest(f"`{name}` has to be a whole number from {low} to {high}.", "")
    return value


def _one_of(request: Request, name: str, words: type[_Word]) -> _Word | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    try:
        return words(given)
    except ValueError:
        known = ", ".join(word.value for word in words)  # type: ignore[attr-defined]
        raise InvalidRequest(f"`{name}` is not known.", f"It is one of {known}.") from None


def _canonical(request: Request, name: str | None) -> str | None:
    """The canonical name of a model that tasks are asked for of.

    Raises:
        UnknownModel: there is none.
    """
    return None if name is None else service_of(request).directory.entry(name).variant.name


def _plain(name: str, value: str | None) -> str | None:
    if value is not None and ("\x00" in value or len(value) > 200):
        raise InvalidRequest(f"`{name}` is longer than 200 characters, or holds a null character.", "")
    return value
