"""Who is next, and how long it will take.

A task's place is a moment: that of its submission, later by the delay of its class. The one with the earliest moment is next. So
a task overtakes the newer ones of a higher class once it has waited for longer than the difference of the delays, and nothing
has to be moved while it waits.

A worker whose turn it is departs from that for one reason: a task behind it can begin without a load, and the first one cannot
(``choose``). How long a task may be passed over for that is bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from frontend.scheduler.policy import Policy
from frontend.tasks.tables import DURATIONS, PASSED, TASKS, WORKERS, inserting, now
from frontend.tasks.task import Priority, Status

DELAY_SECONDS: Mapping[Priority, int] = {Priority.CRITICAL: 0, Priority.HIGH: 60, Priority.NORMAL: 600, Priority.LOW: 3600}
"""How much later than a CRITICAL task of the same moment a task of the class has its turn."""

PATIENCE_SECONDS: Mapping[Priority, float] = dict(zip(Priority, Policy().patience_seconds, strict=True))
"""For how long tasks of loaded models may begin before one whose model would have to be loaded: 0 s for CRITICAL, which is never
passed over, to 300 s for LOW. It is what the scheduler's own order allows. With loads of 5 to 60 s, NORMAL tasks of two models that
alternate spend at most a third of the time on loads."""
LOOKED_AT = 200
"""Tasks that are looked at for one that needs no load. So many in front of the first of them are worth a load."""

EPOCH = 1_577_836_800
"""1 January 2020: ranks are whole seconds since then, and the engine's priorities have 31 bits, which last until 2088."""
UNKNOWN_SECONDS = 30.0
"""What a task is taken to last before any has been completed."""
NEWEST = 0.1
"""The least weight of the newest task in the mean of the durations, so that the mean follows a change."""


def rank(priority: Priority, submitted: float) -> int:
    """The moment of a task that was submitted at ``submitted`` (seconds since the epoch)."""
    return math.floor(submitted) - EPOCH + DELAY_SECONDS[priority]


@dataclass(frozen=True)
class Candidate:
    """A task that waits.

    Attributes:
        passed: when another task first began before it (the clock of the database); None for never.
    """

    id: str
    dispatch: int
    models: tuple[str, ...]
    priority: Priority
    passed: float | None


def choose(waiting: Sequence[Candidate], resident: Callable[[Sequence[str]], bool], moment: float) -> int:
    """Which of ``waiting``, in the order of their places, begins: its index. Those in front of it are passed over.

    It is the first one that needs no load, unless a task would be passed over that is of a higher class, or has been passed over
    for its patience already; then it is the first of all. So a task begins at the latest when those in front of it have begun and
    its patience is over, and tasks of the same models and class begin in the order of their places.

    Args:
        resident: whether a task of these models needs no load.
    """
    classes, highest = list(Priority), len(Priority)
    for index, task in enumerate(waiting):
        level = classes.index(task.priority)
        if level <= highest and resident(task.models):
            return index
        if (0.0 if task.passed is None else moment - task.passed) >= PATIENCE_SECONDS[task.priority]:
            return 0
        highest = min(highest, level)
    return 0


def waiting_from(connection: sa.Connection, first: sa.RowMapping) -> list[Candidate]:
    """The task ``first``, which waits, and those behind it."""
    column = TASKS.c
    place = sa.tuple_(column.rank, column.queued, column.id)
    query = (
        sa.select(column.id, column.dispatch, column.models, column.priority, PASSED.c.since)
        .outerjoin_from(TASKS, PASSED, PASSED.c.task == column.id)
        .where(column.status == Status.QUEUED, place >= sa.tuple_(first["rank"], first["queued"], first["id"]))
        .order_by(column.rank, column.queued, column.id)
        .limit(LOOKED_AT)
    )
    rows = connection.execute(query).all()
    return [Candidate(row.id, row.dispatch, tuple(json.loads(row.models)), Priority(row.priority), row.since) for row in rows]


