"""What a worker writes: which tasks it has, what they tell, and whose tasks it takes over."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from frontend.settings import Settings
from frontend.tasks import order
from frontend.tasks.attempt import Attempt, Reason
from frontend.tasks.ledger import Ledger
from frontend.tasks.queue import FINAL, folder
from frontend.tasks.tables import OF_A_TASK, PARTS, PASSED, STATES, STRUCTURES, TASKS, WORKERS, inserting, now, writing
from frontend.tasks.task import Status

log = logging.getLogger(__name__)

LOOKED_AT = 100
"""Tasks at the front of the queue of which it is checked that the engine has them."""
REMOVED_AT_ONCE = 100


class Leases:
    """The transactions of the worker ``name``."""

    def __init__(self, ledger: Ledger, settings: Settings, name: str) -> None:
        self.ledger, self.name = ledger, name
        self._settings, self._engine, self._entries = settings, ledger.engine, ledger.entries

    def beat(self) -> None:
        """Shows the others that this worker lives."""
        with writing(self._engine) as connection:
            values = {"beat": now(connection), "slots": self._settings.task_concurrency}
            insert = inserting(connection, WORKERS).values(name=self.name, **values)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def leave(self) -> None:
        """Takes this worker from the list; it has given back its tasks."""
        with self._engine.begin() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.name == self.name))

    def turn(self, task: str, dispatch: int, resident: Callable[[Sequence[str]], bool] | None) -> Attempt | None:
        """Begins the attempt whose turn it is: at ``task``, whose entry the worker has taken, or at one behind it
        (``order.choose``). None where ``task`` was cancelled, or put into the queue once more, or is carried out already.

        Args:
            resident: whether a task of these models needs no load; None where nobody knows.
        """
        while resident is not None and (chosen := self._choose(task, dispatch, resident)):
            if (attempt := self._begin_before(chosen[:-1], chosen[-1])) is not None:
                return attempt
        return self.claim(task, dispatch)

    def claim(self, task: str, dispatch: int) -> Attempt | None:
        """Begins an attempt, unless the task was cancelled, or put into the queue once more, or is carried out already."""
        with writing(self._engine) as connection:
            row = self._start(connection, task, dispatch)
        return None if row is None else Attempt(self._engine, self._settings, row)

    def _start(self, connection: sa.Connection, task: str, dispatch: int) -> sa.RowMapping | None:
        return self.ledger.change(
            connection,
            task,
            sa.and_(TASKS.c.status == Status.QUEUED, TASKS.c.dispatch == dispatch),
            Status.RUNNING,
            attempt=TASKS.c.attempt + 1,
            worker=self.name,
            started=sa.func.coalesce(TASKS.c.started, self.ledger.clock()),
        )

    def _choose(self, task: str, dispatch: int, resident: Callable[[Sequence[str]], bool]) -> list[order.Candidate]:
        """The task that begins in place of ``task``, behind those that it passes over; nothing where ``task`` itself does."""
        column = TASKS.c
        mine = sa.select(column.id, column.models, column.rank, column.queued).where(
            column.id == task, column.status == Status.QUEUED, column.dispatch == dispatch
        )
        with self._engine.connect() as connection:
            first = connection.execute(mine).mappings().one_or_none()
            if first is None or resident(json.loads(first["models"])):
                return []
            waiting = order.waiting_from(connection, first)
            at = order.choose(waiting, resident, now(connection))
        return waiting[: at + 1] if at else []

    def _begin_before(self, passed: Sequence[order.Candidate], chosen: order.Candidate) -> Attempt | None:
        """Begins ``chosen`` with the entry of the first one of ``passed``, which gets a new one and keeps its place.

        None where somebody else has begun it in the meantime.
        """
        first = passed[0]
        pair = sa.select(TASKS.c.id).where(TASKS.c.id.in_((first.id, chosen.id))).order_by(TASKS.c.id).with_for_update()
        with writing(self._engine) as connection:
            connection.execute(pair)  # in one order, so that two workers never wait for each other
            row = self._start(connection, chosen.id, chosen.dispatch)
            if row is None:
                return None
            again = (
                TASKS.update()
                .where(TASKS.c.id == first.id, TASKS.c.status == Status.QUEUED, TASKS.c.dispatch == first.dispatch)
                .values(dispatch=TASKS.c.dispatch + 1)
                .returning(TASKS.c.dispatch, TASKS.c.rank)
            )
            if (entry := connection.execute(again).one_or_none()) is not None:
                # Before those of its second: of equals the engine takes the oldest entry, and this one is the newest.
                self._entries.add(connection, first.id, entry.dispatch, entry.rank - 1)
            moment = now(connection)
            fresh = [{"task": each.id, "since": moment} for each in passed if each.passed is None]
            if fresh:
                connection.execute(inserting(connection, PASSED).values(fresh).on_conflict_do_nothing())
        with suppress(sa.exc.SQLAlchemyError):  # it is of no effect any more, and the attempt has begun
            self._entries.withdraw(chosen.id, chosen.dispatch)
        attempt = Attempt(self._engine, self._settings, row)
        attempt.before = len(passed)
        return attempt

    def confirm(self, attempts: Sequence[Attempt]) -> None:
        """Looks which of ``attempts`` still have their tasks, and ends those that have not or whose task was cancelled."""
        if not attempts:
            return
        asked = time.monotonic()
        query = sa.select(TASKS.c.id, TASKS.c.attempt, TASKS.c.cancelled).where(
            TASKS.c.worker == self.name, TASKS.c.status == Status.RUNNING
        )
        with self._engine.connect() as connection:
            found = {row.id: row for row in connection.execute(query)}
        for attempt in attempts:
            row = found.get(attempt.task)
            if row is None or row.attempt != attempt.number:
                attempt.end(Reason.LOST)
            elif row.cancelled:
                attempt.end(Reason.CANCELLED)
            attempt.confirmed = asked

    def report(self, attempts: Sequence[Attempt]) -> None:
        """Tells the readers of all ``attempts`` what is new, in one transaction."""
        held = [attempt for attempt in sorted(attempts, key=lambda one: one.task) if attempt.reporting.acquire(blocking=False)]
        try:
            told = [(attempt, *attempt.news()) for attempt in held]
            told = [news for news in told if news[1] is not None or news[2]]
            if not told:
                return
            with writing(self._engine) as connection:
                for attempt, step, lines in told:
                    if not self._tell(connection, attempt, step, lines):
                        attempt.end(Reason.LOST)
            for attempt, step, lines in told:
                attempt.reported(step, lines)
        finally:
            for attempt in held:
                attempt.reporting.release()

    def finish(self, attempt: Attempt, status: Status, result: Any = None, error: dict[str, Any] | None = None) -> bool:
        """Writes the end of a task; nothing where the attempt is not its present one any more."""
        moment = self.ledger.clock()
        text = None if result is None else json.dumps(result)
        with attempt.reporting, writing(self._engine) as connection:
            if not self._tell(connection, attempt, *attempt.news(everything=True)):
                return False
            row = self.ledger.change(
                connection,
                attempt.task,
                attempt.mine,
                status,
                finished=moment,
                result=text,
                error=None if error is None else json.dumps(error),
            )
            if row is None:
                return False
            if status is Status.COMPLETED:  # another try would go on from these
                for table in (STATES, PARTS):
                    connection.execute(table.delete().where(table.c.task == attempt.task))
                order.learn(connection, attempt.kind, attempt.models, time.monotonic() - attempt.claimed)
        return True

    def give_back(self, attempt: Attempt) -> None:
        """Puts the task of an attempt that was stopped into the queue again, at its old place."""
        with attempt.reporting, writing(self._engine) as connection:
            self._tell(connection, attempt, *attempt.news(everything=True))
            row = self.ledger.row(connection, attempt.task)
            self.ledger.enqueue(connection, row, attempt.mine, attempt.rank)

    def return_entry(self, task: str, dispatch: int) -> None:
        """Puts a task into the queue again whose entry was taken and not begun."""
        with writing(self._engine) as connection:
            row = self.ledger.row(connection, task)
            waiting = sa.and_(TASKS.c.status == Status.QUEUED, TASKS.c.dispatch == dispatch)
            self.ledger.enqueue(connection, row, waiting, row["rank"])

    def take_over(self, worker: str) -> int:
        """Puts everything that ``worker`` had into the queue again, at its old place. Returns how many tasks that were."""
        entries = self._entries.taken_by(worker)
        old: list[tuple[str, int]] = []
        with writing(self._engine) as connection:
            running = sa.select(TASKS).where(TASKS.c.worker == worker, TASKS.c.status == Status.RUNNING).order_by(TASKS.c.id)
            for row in connection.execute(running).mappings().all():
                present = sa.and_(TASKS.c.attempt == row["attempt"], TASKS.c.status == Status.RUNNING)
                if row["cancelled"]:
                    self.ledger.change(connection, row["id"], present, Status.CANCELLED, finished=self.ledger.clock())
                elif self.ledger.enqueue(connection, row, present, row["rank"]):
                    old.append((row["id"], row["dispatch"]))
            for task, dispatch in sorted(entries):
                waiting = sa.and_(TASKS.c.status == Status.QUEUED, TASKS.c.dispatch == dispatch)
                found = connection.execute(sa.select(TASKS).where(TASKS.c.id == task, waiting)).mappings().one_or_none()
                if found is not None and self.ledger.enqueue(connection, found, waiting, found["rank"]):
                    old.append((task, dispatch))
        self._entries.remove(sorted({*old, *entries}))
        return len(old)

    def sweep(self) -> None:
        """Takes over the tasks of workers that are dead, and puts back what the engine has lost sight of."""
        with self._engine.connect() as connection:
            limit = now(connection) - self._settings.task_lease_seconds
            dead = list(connection.scalars(sa.select(WORKERS.c.name).where(WORKERS.c.beat < limit)))
            living = sa.select(WORKERS.c.name)
            gone = sa.select(TASKS.c.worker).where(TASKS.c.status == Status.RUNNING, TASKS.c.worker.not_in(living)).distinct()
            dead += connection.scalars(gone)
        for worker in dead:
            if worker == self.name:
                continue
            count = self.take_over(worker)
            with self._engine.begin() as connection:
                connection.execute(WORKERS.delete().where(WORKERS.c.name == worker, WORKERS.c.beat < limit))
            log.warning("a worker was lost", extra={"worker": worker, "tasks": count})
        self._put_back()

    def remove_old(self) -> int:
        """Removes tasks that have been final for longer than they are kept, with their files. Returns how many.

        Uploaded structures whose time is over go too.
        """
        kept_since = self.ledger.clock() - self._settings.structure_retention_days * 86_400
        with self._engine.begin() as connection:
            connection.execute(STRUCTURES.delete().where(STRUCTURES.c.uploaded < kept_since))
        limit = self.ledger.clock() - self._settings.task_retention_days * 86_400
        old = sa.select(TASKS.c.id, TASKS.c.dispatch).where(TASKS.c.status.in_(FINAL), TASKS.c.finished < limit)
        with self._engine.connect() as connection:
            found = connection.execute(old.limit(REMOVED_AT_ONCE)).all()
        for task, dispatch in found:
            shutil.rmtree(folder(self._settings, task), ignore_errors=True)
            with self._engine.begin() as connection:
                gone = TASKS.delete().where(TASKS.c.id == task, TASKS.c.status.in_(FINAL), TASKS.c.finished < limit)
                if connection.execute(gone).rowcount:
                    for table in OF_A_TASK:
                        connection.execute(table.delete().where(table.c.task == task))
            self._entries.remove([(task, number) for number in range(1, dispatch + 1)])
        return len(found)

    def _put_back(self) -> None:
        """A task that has waited long at the front, and whose entry was taken or is gone, gets a new one."""
        long_ago = self.ledger.clock() - 2 * self._settings.task_lease_seconds
        waiting = sa.select(TASKS.c.id, TASKS.c.dispatch).where(TASKS.c.status == Status.QUEUED, TASKS.c.queued < long_ago)
        with self._engine.connect() as connection:
            front = [(row.id, row.dispatch) for row in connection.execute(waiting.order_by(TASKS.c.rank).limit(LOOKED_AT))]
        for task, dispatch in self._entries.missing(front):
            log.warning("an entry was lost", extra={"task": task, "dispatch": dispatch})
            self.return_entry(task, dispatch)

    def _tell(self, connection: sa.Connection, attempt: Attempt, step: dict[str, Any] | None, lines: Sequence[str]) -> bool:
        """Writes a step and lines of the log. Returns False where the attempt is not the task's present one."""
        count = len(lines) + (step is not None)
        values: dict[str, Any] = {"events": TASKS.c.events + count}
        if step is not None:
            values["progress"] = json.dumps(step)
        mine = TASKS.update().where(TASKS.c.id == attempt.task, attempt.mine).values(**values).returning(TASKS.c.events)
        last = connection.scalar(mine)
        if last is None:
            return False
        events: list[tuple[str, dict[str, Any]]] = [("log", {"text": line}) for line in lines]
        if step is not None:
            events.append(("progress", step))
        for number, (name, data) in enumerate(events, start=last - count + 1):
            self.ledger.write_event(connection, attempt.task, number, name, data)
        return True
