"""What an endurance run counts: lost and double tasks, memory across the lives of processes, how long others waited."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from ase import Atoms

from benchmarks.endurance import faults, ledger
from benchmarks.endurance.faults import Fault
from benchmarks.endurance.memory import summary
from benchmarks.endurance.references import Single, Task
from benchmarks.endurance.seen import Seen, Wrong
from forcegate.errors import ModelNotReady
from frontend.settings import Settings
from frontend.tasks import tables
from frontend.tasks.queue import DurableTasks
from frontend.tasks.tables import EVENTS, TASKS
from frontend.tasks.task import Options, Status


def test_an_answer_of_another_structure_is_wrong_and_so_is_a_number_that_is_none() -> None:
    single = Single("m", Atoms("Ar2"), -1.0, np.zeros((2, 3)))
    single.check({"energy": -1.00001, "forces": [[0, 0, 1e-4]] * 2})
    for energy, forces in ((-1.1, [[0, 0, 0]] * 2), (-1.0, [[0, 0, 0.1]] * 2), (-1.0, [[0, 0, 0]] * 3)):
        with pytest.raises(Wrong):
            single.check({"energy": energy, "forces": forces})
    with pytest.raises(Wrong):
        Task("k", "m", Atoms(), {}, {"final_energy": 1.0}, {"final_energy": 1e-4}).check({"final_energy": float("nan")})


def test_calls_are_counted_by_what_came_of_them() -> None:
    def away() -> int:
        raise ModelNotReady("It is away.")

    def wrong() -> int:
        raise Wrong("another energy")

    seen = Seen()
    for ask in (lambda: 3, away, wrong, lambda: 2):
        seen.call("rest", ask)
    assert seen.answers == {"rest": 5}
    assert [entry["code"] for entry in seen.lost] == ["model_not_ready"]
    assert [entry["detail"] for entry in seen.wrong] == ["another energy"]
    assert len(seen.spans["rest"]) == 4


def test_answers_of_clients_at_once_are_all_counted() -> None:
    seen = Seen()

    def ask() -> int:
        time.sleep(0.02)
        return 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: seen.call("rest", ask), range(40)))
    assert seen.answers == {"rest": 40}


def test_lost_and_double_tasks_are_found(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path)

    async def submit() -> list[str]:
        tasks = DurableTasks(settings)
        await tasks.open()
        try:
            keys = ("done", "twice", "failed")
            return [(await tasks.submit("k", {}, ["m"], Options(idempotency_key=key), "ada")).id for key in keys]
        finally:
            await tasks.close()

    done, twice, failed = asyncio.run(submit())
    engine = tables.connect(tables.url(settings), 1)
    with engine.begin() as connection:
        for task, status in ((done, Status.COMPLETED), (twice, Status.COMPLETED), (failed, Status.FAILED)):
            connection.execute(TASKS.update().where(TASKS.c.id == task).values(status=status, attempt=2))
        for task, number in ((done, 8), (twice, 8), (twice, 9)):
            data = json.dumps({"status": Status.COMPLETED})
            connection.execute(sa.insert(EVENTS).values(task=task, number=number, name="status", time=0.0, data=data))
    engine.dispose()
    found = ledger.audit(settings, ["done", "twice", "failed", "never came"])
    assert (found["sent"], found["completed"], found["lost"], found["double"]) == (4, 2, 2, 1)
    assert found["interrupted"] == 3


def test_memory_is_that_of_all_lives_and_a_leak_shows_within_them() -> None:
    def life(begin: float, seconds: float, leak: float) -> list[tuple[float, float, int]]:
        return [(begin + t, 300.0 + leak * t / 3600, 20) for t in np.arange(0.0, seconds, 5.0)]

    flat = summary([life(0, 600, 0.0), life(700, 300, 0.0)])
    assert (flat["lives"], flat["longest_life_s"]) == (2, 595.0)
    assert flat["mb_an_hour_within"] == pytest.approx(0.0, abs=1e-6)
    leaking = summary([life(0, 600, 90.0), life(700, 300, 90.0)])
    assert leaking["mb_an_hour_within"] == pytest.approx(90.0)
    assert summary([life(0, 10, 0.0)])["mb_an_hour_within"] is None


def test_the_wait_after_a_fault_is_that_of_the_calls_that_were_under_way() -> None:
    spans = {"rest": [(0.0, 1.0), (9.0, 14.0), (12.0, 99.0)], "dynamics": [(0.0, 500.0)]}
    (row,) = faults.told([Fault(10.0, "gateway", ("gateway",)), Fault(200.0, "gateway", ("gateway",))], spans, ["rest"])
    assert row == {"target": "gateway", "times": 2, "median_wait_s": 4.0, "longest_wait_s": 4.0}
