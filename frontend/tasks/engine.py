"""DBOS, and the one place that knows it: a durable queue that workers take from by priority.

DBOS holds an entry for each time that a task was put into the queue, hands it to exactly one worker, and hands the entries of a
worker that was started again to it once more. What a task is, how far it came and who may write for it is in tables of our own;
both are in one database, so that a task and its entry appear in one transaction.

DBOS takes seconds and 25 MB to import, so that is done where it is first needed: a gateway that is never asked for a task, and one
that only looks at tasks, does without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from dbos import DBOSClient, DBOSConfig

APPLICATION = "forcegate"
QUEUE = "forcegate-tasks"
WORKFLOW = "carry-out"
VERSION = "1"
"""Workers of another version leave the entries alone; to be raised when ``WORKFLOW`` takes other arguments."""


class Entries:
    """Entries of the queue, from outside of a worker. Threads may share it.

    Args:
        engine: of the database that holds our own tables.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._opened: DBOSClient | None = None

    def open(self) -> None:
        """Imports DBOS, and creates or upgrades its tables; several processes may do so at once. Only the first call does anything.

        It has to come before the first transaction that writes an entry: on SQLite two cannot write at once.
        """
        with self._lock:
            if self._opened is not None:
                return
            from dbos import DBOS, DBOSClient

            _quiet()
            DBOS.migrate(_address(self._engine))
            self._opened = DBOSClient(
                system_database_engine=self._engine, application_name=APPLICATION, lazy=True, retry_connection_errors=False
            )

    @property
    def _client(self) -> DBOSClient:
        self.open()
        assert self._opened is not None
        return self._opened

    def declare(self, slots: int, poll_seconds: float) -> None:
        """Sets, for all workers, how many entries each takes at once and how often it looks for one."""
        self._client.register_queue(QUEUE, worker_concurrency=slots, polling_interval_sec=poll_seconds)

    def add(self, connection: sa.Connection, task: str, dispatch: int, rank: int) -> None:
        """Puts a task into the queue within the caller's transaction; the lowest ``rank`` comes first, then the oldest entry."""
        self._client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": _name(task, dispatch),
                "app_version": VERSION,
                "priority": rank,
            },
            task,
            dispatch,
        )

    def remove(self, entries: Sequence[tuple[str, int]]) -> None:
        """Removes entries, each of a task and its dispatch; one that is carried out is not stopped by it."""
        for start in range(0, len(entries), 500):
            self._client.delete_workflows([_name(*entry) for entry in entries[start : start + 500]])

    def withdraw(self, task: str, dispatch: int) -> None:
        """Removes one entry unless a worker has taken it, who finds out by himself that it is of no effect."""
        name = _name(task, dispatch)
        waiting = self._client.list_workflows(workflow_ids=[name], status="ENQUEUED", load_input=False, load_output=False)
        if waiting:
            self._client.delete_workflows([name])

    def taken_by(self, worker: str) -> list[tuple[str, int]]:
        """Entries that ``worker`` took and did not finish."""
        found = self._client.list_workflows(
            status="PENDING", executor_id=worker, queue_name=QUEUE, load_input=False, load_output=False
        )
        return [_parse(entry.workflow_id) for entry in found]

    def missing(self, entries: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of ``entries`` that are neither in the queue nor taken from it."""
        if not entries:
            return []
        names = [_name(*entry) for entry in entries]
        found = self._client.list_workflows(workflow_ids=names, status=["ENQUEUED", "PENDING"], load_input=False, load_output=False)
        there = {entry.workflow_id for entry in found}
        return [entry for entry in entries if _name(*entry) not in there]

    def close(self) -> None:
        """Lets go of what the client holds; the engine stays open."""
        if self._opened is not None:
            self._opened.destroy()


class Consumer:
    """Takes entries from the queue, up to ``slots`` at once, and hands each to ``carry_out(task, dispatch)`` in a thread.

    Args:
        engine: of the database that ``Entries.open`` prepared, in which the queue was declared.
        worker: name of this worker. No other process that lives may have it.
    """

    def __init__(self, engine: sa.Engine, worker: str, slots: int, carry_out: Callable[[str, int], None]) -> None:
        from dbos import DBOS

        _quiet()
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_engine": engine,
            "system_database_url": _address(engine),
            "executor_id": worker,
            "application_version": VERSION,
            "run_migrations": False,
            "max_executor_threads": slots + 8,
            # Entries are found by polling: there is nothing to listen for.
            "use_listen_notify": False,
            "log_level": "WARNING",
        }
        DBOS(config=config)

        # An entry that is handed out often belongs to a worker that is killed often; it is no fault of its task.
        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
        def workflow(task: str, dispatch: int) -> None:
            carry_out(task, dispatch)

    def start(self) -> None:
        """Begins to take entries; those that a former process of this name had taken come first."""
        from dbos import DBOS

        DBOS.launch()

    def stop(self, seconds: int) -> None:
        """Takes no more entries, and waits until those that were taken are done, ``seconds`` at most."""
        from dbos import DBOS

        DBOS.destroy(workflow_completion_timeout_sec=seconds)


def _name(task: str, dispatch: int) -> str:
    return f"{task}:{dispatch}"


def _parse(name: str) -> tuple[str, int]:
    task, _, dispatch = name.rpartition(":")
    return task, int(dispatch)


def _address(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


class _Plain(logging.Filter):
    """Says in one line what DBOS tells with a traceback: the entry is gone of a task that this worker has been carrying out.

    That happens where a worker was taken for dead, and is no failure: what it wrote has been fenced off by then.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written; it may be changed."""
        from dbos import error

        if "outcome was not recorded" in record.getMessage():
            return False  # the same event, told a moment before
        if record.exc_info and isinstance(record.exc_info[1], error.DBOSNonExistentWorkflowError):
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "a task was given to another worker meanwhile; what this one still made of it is dropped", ()
        return True


def _quiet() -> None:
    """The engine's log goes where all of this process goes, warnings and worse alone."""
    log: Any = logging.getLogger("dbos")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    if not any(isinstance(each, _Plain) for each in log.filters):
        log.addFilter(_Plain())
    log.setLevel(logging.WARNING)
