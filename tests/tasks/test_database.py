"""What is kept and for how long: old tasks go with their files, calls outlive their worker, a newer database is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from forcegate.errors import NotFound, SetupError
from frontend.tasks import callbacks, tables
from frontend.tasks.engine import Entries
from frontend.tasks.leases import Leases
from frontend.tasks.ledger import Ledger
from frontend.tasks.queue import DurableTasks, open_database
from frontend.tasks.task import Callback, Status
from tests.service import ROOT
from tests.tasks.test_worker import listening
from tests.tasks.workers import Bench, submit

DAY = 86_400.0


def test_old_finished_tasks_go_with_everything_that_belongs_to_them(bench: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        old, waiting = [(await submit(tasks, "count", {})).id for _ in range(2)]
        await tasks.cancel(old)
        for task in (old, waiting):
            tasks.folder(task).mkdir(parents=True)
            (tasks.folder(task) / "trajectory.extxyz").write_text("frames\n")
        settings = bench.settings()
        engine = open_database(settings, 4)
        try:
            entries = Entries(engine)
            with engine.begin() as connection:
                for table, values in ((tables.STATES, {"state": b"x"}), (tables.PARTS, {"result": "{}"})):
                    connection.execute(table.insert().values(task=old, part="whole", **values))

                structure = {"user": "a", "name": "", "formula": "Ar", "atoms": 1, "content": b"x", "preview": "{}"}
                for age in (0.0, 3.0):
                    kept = {"id": f"{age}", "uploaded": time.time() - (settings.structure_retention_days - 2 + age) * DAY}
                    connection.execute(tables.STRUCTURES.insert().values(**structure, **kept))

            def removed(days: float) -> int:
                ledger = Ledger(engine, entries, settings.task_lease_seconds, lambda: time.time() + days * DAY)
                return Leases(ledger, settings, "cleaner").remove_old()

            assert removed(1) == 0
            with engine.connect() as connection:
                assert connection.scalars(sa.select(tables.STRUCTURES.c.id)).all() == ["0.0"]
            assert removed(settings.task_retention_days - 1) == 0
            assert (await tasks.view(old)).status is Status.CANCELLED
            assert removed(settings.task_retention_days + 1) == 1
            with pytest.raises(NotFound):
                await tasks.view(old)
            assert not tasks.folder(old).exists()
            with engine.connect() as connection:
                for table in tables.OF_A_TASK:
                    assert not connection.execute(sa.select(table).where(table.c.task == old)).all(), table.name
            # One that waits is kept however old it is, with its files and its entry.
            assert (await tasks.view(waiting)).status is Status.QUEUED
            assert tasks.folder(waiting).exists()
            assert entries.missing([(waiting, 1), (old, 1)]) == [(old, 1)]
        finally:
            engine.dispose()

    bench.run(use)


def test_a_call_whose_worker_died_is_made_by_another(bench: Bench) -> None:
    bench.changed["callback_private"] = True

    async def use(tasks: DurableTasks) -> None:
        with listening() as (url, calls):
            task = (await submit(tasks, "count", {}, callback=Callback(url, events=("CANCELLED",)))).id
            await tasks.cancel(task)
            engine = open_database(bench.settings(), 4)
            try:
                ahead = 1.0

                def clock() -> float:
                    return time.time() + ahead

                first, second = (callbacks.Deliveries(engine, private=True, clock=clock) for _ in range(2))
                assert len(first.due()) == 1  # and here its worker dies, with the call taken and not made
                assert second.due() == []
                ahead += callbacks.CLAIM_SECONDS + 1
                (row,) = second.due()
                second.deliver(row)  # the listener answers the first call of a task with 503
                assert second.due() == []
                ahead += callbacks.pause(2) + 1
                (row,) = first.due()
                first.deliver(row)
                ahead += 10 * DAY
                assert first.due() == [], "it has arrived"
            finally:
                engine.dispose()
            told = [json.loads(body) for _, body in calls]
            assert len(told) == 2
            assert told[0] == told[1]
            assert (told[0]["task_id"], told[0]["status"]) == (task, "CANCELLED")

    bench.run(use)


def test_the_tables_of_a_newer_version_are_not_touched(bench: Bench) -> None:
    settings = bench.settings()
    engine = open_database(settings, 2)
    open_database(settings, 2).dispose()  # those of this version are opened again as they are
    with engine.begin() as connection:
        connection.execute(tables.SCHEMA.insert().values(version=tables.VERSION + 1))
    engine.dispose()
    with pytest.raises(SetupError, match=f"version {tables.VERSION + 1}") as caught:
        open_database(settings, 2)
    assert "FORCEGATE_DATABASE_URL" in caught.value.hint


def test_whoever_only_looks_at_tasks_does_without_the_engine(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from frontend.settings import Settings
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Options

async def main():
    tasks = DurableTasks(Settings(state=Path(sys.argv[1])))
    await tasks.figures()
    assert (await tasks.find()) == (0, [])
    print("dbos" in sys.modules)
    await tasks.submit("count", {}, [], Options(), "ada")
    print("dbos" in sys.modules)
    await tasks.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    # It takes seconds and 25 MB to import, which a gateway that is asked for no task has no use for.
    assert done.stdout.split() == ["False", "True"], done.stderr
