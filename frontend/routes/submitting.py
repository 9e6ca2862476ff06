"""From a request to a task in the queue, and, where its caller waits, to the answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any, Final

from fastapi import Request, Response

from forcegate.errors import InvalidRequest, NotFound, TaskContinues
from frontend.bodies import answer, media_type, read_body
from frontend.requests import TASK, Calculation, Named
from frontend.security.keys import Scope
from frontend.service import Service, call_of, service_of
from frontend.tasks.answers import result_of
from frontend.tasks.checks import resolve
from frontend.tasks.submission import Submission
from frontend.tasks.task import Priority, View
from frontend.telemetry import Call

USER_HEADER: Final = "x-forcegate-user"
KEY_HEADER: Final = "idempotency-key"
_USER = re.compile(r"[A-Za-z0-9._@:\-]{1,100}")
MISSING: Final = "GET /api/v1/tasks lists them; finished ones are removed after a time."
_ID = re.compile(r"[A-Za-z0-9_\-]{1,100}")
_KEY = re.compile(r"[!-~]{1,200}")


def user_of(request: Request) -> str:
    """Whose task it is: the user of the API key; without keys what the header says, or the address that the request came from.

    Raises:
        InvalidRequest: the header holds something else than a name.
    """
    if (key := call_of(request).key) is not None:
        return key.user
    given = request.headers.get(USER_HEADER)
    if given is None:
        return request.client.host if request.client is not None else "unknown"
    if not _USER.fullmatch(given):
        raise InvalidRequest("X-Forcegate-User has to be letters, digits and . _ @ : -, at most 100.", "")
    return given


async def own_task(request: Request) -> str:
    """The id of the task in a path, where it is the caller's or the key may operate.

    Raises:
        NotFound: there is none, or it is another user's: whose it is nobody learns who may not see it.
    """
    identifier = str(request.path_params["task_id"])
    unknown = NotFound(f"There is no task {identifier[:80]!r}.", MISSING)
    if not _ID.fullmatch(identifier):
        raise unknown
    key = call_of(request).key
    if key is not None and not key.scope.covers(Scope.OPERATE):
        view = await service_of(request).tasks.view(identifier)
        if view.user != key.user:
            raise unknown
    return identifier


def seen_by(request: Request) -> str | None:
    """The user whose tasks alone the caller may see; None for those of all."""
    key = call_of(request).key
    return None if key is None or key.scope.covers(Scope.OPERATE) else key.user


async def decoded(request: Request, service: Service, call: Call, calculation: Calculation | str, body: bytes, media: str) -> Any:
    """The record of a body; the uploaded structures that it names are put in.

    Raises:
        ForcegateError: see ``frontend.requests.decode`` and ``StructureStore.fetch``.
    """
    record = await service.decoder.decode(calculation, body, media, call)
    if isinstance(record, Named):
        stored = await service.structures.fetch(user_of(request), record.ids, service.body_limit)
        record = await service.decoder.decode(calculation, body, media, call, stored)
    return record


async def submission_of(request: Request, service: Service, call: Call, kind: str) -> Submission:
    """The submission in a request's body, checked as far as that goes without the models.

    Raises:
        ForcegateError: see ``frontend.bodies.read_body`` and ``frontend.tasks.submission.read``.
    """
    media = media_type(request.scope)
    body = await read_body(request, call, service.admission, service.body_limit)
    submission = await decoded(request, service, call, f"{TASK}{kind}", body, media)
    assert isinstance(submission, Submission)
    return submission


async def submit(request: Request, service: Service, call: Call, submission: Submission, priority: Priority | None = None) -> View:
    """Queues a submission; ``priority`` is that of one whose caller chose none.

    Raises:
        ForcegateError: see ``frontend.tasks.checks.resolve`` and ``Tasks.submit``.
    """
    resolved = resolve(service.directory, submission)
    call.structures, call.atoms = len(submission.structures), submission.atoms
    call.model = resolved.models[0] if len(resolved.models) == 1 else ""
    options = submission.options
    if priority is not None and not submission.prioritised:
        options = replace(options, priority=priority)
    if options.idempotency_key is None and (key := request.headers.get(KEY_HEADER)) is not None:
        if not _KEY.fullmatch(key):
            raise InvalidRequest("Idempotency-Key has to be printable ASCII without spaces, at most 200 characters.", "")
        options = replace(options, idempotency_key=key)
    if call.trace is not None:
        options = replace(options, asked_by=call.trace.traceparent)
    return await service.tasks.submit(submission.kind, resolved.parameters, resolved.models, options, user_of(request))


async def waited(request: Request, service: Service, call: Call, submission: Submission) -> Response:
    """Queues a submission before others and waits for its result.

    A caller who leaves cancels the task, unless ``options.detach`` said that it goes on, or an idempotency key that he is going to
    ask again.

    Raises:
        TaskContinues: the time is over; the task goes on.
        ForcegateError: the task's own error, or that it cannot be queued.
    """
    submitting = asyncio.create_task(submit(request, service, call, submission, Priority.HIGH))
    try:
        view = await asyncio.shield(submitting)
        view = await service.tasks.wait(view.id, max(call.remaining, 0.0))
    except asyncio.CancelledError:
        keyed = submission.options.idempotency_key is not None or KEY_HEADER in request.headers
        if call.gone and not (submission.detach or keyed):
            await asyncio.shield(_cancel(service, submitting))
        raise
    if not view.status.final:
        raise TaskContinues(
            f"There was no answer within {call.limit:g} s; the task {view.id} goes on.",
            f"GET /api/v1/tasks/{view.id} tells how far it is, and /api/v1/tasks/{view.id}/result gives its result.",
            view.id,
        )
    result = result_of(view)
    # Its size is not that of the request: a trajectory's table can be long for one atom.
    call.atoms = max(call.atoms, 1_000_000)
    return await answer(result | {"request_id": call.request_id, "seconds": round(call.seconds, 6)}, call)


async def _cancel(service: Service, submitting: asyncio.Task[View]) -> None:
    await service.tasks.cancel((await submitting).id)
