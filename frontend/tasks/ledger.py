"""What is written of a task when its state changes, by the gateway and by workers alike."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from forcegate.errors import NotFound
from frontend.tasks import order
from frontend.tasks.engine import Entries
from frontend.tasks.tables import CALLBACKS, EVENTS, TASKS
from frontend.tasks.task import Priority, Status, View

Clock = Callable[[], float]


class Ledger:
    """Changes of tasks, each within a transaction of the caller.

    Args:
        entries: the queue.
        lease_seconds: after which a worker that is not seen counts as dead.
        clock: seconds since the epoch.
    """

    def __init__(self, engine: sa.Engine, entries: Entries, lease_seconds: float, clock: Clock = time.time) -> None:
        self.engine, self.entries, self.lease_seconds, self.clock = engine, entries, lease_seconds, clock

    def accept(self, connection: sa.Connection, values: dict[str, Any]) -> sa.RowMapping:
        """Writes a new task and puts it into the queue."""
        begin = {"status": Status.QUEUED, "dispatch": 1, "attempt": 0, "cancelled": False, "events": 1}
        row = connection.execute(TASKS.insert().values(**values, **begin).returning(TASKS)).mappings().one()
        self._tell(connection, row)
        self.entries.add(connection, row["id"], row["dispatch"], row["rank"])
        return row

    def change(
        self, connection: sa.Connection, task: str, where: sa.ColumnElement[bool], status: Status, **values: Any
    ) -> sa.RowMapping | None:
        """Gives ``task`` a new status if ``where`` holds: its row is returned, its readers are told, its callback is due.

        ``where`` and the change are one statement, so of several processes that try the same, one succeeds.
        """
        statement = (
            TASKS.update()
            .where(TASKS.c.id == task, where)
            .values(status=status, events=TASKS.c.events + 1, **values)
            .returning(TASKS)
        )
        row = connection.execute(statement).mappings().one_or_none()
        if row is None:
            return None
        self._tell(connection, row)
        return row

    def write_event(self, connection: sa.Connection, task: str, number: int, name: str, data: dict[str, Any]) -> None:
        """Writes an event whose number the caller has taken from the task's row."""
        connection.execute(EVENTS.insert().values(task=task, number=number, name=name, time=self.clock(), data=json.dumps(data)))

    def _tell(self, connection: sa.Connection, row: sa.RowMapping) -> None:
        """Tells of the status that a task has now: an event for its readers, and a callback where one was asked for."""
        status = str(row["status"])
        self.write_event(connection, row["id"], row["events"], "status", {"status": status, "attempt": row["attempt"]})
        if row["callback_url"] and status in json.loads(row["callback_events"]):
            moment = self.clock()
            connection.execute(
                CALLBACKS.insert().values(
                    id=uuid.uuid4().hex, task=row["id"], event=status, time=moment, due=moment, tries=0, outcome=""
                )
            )

    def enqueue(self, connection: sa.Connection, row: sa.RowMapping, where: sa.ColumnElement[bool], rank: int) -> bool:
        """Puts a task into the queue once more if ``where`` holds; the entry that it had is of no effect from then on."""
        changed = self.change(
            connection,
            row["id"],
            where,
            Status.QUEUED,
            rank=rank,
            queued=self.clock(),
            dispatch=TASKS.c.dispatch + 1,
            worker=None,
        )
        if changed is None:
            return False
        self.entries.add(connection, changed["id"], changed["dispatch"], rank)
        return True

    def row(self, connection: sa.Connection, task: str, lock: bool = False) -> sa.RowMapping:
        """The row of a task.

        Raises:
            NotFound: there is none.
        """
        query = sa.select(TASKS).where(TASKS.c.id == task)
        found = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
        if found is None:
            raise NotFound(
                f"There is no task {task[:80]!r}.", "GET /api/v1/tasks lists them; finished ones are removed after a time."
            )
        return found

    def view(self, connection: sa.Connection, row: sa.RowMapping, result: bool = False) -> View:
        """A task as its readers see it."""
        status = Status(row["status"])
        position, wait = order.place(connection, row, self.lease_seconds) if status is Status.QUEUED else (None, None)
        return View(
            id=row["id"],
            kind=row["kind"],
            models=tuple(json.loads(row["models"])),
            status=status,
            priority=Priority(row["priority"]),
            user=row["user"],
            created=row["created"],
            started=row["started"],
            finished=row["finished"],
            position=position,
            estimated_wait_seconds=wait,
            attempt=row["attempt"],
            worker=row["worker"],
            progress=_parsed(row["progress"]),
            error=_parsed(row["error"]),
            result=_parsed(row["result"]) if result else None,
        )


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)
