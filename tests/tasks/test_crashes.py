"""Workers that are killed, halted and stopped: nothing is lost, nothing is done twice, and calculations go on where they were."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from forcegate.calculations.states import Nowhere
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Status
from tests.tasks.test_worker import InProcess
from tests.tasks.worker import dynamics, relax, stiffness
from tests.tasks.workers import PATIENCE_SECONDS, Bench, all_events, completed, reaches, submit, until

RELAXATION = {"seed": 5, "pause": 0.04}
DYNAMICS = {
    "ensemble": "nve",
    "temperature": 30.0,
    "timestep": 2.0,
    "equilibration_steps": 40,
    "production_steps": 160,
    "sample_interval": 10,
    "seed": 7,
}


def run_in_process(calculation: object, parameters: dict, folder: Path) -> dict:
    """The answer of an uninterrupted run."""
    context = InProcess()
    context.folder = folder  # type: ignore[attr-defined]
    return calculation({**parameters, "pause": 0.0}, context)  # type: ignore[operator, no-any-return]


def test_a_killed_worker_is_followed_by_another_that_goes_on_from_its_state(bench: Bench, tmp_path: Path) -> None:
    expected = run_in_process(dynamics, {"dynamics": DYNAMICS}, tmp_path)
    relaxed = run_in_process(relax, RELAXATION, tmp_path)

    async def use(tasks: DurableTasks) -> None:
        first = bench.start_ready()
        relaxation = (await submit(tasks, "relax", RELAXATION)).id
        md = (await submit(tasks, "dynamics", {"dynamics": DYNAMICS, "pause": 0.04})).id
        await reaches(tasks, relaxation, 20)
        await reaches(tasks, md, 60)
        first.kill()
        second = bench.start(state=bench.state / "other machine")
        for task in (relaxation, md):
            view = await completed(tasks, task)
            assert view.attempt == 2
            # The second attempt went on: it told of a later step first than the first step of all.
            events = await all_events(tasks, task)
            restart = max(event.number for event in events if event.data.get("status") == "RUNNING")
            later = [event.data for event in events if event.number > restart and event.name == "progress"]
            assert later[0]["step"] > 0 or later[0]["phase"] == "production"
            # The steps since the last state alone were made again: 0.2 s of 0.04 s each, and the machine may be slow.
            assert later[-1]["steps_seen"] < 1.9 * (view.result or {}).get("steps", 200)
        resumed = (await tasks.view(relaxation, result=True)).result
        assert resumed is not None
        assert resumed["energy"] == pytest.approx(relaxed["energy"], abs=1e-9)
        assert (resumed["steps"], resumed["trajectory"]) == (relaxed["steps"], relaxed["trajectory"])
        nve = (await tasks.view(md, result=True)).result
        assert nve is not None
        # Positions, momenta and random numbers are those of the state, so the runs are the same one: rounding alone differs.
        for name in ("mean_energy", "mean_temperature", "energy_drift", "rmsd"):
            assert nve[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name
        assert (tasks.folder(md) / "trajectory.extxyz").parent.exists()
        second.stop()

    # Both workers have the database of the first one's state folder, as two machines have that of a Postgres.
    bench.database_url = bench.database_url or f"sqlite:///{bench.state.resolve() / 'tasks.sqlite'}"
    bench.run(use)


def test_a_worker_that_was_halted_finds_itself_fenced(bench: Bench, tmp_path: Path) -> None:
    diary = tmp_path / "diary"

    async def use(tasks: DurableTasks) -> None:
        halted = bench.start_ready()
        task = (await submit(tasks, "count", {"steps": 150, "pause": 0.05, "diary": str(diary)})).id
        await reaches(tasks, task, 2)
        halted.send(signal.SIGSTOP)
        other = bench.start_ready()
        while (await tasks.view(task)).attempt < 2:
            assert not (await tasks.view(task)).status.final
            await asyncio.sleep(0.05)
        halted.send(signal.SIGCONT)
        view = await completed(tasks, task)
        assert view.attempt == 2
        lines = [line.split() for line in diary.read_text().splitlines()]
        taken_over = min(float(moment) for pid, _, moment in lines if int(pid) == other.pid)
        # A step that was under way when the process was halted is finished; the next one is not begun.
        late = [line for line in lines if int(line[0]) == halted.pid and float(line[2]) > taken_over]
        assert len(late) <= 1, late
        assert [int(step) for pid, step, _ in lines if int(pid) == other.pid] == list(range(150))
        told = halted.log.read_text()
        assert told.count("was given to another worker meanwhile") == 1
        assert "Traceback" not in told, "it is nothing that anybody has to look into"
        # It is a worker like any other afterwards.
        other.stop()
        await completed(tasks, (await submit(tasks, "count", {})).id)

    bench.run(use)


def test_a_worker_that_is_told_to_stop_gives_back_its_tasks_with_their_last_state(bench: Bench) -> None:
    # States hours apart: what is found afterwards was kept because of the stop.
    bench.changed |= {"task_state_seconds": 3600.0, "task_lease_seconds": 3600.0, "task_beat_seconds": 1.0}

    async def use(tasks: DurableTasks) -> None:
        first = bench.start_ready()
        task = (await submit(tasks, "relax", RELAXATION)).id
        seen = (await reaches(tasks, task, 25)).progress
        first.stop()
        view = await tasks.view(task)
        assert (view.status, view.position) == (Status.QUEUED, 1), "at once, not when a lease is over"
        bench.start_ready()
        view = await completed(tasks, task)
        assert view.progress is not None
        assert view.result is not None
        assert seen is not None
        # No step was made twice: those seen are those made, and the one at which it was stopped.
        assert view.progress["steps_seen"] <= view.result["steps"] + 2

    bench.run(use)


def test_a_worker_that_is_started_again_takes_its_tasks_back_at_once(bench: Bench) -> None:
    bench.changed |= {"task_lease_seconds": 3600.0, "task_beat_seconds": 1.0}

    async def use(tasks: DurableTasks) -> None:
        first = bench.start_ready()
        task = (await submit(tasks, "relax", RELAXATION)).id
        name = (await reaches(tasks, task, 25)).worker
        first.kill()
        bench.start()
        view = await completed(tasks, task)
        assert (view.attempt, view.worker) == (2, name), "nobody waited for the lease, which is an hour"

    bench.run(use)


def test_a_task_of_many_parts_goes_on_with_those_that_are_left(bench: Bench, tmp_path: Path) -> None:
    diary = tmp_path / "diary"

    class Undisturbed(Nowhere, InProcess):
        pass

    expected = stiffness({"diary": str(tmp_path / "undisturbed")}, Undisturbed())  # type: ignore[arg-type]
    whole = len((tmp_path / "undisturbed").read_text().splitlines())

    def made() -> int:
        return len(diary.read_text().splitlines()) if diary.exists() else 0

    async def use(tasks: DurableTasks) -> None:
        first = bench.start_ready()
        task = (await submit(tasks, "stiffness", {"diary": str(diary), "pause": 0.1})).id
        await asyncio.to_thread(until, lambda: made() >= 0.6 * whole)
        first.kill()
        before = made()
        bench.start()
        view = await completed(tasks, task)
        assert view.attempt == 2
        assert view.result == pytest.approx(expected, rel=1e-6)
        # Each strain that was finished is kept; of the one under way what came after its last state is made again.
        assert made() < whole + 8, (before, made(), whole)

    bench.run(use)


def test_two_workers_carry_out_each_task_once(bench: Bench, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    # A lease that no pause of a busy machine outlasts: what is looked at is the queue alone.
    bench.changed |= {"task_concurrency": 4, "task_lease_seconds": 60.0}

    async def use(tasks: DurableTasks) -> None:
        one, other = bench.start(), bench.start()
        await asyncio.to_thread(until, lambda: one.ready and other.ready)
        views = await asyncio.gather(*(submit(tasks, "count", {"diary": str(diary), "pause": 0.05}) for _ in range(40)))
        done = [await completed(tasks, view.id) for view in views]
        assert {view.attempt for view in done} == {1}
        lines = diary.read_text().splitlines()
        assert len(lines) == 40
        assert {int(line.split()[0]) for line in lines} == {one.pid, other.pid}, "both took part"

    bench.run(use)


def test_random_kills_lose_nothing_and_finish_nothing_twice(bench: Bench, tmp_path: Path) -> None:
    """Three rounds here, or ``FORCEGATE_KILL_ROUNDS``; docs/tasks.md says what came of twenty."""
    bench.database_url = bench.database_url or f"sqlite:///{bench.state.resolve() / 'tasks.sqlite'}"
    rounds = int(os.environ.get("FORCEGATE_KILL_ROUNDS", "3"))
    bench.run(lambda tasks: kill_rounds(bench, tasks, rounds, tmp_path))


async def kill_rounds(bench: Bench, tasks: DurableTasks, rounds: int, folder: Path) -> None:
    """Kills one of two workers in each round at a random moment while tasks go on, and looks at what came of them."""
    moments = random.Random(11)
    workers = [bench.start(state=bench.state / name) for name in ("a", "b")]
    await asyncio.to_thread(until, lambda: all(worker.ready for worker in workers))
    ids: list[str] = []
    for number in range(rounds):
        ids += [(await submit(tasks, "relax", {"seed": seed, "pause": 0.02})).id for seed in range(4)]
        ids += [(await submit(tasks, "parts", {"parts": 5, "pause": 0.1, "diary": str(folder / f"{number}")})).id]
        await asyncio.sleep(moments.uniform(0.1, 2.0))
        victim = moments.randrange(2)
        workers[victim].kill()
        workers[victim] = bench.start(state=bench.state / "ab"[victim])
    results = defaultdict(set)
    for position, task in enumerate(ids):
        view = await completed(tasks, task, PATIENCE_SECONDS + 20 * rounds)  # all of them are under way at once
        ends = [event for event in await all_events(tasks, task) if event.data.get("status") == "COMPLETED"]
        assert len(ends) == 1, "finished once"
        results[position % 5].add(str(round(view.result["energy"], 6) if "energy" in (view.result or {}) else view.result))  # type: ignore[index]
    assert all(len(found) == 1 for found in results.values()), "kills change no result"
