"""What a task tells while it runs, and the files that it leaves: events, trajectory, artifacts."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from forcegate.errors import InvalidRequest, NotFound
from frontend import task_schemas
from frontend.bodies import answer
from frontend.routes.submitting import own_task
from frontend.service import call_of, service_of
from frontend.task_documentation import of_task, streamed
from frontend.tasks.formats import FORMATS, converted
from frontend.tasks.task import Event

router = APIRouter(prefix="/api/v1", tags=["Tasks"])

KEEP_ALIVE_SECONDS: Final = 15.0
"""Of silence, after which a comment is sent, so that proxies leave the connection open and a reader who has gone is noticed."""
TRAJECTORY: Final = "trajectory.extxyz"
_CHUNK: Final = 1 << 18


@router.get("/tasks/{task_id}/events", **streamed("text/event-stream", "Server-sent events.", after=True))
async def events(request: Request) -> Response:
    """Server-sent events: `status`, `progress` (a step's phase, step, energy, fmax, temperature, volume), `log`.

    Each has a number as its id. A reader that comes back with `Last-Event-ID` (or `?after=`) misses nothing and sees nothing twice.
    The stream ends when the task is final.
    """
    service, identifier = service_of(request), await own_task(request)
    given = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise InvalidRequest("Last-Event-ID, or `after`, has to be the number of an event.", "")
    await service.tasks.view(identifier)  # one that does not exist is an error before the stream begins
    stream = _stream(service.tasks.events(identifier, int(given)))
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )


async def _stream(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The events on the wire, with comments in silence."""
    coming: asyncio.Future[Event] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait((coming,), timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield b": keep-alive\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield _on_the_wire(event)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        if (close := getattr(events, "aclose", None)) is not None:
            await close()


def _on_the_wire(event: Event) -> bytes:
    data = orjson.dumps(event.data | {"time": event.time})  # one line: JSON has no bare line breaks
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.name.encode(), data)


@router.get("/tasks/{task_id}/trajectory", **streamed("text/plain", "The frames so far.", format=True))
async def trajectory(request: Request) -> Response:
    """The frames of a relaxation or of molecular dynamics, also while it runs; 404 until there is one.

    `format`: `extxyz` (default; energy, forces and stress with each frame), `xyz`, `pdb`, `xsf`, `xdatcar`.
    """
    service, identifier = service_of(request), await own_task(request)
    name = request.query_params.get("format", "extxyz")
    if name not in FORMATS:
        raise InvalidRequest("`format` is not known.", f"It is one of {', '.join(FORMATS)}.")
    await service.tasks.view(identifier)
    path = service.tasks.folder(identifier) / TRAJECTORY
    size = await asyncio.to_thread(_size, path)
    if not size:
        raise NotFound(
            f"The task {identifier} has no trajectory.", "Relaxations and dynamics have one as soon as they have made a step."
        )
    headers = {"Content-Disposition": f'attachment; filename="{identifier}.{FORMATS[name].ending}"'}
    if name == "extxyz":
        return StreamingResponse(_bytes(path, size), media_type="text/plain", headers=headers)
    pieces = await asyncio.to_thread(converted, path, size, name)
    return StreamingResponse(pieces, media_type="text/plain", headers=headers)


@router.get("/tasks/{task_id}/artifacts", **of_task(task_schemas.Artifacts, "The files."))
async def artifacts(request: Request) -> Response:
    """The files that a task has left: pictures, trajectories, structures."""
    service, identifier = service_of(request), await own_task(request)
    await service.tasks.view(identifier)
    folder = service.tasks.folder(identifier)
    listed: list[dict[str, Any]] = await asyncio.to_thread(_listed, folder)
    return await answer({"task_id": identifier, "artifacts": listed}, call_of(request))


@router.get("/tasks/{task_id}/artifacts/{name:path}", **streamed("application/octet-stream", "The file.", artifact=True))
async def artifact(request: Request) -> Response:
    """One file of a task, by its name in the list."""
    service, identifier = service_of(request), await own_task(request)
    await service.tasks.view(identifier)
    folder, name = service.tasks.folder(identifier), str(request.path_params["name"])
    size, path = await asyncio.to_thread(_found, folder, name)
    if path is None:
        raise NotFound(f"The task {identifier} has no file of that name.", f"GET /api/v1/tasks/{identifier}/artifacts lists them.")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return StreamingResponse(_bytes(path, size), media_type=kind, headers={"X-Content-Type-Options": "nosniff"})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes(path: Path, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file that may be growing; starlette reads a plain iterator in threads."""
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            size -= len(chunk)
            yield chunk


def _listed(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and _shown(path, folder))
    return [{"name": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in files]


def _found(folder: Path, name: str) -> tuple[int, Path | None]:
    """Size and path of a file below ``folder``; nothing outside of it, whatever the name holds."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and _shown(path, folder.resolve()) and path.is_file()
        return (path.stat().st_size, path) if inside else (0, None)
    except (OSError, ValueError):  # too long, or with a null character
        return 0, None


def _shown(path: Path, folder: Path) -> bool:
    """Whether a file is for users: what a dot hides is not, nor what is just being written."""
    parts = path.relative_to(folder).parts
    return bool(parts) and not any(part.startswith(".") for part in parts) and path.suffix not in (".part", ".partial", ".state")