def place(connection: sa.Connection, row: sa.RowMapping, lease_seconds: float) -> tuple[int, float | None]:
    """Position in the queue, from 1, and the estimated seconds until its start, of a task that is queued; None without a worker.

    The work in front, queued and running, is spread over the slots of the workers that live.
    """
    column = TASKS.c
    before = sa.or_(
        column.rank < row["rank"],
        sa.and_(column.rank == row["rank"], column.queued < row["queued"]),
        sa.and_(column.rank == row["rank"], column.queued == row["queued"], column.id < row["id"]),
    )
    group = column.kind, column.models
    ahead = connection.execute(
        sa.select(*group, sa.func.count()).where(column.status == Status.QUEUED, before).group_by(*group)
    ).all()
    running = connection.execute(
        sa.select(*group, column.started).where(column.status == Status.RUNNING, column.started.is_not(None))
    ).all()
    known = _Durations(connection)
    slots = slots_alive(connection, lease_seconds)
    position = 1 + sum(count for _, _, count in ahead)
    if slots == 0:
        return position, None
    if slots > len(running) + position - 1:
        return position, 0.0
    moment = now(connection)
    # What runs longer than its kind usually does is expected to take as long again as a tenth of that.
    left = sum(max(known.of(kind, models) - (moment - started), 0.1 * known.of(kind, models)) for kind, models, started in running)
    work = left + sum(count * known.of(kind, models) for kind, models, count in ahead)
    return position, round(work / slots, 1)


def slots_alive(connection: sa.Connection, lease_seconds: float) -> int:
    """Tasks that the living workers carry out at once."""
    alive = WORKERS.c.beat > now(connection) - lease_seconds
    return int(connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(WORKERS.c.slots), 0)).where(alive)) or 0)


def learn(connection: sa.Connection, kind: str, models: str, seconds: float) -> None:
    """Takes the duration of a completed task into the mean of its kind and models."""
    key = sa.and_(DURATIONS.c.kind == kind, DURATIONS.c.models == models)
    weight = sa.case((DURATIONS.c.count < 1 / NEWEST, 1.0 / (DURATIONS.c.count + 1)), else_=NEWEST)
    mean = DURATIONS.c.seconds + (seconds - DURATIONS.c.seconds) * weight
    if connection.execute(DURATIONS.update().where(key).values(count=DURATIONS.c.count + 1, seconds=mean)).rowcount:
        return
    insert = inserting(connection, DURATIONS).values(kind=kind, models=models, count=1, seconds=seconds)
    connection.execute(insert.on_conflict_do_nothing())


class _Durations:
    """Means by kind and models; where these are new, by kind, and else of all."""

    def __init__(self, connection: sa.Connection) -> None:
        rows = connection.execute(sa.select(DURATIONS.c.kind, DURATIONS.c.models, DURATIONS.c.seconds)).all()
        self._exact = {(kind, models): seconds for kind, models, seconds in rows}
        self._kinds: dict[str, float] = {}
        for kind in {row[0] for row in rows}:
            of_kind = [seconds for other, _, seconds in rows if other == kind]
            self._kinds[kind] = sum(of_kind) / len(of_kind)
        self._all = sum(self._kinds.values()) / len(self._kinds) if self._kinds else UNKNOWN_SECONDS

    def of(self, kind: str, models: str) -> float:
        return self._exact.get((kind, models), self._kinds.get(kind, self._all))


@dataclass(frozen=True)
class Figures:
    """The queue in numbers.

    Attributes:
        queued: waiting tasks by priority.
        by_status: tasks of each status, those alone that have not been removed yet.
        oldest_seconds: how long the task that has waited longest has been in the queue.
        slots: tasks that the living workers carry out at once.
        workers: how many live.
    """

    queued: Mapping[Priority, int]
    by_status: Mapping[Status, int]
    oldest_seconds: float
    slots: int
    workers: int


def figures(connection: sa.Connection, lease_seconds: float) -> Figures:
    """The queue as it is now."""
    column, moment = TASKS.c, now(connection)
    statuses = connection.execute(sa.select(column.status, sa.func.count()).group_by(column.status))
    by_status = {status: count for status, count in statuses}  # noqa: C416
    waiting = sa.select(column.priority, sa.func.count()).where(column.status == Status.QUEUED).group_by(column.priority)
    queued = {priority: count for priority, count in connection.execute(waiting)}  # noqa: C416
    oldest = connection.scalar(sa.select(sa.func.min(column.queued)).where(column.status == Status.QUEUED))
    alive = sa.select(sa.func.count()).where(WORKERS.c.beat > moment - lease_seconds)
    return Figures(
        queued={priority: queued.get(priority, 0) for priority in Priority},
        by_status={status: by_status.get(status, 0) for status in Status},
        oldest_seconds=0.0 if oldest is None else max(0.0, moment - oldest),
        slots=slots_alive(connection, lease_seconds),
        workers=connection.scalar(alive) or 0,
    )
