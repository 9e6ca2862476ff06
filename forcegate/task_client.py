"""What ``Client`` and ``AsyncClient`` have for tasks: calculations that the service queues and carries out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from forcegate import errors

if TYPE_CHECKING:
    from forcegate.client import AsyncClient, Client

FINAL = frozenset(("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks at a task; they grow from the first to the second."""


def query(values: Mapping[str, Any]) -> str:
    """``?a=b`` for what is given of ``values``."""
    from urllib.parse import urlencode

    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


class Events:
    """Puts the lines of an event stream together."""

    def __init__(self) -> None:
        self.last = 0
        """Number of the newest event; a stream that breaks goes on after it."""
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> dict[str, Any] | None:
        """The event that ``line`` completes: ``{"number", "event", **data}``."""
        name, colon, value = line.partition(":")
        if line and name and colon:
            self._fields[name] = value.removeprefix(" ")
        if line or "data" not in self._fields:
            return None
        fields, self._fields = self._fields, {}
        self.last = int(fields.get("id", self.last))
        return {"number": self.last, "event": fields.get("event", "message"), **json.loads(fields["data"])}


def waited(view: Mapping[str, Any], deadline: float) -> bool:
    """Whether a task is final.

    Raises:
        DeadlineExceeded: it is not, and ``deadline`` (``time.monotonic()``) is over.
    """
    if view["status"] in FINAL:
        return True
    if time.monotonic() > deadline:
        raise errors.DeadlineExceeded(f"The task {view['task_id']} is still {view['status']}.", "It goes on; wait again.")
    return False


def wait_sync(client: Client, task: str, timeout: float, on_progress: Callable[[dict[str, Any]], None] | None) -> Any:
    """The result of a task; see ``Client.wait``."""
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while True:
        view = client.task(task)
        if on_progress is not None:
            on_progress(view)
        if waited(view, deadline):
            return client.result(task)
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


async def wait_async(client: AsyncClient, task: str, timeout: float, on_progress: Callable[[dict[str, Any]], None] | None) -> Any:
    """The result of a task; see ``Client.wait``."""
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while True:
        view = await client.task(task)
        if on_progress is not None:
            on_progress(view)
        if waited(view, deadline):
            return await client.result(task)
        await asyncio.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


def events_sync(client: Client, task: str) -> Iterator[dict[str, Any]]:
    """Every event of a task until it is final."""
    events, path = Events(), f"{client.url}/api/v1/tasks/{task}/events"
    client.task(task)  # one that does not exist is its typed error
    with client.http.stream("GET", path, headers=client.headers, timeout=client.timeout) as stream:
        for line in stream.iter_lines():
            if (event := events.feed(line)) is not None:
                yield event


async def events_async(client: AsyncClient, task: str) -> AsyncIterator[dict[str, Any]]:
    """Every event of a task until it is final."""
    events, path = Events(), f"{client.url}/api/v1/tasks/{task}/events"
    await client.task(task)
    async with client.http.stream("GET", path, headers=client.headers, timeout=client.timeout) as stream:
        async for line in stream.aiter_lines():
            if (event := events.feed(line)) is not None:
                yield event
