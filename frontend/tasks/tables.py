"""The tables of the tasks, and the database that holds them: SQLite in the state folder, or Postgres."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

# DBOS imports this in a thread, some seconds after the start: a statement that another thread made meanwhile would meet half of it.
import sqlalchemy.orm
from sqlalchemy.dialects import postgresql, sqlite

from forcegate.errors import SetupError
from frontend.settings import Settings

VERSION = 1
"""Of these tables. A database of a newer version is not touched."""

_METADATA = sa.MetaData()
# Seconds since the epoch: REAL would hold a time to a minute only, where a database has it in four bytes.
_TIME = sa.Double

SCHEMA = sa.Table("forcegate_schema", _METADATA, sa.Column("version", sa.Integer, primary_key=True))

TASKS = sa.Table(
    "forcegate_tasks",
    _METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("models", sa.Text, nullable=False),  # JSON
    sa.Column("parameters", sa.Text, nullable=False),  # JSON
    sa.Column("user", sa.String(256), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("timeout_seconds", sa.Integer, nullable=False),
    sa.Column("idempotency_key", sa.String(256)),
    sa.Column("content", sa.String(64), nullable=False),  # sha256 of what was asked for
    sa.Column("callback_url", sa.Text),
    sa.Column("callback_events", sa.Text),  # JSON
    sa.Column("callback_secret", sa.Text),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),  # virtual start time; see frontend/tasks/order.py
    sa.Column("created", _TIME, nullable=False),
    sa.Column("queued", _TIME, nullable=False),
    sa.Column("started", _TIME),
    sa.Column("finished", _TIME),
    sa.Column("dispatch", sa.Integer, nullable=False),  # how often it was put into the queue
    sa.Column("attempt", sa.Integer, nullable=False),  # how often it was started: the fencing token of its worker
    sa.Column("worker", sa.String(128)),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    sa.Column("progress", sa.Text),  # JSON
    sa.Column("events", sa.Integer, nullable=False),  # number of the last one
    sa.Column("error", sa.Text),  # JSON
    sa.Column("result", sa.Text),  # JSON
    sa.Index("forcegate_tasks_key", "user", "idempotency_key", unique=True),
    sa.Index("forcegate_tasks_order", "status", "rank", "queued", "id"),
    sa.Index("forcegate_tasks_user", "user", "status"),
    sa.Index("forcegate_tasks_created", "created"),
    sa.Index("forcegate_tasks_worker", "worker", "status"),
)

EVENTS = sa.Table(
    "forcegate_task_events",
    _METADATA,
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(16), nullable=False),
    sa.Column("time", _TIME, nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # JSON
)

STATES = sa.Table(
    "forcegate_task_states",
    _METADATA,
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("part", sa.String(256), primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

PARTS = sa.Table(
    "forcegate_task_parts",
    _METADATA,
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("part", sa.String(256), primary_key=True),
    sa.Column("result", sa.Text, nullable=False),  # JSON
)

PASSED = sa.Table(
    "forcegate_task_passed",
    _METADATA,
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("since", _TIME, nullable=False),  # when another one first began before it; by the clock of the database
)

WORKERS = sa.Table(
    "forcegate_workers",
    _METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("beat", _TIME, nullable=False),  # by the clock of the database
    sa.Column("slots", sa.Integer, nullable=False),
)

CALLBACKS = sa.Table(
    "forcegate_task_callbacks",
    _METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("task", sa.String(64), nullable=False, index=True),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("time", _TIME, nullable=False),
    sa.Column("due", _TIME, index=True),  # of the next try; NULL when nothing is left to do
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
)

DURATIONS = sa.Table(
    "forcegate_task_durations",
    _METADATA,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("models", sa.Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("seconds", _TIME, nullable=False),  # running mean of completed tasks
)

STRUCTURES = sa.Table(
    "forcegate_structures",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("user", sa.String(256), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("formula", sa.Text, nullable=False),
    sa.Column("atoms", sa.Integer, nullable=False),
    sa.Column("uploaded", _TIME, nullable=False, index=True),
    sa.Column("content", sa.LargeBinary, nullable=False),  # see frontend/structures/upload.py
    sa.Column("preview", sa.Text, nullable=False),  # JSON
    sa.Index("forcegate_structures_user", "user", "uploaded"),
)

OF_A_TASK = (EVENTS, STATES, PARTS, PASSED, CALLBACKS)
"""What goes when a task goes."""


def url(settings: Settings) -> str:
    """The database of these settings, as SQLAlchemy writes it.

    Raises:
        SetupError: it is neither SQLite nor Postgres.
    """
    given = settings.database_url or f"sqlite:///{(settings.state / 'tasks.sqlite').resolve()}"
    try:
        parsed = sa.make_url(given)
    except sa.exc.ArgumentError:
        raise SetupError("FORCEGATE_DATABASE_URL is no address of a database.", "Write postgresql://user@host/name.") from None
    name = parsed.get_backend_name()
    if name == "sqlite":
        return given
    if name in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    raise SetupError(f"Tasks cannot be kept in a database of the kind {name!r}.", "Use Postgres, or leave the setting out.")


def connect(address: str, connections: int, durable: bool = True) -> sa.Engine:
    """An engine for ``address`` that opens up to ``connections``.

    Args:
        durable: whether SQLite waits for the disk at each commit. What a worker writes can be worked out again after a power cut,
            so it need not; a task that was accepted has to be there. No commit is lost when a process is killed.
    """
    if not address.startswith("sqlite"):
        return sa.create_engine(address, pool_size=connections, max_overflow=8, pool_pre_ping=True, pool_recycle=1800)
    engine = sa.create_engine(address, pool_size=connections, max_overflow=8)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # A transaction that writes takes the lock for it at its beginning, so that none fails in its middle.
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA busy_timeout=30000")
        _write_ahead(connection)
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _write_ahead(connection: Any) -> None:
    """Readers and one writer at once. The file keeps the mode; changing it does not wait for others, so that is tried again."""
    for attempt in range(100):
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(0.1)


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that reads and then writes: on SQLite nobody else writes between the two."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def prepare(engine: sa.Engine) -> None:
    """Creates the tables where there are none; several processes may do so at once.

    Raises:
        SetupError: the tables are those of a newer version.
    """
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")
        _METADATA.create_all(connection)
        found = connection.scalar(sa.select(sa.func.max(SCHEMA.c.version)))
        if found is None:
            connection.execute(SCHEMA.insert().values(version=VERSION))
        elif found > VERSION:
            raise SetupError(
                f"The database of tasks has version {found}, and this is Forcegate with version {VERSION}.",
                "Start the newer Forcegate, or give this one a database of its own (FORCEGATE_DATABASE_URL).",
            )


def now(connection: sa.Connection) -> float:
    """Seconds since the epoch by the database's clock: leases are compared across machines, whose own clocks may differ."""
    if connection.dialect.name == "postgresql":
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())
    return float(connection.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one())


def inserting(connection: sa.Connection, table: sa.Table) -> Any:
    """An insert of the dialect at hand: both have ``on_conflict_do_nothing`` and ``on_conflict_do_update``, in the same words."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
