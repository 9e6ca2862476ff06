"""One attempt at a task: what its calculation gets, and whether it may go on."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from forcegate.calculations.forces import Forces, Served
from forcegate.calculations.progress import Step
from forcegate.calculations.states import Checkpoint, State
from frontend.settings import Settings
from frontend.tasks.context import Ended
from frontend.tasks.queue import TRACEPARENT, folder
from frontend.tasks.residency import HeldForces, Holder
from frontend.tasks.tables import PARTS, STATES, TASKS, inserting, writing
from frontend.tasks.task import Status

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""Shortest time between two progress events of a task; the newest step is in the next one."""
GRACE_SECONDS = 3.0
"""Time that a calculation gets to hand out a last state when its worker stops."""


class Reason(StrEnum):
    """Why an attempt has to end."""

    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    LOST = "LOST"
    """The task has another worker by now, or none: nothing may be written for it."""
    STOPPED = "STOPPED"
    """The worker stops: the task goes back into the queue."""


class Attempt:
    """``Context`` upon the database. Whatever it writes is conditional on being the task's present attempt.

    Args:
        row: of the task, as this attempt claimed it.
    """

    def __init__(self, engine: sa.Engine, settings: Settings, row: sa.RowMapping) -> None:
        self.task, self.number, self.rank = str(row["id"]), int(row["attempt"]), int(row["rank"])
        self.dispatch, self.kind, self.models = int(row["dispatch"]), row["kind"], row["models"]
        self.parameters: dict[str, Any] = json.loads(row["parameters"])
        self.asked_by: str = self.parameters.pop(TRACEPARENT, "")
        """``traceparent`` of the request that queued the task; empty where it was not traced."""
        self.folder = folder(settings, self.task)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.claimed = time.monotonic()
        self.deadline = self.claimed + row["started"] + row["timeout_seconds"] - time.time()
        self.steps = 0 if row["progress"] is None else int(json.loads(row["progress"])["steps_seen"])
        self.reporting = threading.Lock()
        """Held by whoever writes what this attempt has to tell."""
        self.confirmed = self.claimed
        """When the database last said that the task is this attempt's (``time.monotonic()``)."""
        self.heard = self.claimed
        """When its calculation last told of a step or said something."""
        self.ended_at = 0.0
        self.before = 0
        """How many tasks in front of it were passed over, since their models would have to be loaded."""
        self.holder: Holder | None = None
        """Keeps models loaded for calls; None where the scheduler is off."""
        self._engine, self._settings = engine, settings
        self._unsure = min(settings.task_beat_seconds, settings.task_lease_seconds / 3)
        self._reason: Reason | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._latest: dict[str, Any] | None = None
        self._told = 0.0
        self._lines: list[str] = []
        self._saved: dict[str, float] = {}
        self._resumed: set[str] = set()

    @property
    def reason(self) -> Reason | None:
        """Why the attempt has to end, or None while it may go on."""
        if self._reason in (None, Reason.STOPPED) and time.monotonic() > self.deadline:
            self.end(Reason.TIMEOUT)
        return self._reason

    @property
    def mine(self) -> sa.ColumnElement[bool]:
        """The condition under which this attempt may write for its task."""
        return sa.and_(TASKS.c.attempt == self.number, TASKS.c.status == Status.RUNNING)

    def end(self, reason: Reason) -> None:
        """Ends the attempt at its next step. The first reason counts, except that one who has lost the task has lost it."""
        with self._lock:
            if self._reason is None or reason is Reason.LOST or (self._reason is Reason.STOPPED and reason is not Reason.STOPPED):
                self._reason, self.ended_at = reason, time.monotonic()
        self._ended.set()

    def check(self) -> None:
        """Raises ``Ended`` where the attempt may not go on.

        One that has not been confirmed for a while waits until it is: the process may have been halted for so long that another
        worker has the task, or the database is away.
        """
        while time.monotonic() - self.confirmed > self._unsure and self.reason is None:
            self._ended.wait(0.05)
        reason = self.reason
        if reason is not None and (reason is not Reason.STOPPED or time.monotonic() - self.ended_at > GRACE_SECONDS):
            raise Ended(reason)

    def sleep(self, seconds: float) -> None:
        """Waits, and raises ``Ended`` as soon as the attempt may not go on."""
        self._ended.wait(seconds)
        if self.reason is not None:
            raise Ended(self.reason)

    def progress(self, step: Step) -> None:
        """See ``Context``."""
        self.check()
        told = step.as_dict()
        with self._lock:
            self.steps += 1
            self.heard = time.monotonic()
            self._latest = {**told, "steps_seen": self.steps}

    def log(self, text: str) -> None:
        """See ``Context``."""
        with self._lock:
            self.heard = time.monotonic()
            self._lines.append(" ".join(text.split())[:2000])

    def news(self, everything: bool = False) -> tuple[dict[str, Any] | None, list[str]]:
        """The step and the lines that readers have not been told of; a step too soon after the last one only if ``everything``."""
        with self._lock:
            due = everything or time.monotonic() - self._told >= PROGRESS_SECONDS
            return self._latest if due else None, list(self._lines)

    def reported(self, step: dict[str, Any] | None, lines: list[str]) -> None:
        """Notes that readers have been told of these ``news``."""
        with self._lock:
            del self._lines[: len(lines)]
            if step is not None:
                self._told = time.monotonic()
                if self._latest is step:
                    self._latest = None

    def state(self, part: str) -> State | None:
        """See ``Context``."""
        query = sa.select(STATES.c.state).where(STATES.c.task == self.task, STATES.c.part == part)
        with self._engine.connect() as connection:
            data = connection.scalar(query)
        if data is None:
            return None
        whole, _, _ = part.partition("/")
        if whole not in self._resumed:
            self._resumed.add(whole)
            self.log(f"Going on with {whole} from its last state.")
        return State.from_bytes(data)

    def checkpoint(self, part: str) -> Checkpoint:
        """See ``Context``. When the worker stops, the state is kept at once and the calculation ends here."""
        with self._lock:
            self._saved.setdefault(part, time.monotonic())

        def checkpoint(make: Callable[[], State]) -> None:
            stopping = self.reason is Reason.STOPPED
            if not stopping and time.monotonic() - self._saved[part] < self._settings.task_state_seconds:
                return
            self.keep_state(part, make())
            self._saved[part] = time.monotonic()
            if stopping:
                raise Ended(Reason.STOPPED)

        return checkpoint

    def keep_state(self, part: str, state: State) -> None:
        """See ``Context``."""
        data = state.as_bytes()

        def write(connection: sa.Connection) -> None:
            insert = inserting(connection, STATES).values(task=self.task, part=part, state=data)
            connection.execute(insert.on_conflict_do_update(index_elements=["task", "part"], set_={"state": data}))

        self._write("state", write)

    def kept(self, part: str) -> dict[str, Any] | None:
        """See ``Context``."""
        query = sa.select(PARTS.c.result).where(PARTS.c.task == self.task, PARTS.c.part == part)
        with self._engine.connect() as connection:
            text = connection.scalar(query)
        return None if text is None else json.loads(text)

    def keep(self, part: str, result: dict[str, Any]) -> None:
        """See ``Context``."""
        text = json.dumps(result)

        def write(connection: sa.Connection) -> None:
            insert = inserting(connection, PARTS).values(task=self.task, part=part, result=text)
            connection.execute(insert.on_conflict_do_update(index_elements=["task", "part"], set_={"result": text}))
            own = sa.or_(STATES.c.part == part, STATES.c.part.startswith(f"{part}/", autoescape=True))
            connection.execute(STATES.delete().where(STATES.c.task == self.task, own))

        self._write("result of a part", write)
        # `error` of an energy against a reference is a number, or null.
        error = result.get("error")
        self.log(f"{part} has failed: {error['detail']}" if isinstance(error, dict) else f"{part} is finished.")

    def forces(self, model: str, head: str | None, dispersion: str) -> Forces:
        """See ``Context``."""
        address = self._settings.grpc_address
        if self.holder is not None:
            return HeldForces(self.holder, model, address, head=head, dispersion=dispersion)
        return Served(model, address, head=head, dispersion=dispersion)

    def _write(self, what: str, write: Callable[[sa.Connection], None]) -> None:
        """A transaction of this attempt. A database that is away costs what would have been kept, not the calculation.

        Raises:
            Ended: the task is no longer this attempt's.
        """
        try:
            with writing(self._engine) as connection:
                own = sa.select(TASKS.c.id).where(TASKS.c.id == self.task, self.mine).with_for_update()
                if connection.scalar(own) is None:
                    self.end(Reason.LOST)
                    raise Ended(Reason.LOST)
                write(connection)
        except sa.exc.OperationalError as error:
            log.warning("not kept", extra={"task": self.task, "what": what, "detail": str(error.orig)})
