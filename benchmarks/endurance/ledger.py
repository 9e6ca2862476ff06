"""What became of every task that was sent off, as the database has it: lost, or done twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from frontend.settings import Settings
from frontend.tasks import tables
from frontend.tasks.tables import EVENTS, TASKS
from frontend.tasks.task import Status


def audit(settings: Settings, keys: Iterable[str]) -> dict[str, Any]:
    """Compares the database with the idempotency keys of what was sent off.

    A task is lost where its key has no task, or one that did not complete; double where a key has two, or where one has become
    final twice.
    """
    wanted = set(keys)
    engine = tables.connect(tables.url(settings), 1)
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(TASKS.c.id, TASKS.c.idempotency_key, TASKS.c.status, TASKS.c.attempt)).all()
            events = connection.execute(sa.select(EVENTS.c.task, EVENTS.c.data).where(EVENTS.c.name == "status")).all()
    finally:
        engine.dispose()
    mine = [row for row in rows if row.idempotency_key in wanted]
    found = Counter(row.idempotency_key for row in mine)
    ends = Counter(event.task for event in events if Status(json.loads(event.data)["status"]).final)
    statuses = Counter(str(row.status) for row in mine)
    return {
        "sent": len(wanted),
        "completed": statuses[Status.COMPLETED],
        "lost": len(wanted) - len(found) + sum(row.status != Status.COMPLETED for row in mine),
        "double": sum(count > 1 for count in found.values()) + sum(ends[row.id] > 1 for row in mine),
        "statuses": dict(statuses),
        "interrupted": sum(row.attempt > 1 for row in mine),
        "most_attempts": max((row.attempt for row in mine), default=0),
    }
