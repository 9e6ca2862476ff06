"""What a task is to those who ask for one: its options, its state, its events. No engine is imported here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class Priority(StrEnum):
    """Who goes first. Inside a class the order is that of arrival, and waiting raises a task above newer ones of higher classes."""

    CRITICAL = "CRITICAL"
    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"


class Status(StrEnum):
    """The state of a task. PENDING is accepted and not in the queue yet; the last four are final."""

    PENDING = "PENDING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the task."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMEOUT)


@dataclass(frozen=True)
class Callback:
    """Where to tell of a task. ``events`` are names of ``Status``; ``secret`` signs what is sent (HMAC-SHA256), never shown."""

    url: str
    events: tuple[str, ...] = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Options:
    """How a task is to be carried out. ``timeout_seconds`` counts from its start, 60 to 86,400.

    Attributes:
        asked_by: ``traceparent`` of the request, where it is traced: the task's own trace gets a link to it.
    """

    priority: Priority = Priority.NORMAL
    timeout_seconds: int = 86_400
    callback: Callback | None = None
    idempotency_key: str | None = None
    asked_by: str = ""


@dataclass(frozen=True)
class View:
    """A task as it is now. Times are seconds since the epoch, UTC.

    Attributes:
        kind: name of the calculation, as in its path: ``optimization``, ``bulk-modulus``.
        position: place in the queue, 1 is next; None when it is not waiting.
        estimated_wait_seconds: until it starts; None when it is not waiting.
        attempt: 1, and one more for each start after the first: a retry, or a worker that was lost.
        progress: the newest step (``Step.as_dict``), with the number of steps that were seen.
        error: ``{"detail", "code", "retryable", "hint"}`` of a task that failed.
        result: the answer of a task that is completed, where it was asked for.
    """

    id: str
    kind: str
    models: tuple[str, ...]
    status: Status
    priority: Priority
    user: str
    created: float
    started: float | None = None
    finished: float | None = None
    position: int | None = None
    estimated_wait_seconds: float | None = None
    attempt: int = 0
    worker: str | None = None
    progress: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Event:
    """One thing that happened to a task. ``number`` counts from 1 within the task, so that a reader can go on where it stopped.

    Attributes:
        name: ``status`` (data: status), ``progress`` (data: ``Step.as_dict``) or ``log`` (data: text).
        time: seconds since the epoch, UTC.
    """

    number: int
    name: str
    time: float
    data: dict[str, Any]


class Tasks(Protocol):
    """The queue as the gateway sees it. A task that does not exist raises ``NotFound``."""

    async def submit(self, kind: str, parameters: dict[str, Any], models: Sequence[str], options: Options, user: str) -> View:
        """Accepts a task; ``parameters`` are JSON. The same user, idempotency key and content give the task of the first time.

        Raises:
            Overloaded: the user has as many unfinished tasks as one may have.
            Conflict: the idempotency key was used for other content.
        """

    async def view(self, task: str, result: bool = False) -> View:
        """One task."""

    async def find(
        self,
        *,
        status: Status | None = None,
        kind: str | None = None,
        model: str | None = None,
        user: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[int, list[View]]:
        """How many there are, and one page of them, the newest first."""

    async def cancel(self, task: str) -> View:
        """Asks for an end: at once where it waits, within one step where it runs. One that is final stays as it is."""

    async def retry(self, task: str) -> View:
        """Queues a task that failed, was cancelled or timed out once more; it goes on from its last state.

        Raises:
            Conflict: it is not final, or it is completed.
        """

    async def wait(self, task: str, seconds: float) -> View:
        """The task, with its result, as soon as it is final, or as it is after ``seconds``."""

    def events(self, task: str, after: int = 0) -> AsyncIterator[Event]:
        """All events after number ``after``, and then those to come, until the task is final."""

    async def logs(self, task: str) -> list[str]:
        """Its log lines, the oldest first."""

    def folder(self, task: str) -> Path:
        """Its artifacts: trajectories, pictures, tables."""
