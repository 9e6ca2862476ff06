"""The queue of tasks as the gateway uses it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from forcegate.errors import Conflict, InvalidRequest, Overloaded, ServerUnavailable, SetupError
from frontend.settings import Settings
from frontend.tasks import callbacks, order, tables
from frontend.tasks.engine import Entries
from frontend.tasks.ledger import Clock, Ledger
from frontend.tasks.tables import EVENTS, PASSED, TASKS, writing
from frontend.tasks.task import Event, Options, Status, View

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

FINAL = tuple(status for status in Status if status.final)
TRACEPARENT = "traceparent"
"""Beside the parameters of a task whose request was traced; no calculation has one of this name."""
CONNECTIONS = 8
"""Database calls of one gateway at once."""
SOON_SECONDS, LATE_SECONDS = 0.05, 0.5
"""Readers who wait look again after pauses that grow from the first to the second."""
RETRY_AFTER_SECONDS = 30


def open_database(settings: Settings, connections: int, durable: bool = True) -> sa.Engine:
    """The database of the tasks, its tables created where there are none. ``durable`` is that of ``tables.connect``.

    Raises:
        SetupError: it cannot be reached, or belongs to a newer version.
    """
    address = tables.url(settings)
    if address.startswith("sqlite"):
        settings.state.mkdir(parents=True, exist_ok=True)
    engine = tables.connect(address, connections, durable)
    try:
        with opening():
            tables.prepare(engine)
    except SetupError:
        engine.dispose()
        raise
    return engine


@contextmanager
def opening() -> Iterator[None]:
    """Says in a sentence why the database cannot be opened.

    Raises:
        SetupError: it cannot.
    """
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", error)).split())
        raise SetupError(f"The database of tasks cannot be opened: {cause}", "See FORCEGATE_DATABASE_URL.") from None


class DurableTasks:
    """``Tasks`` upon the database. Calls may come from one event loop; the database is called in threads.

    It is opened by the first call, or by ``open``: a gateway whose database is away serves everything else, and its tasks as soon
    as the database is there. Every call raises ``ServerUnavailable`` until then.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._opening = asyncio.Lock()
        self._opened: Ledger | None = None
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="tasks")

    async def open(self) -> None:
        """Opens the database, unless that has been done.

        Raises:
            ServerUnavailable: it cannot be opened now.
        """
        async with self._opening:
            if self._opened is None:
                self._opened = await self._in_thread(self._open)

    async def close(self) -> None:
        """Closes the database; running calls end first."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._opened is not None:
            self._ledger.entries.close()
            self._engine.dispose()

    async def submit(self, kind: str, parameters: dict[str, Any], models: Sequence[str], options: Options, user: str) -> View:
        """See ``Tasks``.

        Raises:
            InvalidRequest: the callback's address cannot be called.
        """
        if options.callback is not None:
            callbacks.check(options.callback.url, self._settings.callback_private)
        return await self._call(lambda: self._submit(kind, parameters, models, options, user))

    async def view(self, task: str, result: bool = False) -> View:
        """See ``Tasks``."""

        def read() -> View:
            with self._engine.connect() as connection:
                return self._ledger.view(connection, self._ledger.row(connection, task), result)

        return await self._call(read)

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
        """See ``Tasks``."""
        wanted = [
            column == value
            for column, value in ((TASKS.c.status, status), (TASKS.c.kind, kind), (TASKS.c.user, user))
            if value is not None
        ]
        if model is not None:
            wanted.append(TASKS.c.models.contains(json.dumps(model), autoescape=True))

        def read() -> tuple[int, list[View]]:
            with self._engine.connect() as connection:
                total = connection.scalar(sa.select(sa.func.count()).select_from(TASKS).where(*wanted)) or 0
                newest = sa.select(TASKS).where(*wanted).order_by(TASKS.c.created.desc(), TASKS.c.id.desc())
                rows = connection.execute(newest.limit(limit).offset(offset)).mappings().all()
                return total, [self._ledger.view(connection, row) for row in rows]

        return await self._call(read)

    async def cancel(self, task: str) -> View:
        """See ``Tasks``."""

        def write() -> View:
            self._prepare()
            with writing(self._engine) as connection:
                row = self._ledger.row(connection, task, lock=True)
                waiting = TASKS.c.status.in_((Status.PENDING, Status.QUEUED))
                ended = self._ledger.change(
                    connection, task, waiting, Status.CANCELLED, cancelled=True, finished=self._ledger.clock()
                )
                if ended is None:
                    connection.execute(
                        TASKS.update().where(TASKS.c.id == task, TASKS.c.status == Status.RUNNING).values(cancelled=True)
                    )
                view = self._ledger.view(connection, ended or row)
            if ended is not None:
                self._ledger.entries.remove([(task, row["dispatch"])])
            return view

        return await self._call(write)

    async def retry(self, task: str) -> View:
        """See ``Tasks``."""

        def write() -> View:
            self._prepare()
            with writing(self._engine) as connection:
                row = self._ledger.row(connection, task, lock=True)
                if (status := Status(row["status"])) is Status.COMPLETED or not status.final:
                    raise Conflict(f"Task {task} is {status}, so it cannot be retried.", "Wait for its end, or submit it anew.")
                self._check_limit(connection, row["user"])
                view = self._ledger.view(connection, row)
                fresh = {"started": None, "finished": None, "error": None, "result": None, "cancelled": False}
                connection.execute(TASKS.update().where(TASKS.c.id == task).values(**fresh))
                connection.execute(PASSED.delete().where(PASSED.c.task == task))
                rank = order.rank(view.priority, self._ledger.clock())
                self._ledger.enqueue(connection, row, TASKS.c.status == status, rank)
                return self._ledger.view(connection, self._ledger.row(connection, task))

        return await self._call(write)

    async def wait(self, task: str, seconds: float) -> View:
        """See ``Tasks``."""
        deadline, pause = time.monotonic() + seconds, SOON_SECONDS
        while True:
            view = await self.view(task, result=True)
            left = deadline - time.monotonic()
            if view.status.final or left <= 0:
                return view
            await asyncio.sleep(min(pause, left))
            pause = min(1.5 * pause, LATE_SECONDS)

    async def events(self, task: str, after: int = 0) -> AsyncIterator[Event]:
        """See ``Tasks``."""
        pause = SOON_SECONDS
        while True:
            found, over = await self._call(lambda since=after: self._events(task, since))  # type: ignore[misc]
            for event in found:
                yield event
                after = event.number
            if over:
                return
            pause = SOON_SECONDS if found else min(1.5 * pause, LATE_SECONDS)
            await asyncio.sleep(pause)

    async def logs(self, task: str) -> list[str]:
        """See ``Tasks``."""

        def read() -> list[str]:
            lines = sa.select(EVENTS.c.data).where(EVENTS.c.task == task, EVENTS.c.name == "log").order_by(EVENTS.c.number)
            with self._engine.connect() as connection:
                self._ledger.row(connection, task)
                return [json.loads(data)["text"] for data in connection.scalars(lines)]

        return await self._call(read)

    def folder(self, task: str) -> Path:
        """See ``Tasks``."""
        return folder(self._settings, task)

    async def figures(self) -> order.Figures:
        """The queue in numbers, for the metrics."""

        def read() -> order.Figures:
            with self._engine.connect() as connection:
                return order.figures(connection, self._ledger.lease_seconds)

        return await self._call(read)

    @property
    def _ledger(self) -> Ledger:
        assert self._opened is not None
        return self._opened

    @property
    def _engine(self) -> sa.Engine:
        return self._ledger.engine

    def _open(self) -> Ledger:
        engine = open_database(self._settings, CONNECTIONS)
        return Ledger(engine, Entries(engine), self._settings.task_lease_seconds, self._clock)

    def _prepare(self) -> None:
        """Makes the queue's engine ready, which the first call that writes has to wait for."""
        with opening():
            self._ledger.entries.open()

    def _submit(self, kind: str, parameters: dict[str, Any], models: Sequence[str], options: Options, user: str) -> View:
        self._prepare()
        with writing(self._engine) as connection:
            row = self._accept(connection, kind, parameters, models, options, user)
        # Where it stands is looked up outside of the transaction, for which others may wait.
        with self._engine.connect() as connection:
            return self._ledger.view(connection, row)

    def _accept(
        self,
        connection: sa.Connection,
        kind: str,
        parameters: dict[str, Any],
        models: Sequence[str],
        options: Options,
        user: str,
    ) -> sa.RowMapping:
        content = _content(kind, parameters, models, options)
        callback, moment = options.callback, self._ledger.clock()
        if connection.dialect.name == "postgresql":  # one submission of a user after the other; on SQLite all are
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(user))))
        if options.idempotency_key is not None and (known := self._known(connection, user, options.idempotency_key)):
            if known["content"] != content:
                raise Conflict(
                    f"The idempotency key {options.idempotency_key[:80]!r} belongs to task {known['id']}, "
                    "which was asked for with other content.",
                    "Choose another key, or send the same content.",
                )
            return known
        self._check_limit(connection, user)
        row = {
            "id": uuid.uuid4().hex,
            "kind": kind,
            "models": json.dumps(list(models)),
            "parameters": json.dumps(parameters | ({TRACEPARENT: options.asked_by} if options.asked_by else {})),
            "user": user,
            "priority": str(options.priority),
            "timeout_seconds": options.timeout_seconds,
            "idempotency_key": options.idempotency_key,
            "content": content,
            "callback_url": callback and callback.url,
            "callback_events": callback and json.dumps(list(callback.events)),
            "callback_secret": callback and callback.secret,
            "rank": order.rank(options.priority, moment),
            "created": moment,
            "queued": moment,
        }
        return self._ledger.accept(connection, row)

    def _known(self, connection: sa.Connection, user: str, key: str) -> sa.RowMapping | None:
        query = sa.select(TASKS).where(TASKS.c.user == user, TASKS.c.idempotency_key == key)
        return connection.execute(query).mappings().one_or_none()

    def _check_limit(self, connection: sa.Connection, user: str) -> None:
        query = sa.select(sa.func.count()).where(TASKS.c.user == user, TASKS.c.status.not_in(FINAL))
        limit = self._settings.max_tasks_per_user
        if (connection.scalar(query) or 0) >= limit:
            error = Overloaded(f"You have {limit} unfinished tasks, which is as many as one user may have.")
            error.retry_after = RETRY_AFTER_SECONDS
            raise error

    def _events(self, task: str, after: int) -> tuple[list[Event], bool]:
        """The events after a number, and whether no more will come."""
        query = sa.select(EVENTS).where(EVENTS.c.task == task, EVENTS.c.number > after).order_by(EVENTS.c.number)
        with self._engine.connect() as connection:
            # The status before the events: what is final has written its last one.
            over = Status(self._ledger.row(connection, task)["status"]).final
            rows = connection.execute(query).mappings().all()
        return [Event(row["number"], row["name"], row["time"], json.loads(row["data"])) for row in rows], over

    async def _call(self, function: Callable[[], _Answer]) -> _Answer:
        if self._opened is None:
            await self.open()
        return await self._in_thread(function)

    async def _in_thread(self, function: Callable[[], _Answer]) -> _Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except SetupError as error:
            raise ServerUnavailable(f"Tasks are not available: {error.detail}") from None
        except (sa.exc.DataError, UnicodeEncodeError):
            raise InvalidRequest("A text of the request cannot be kept.", "Leave out control characters.") from None
        except (sa.exc.OperationalError, sa.exc.TimeoutError):
            log.exception("the database of tasks failed")
            raise ServerUnavailable("The database of tasks does not answer.") from None


def folder(settings: Settings, task: str) -> Path:
    """The artifacts of a task."""
    return settings.state / "artifacts" / task


def _content(kind: str, parameters: dict[str, Any], models: Sequence[str], options: Options) -> str:
    """The sha256 of everything that was asked for, the key excepted."""
    callback = options.callback and [options.callback.url, list(options.callback.events), options.callback.secret]
    asked = [kind, parameters, list(models), options.priority, options.timeout_seconds, callback]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
