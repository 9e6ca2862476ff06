"""Turns of workers where some models are loaded: what is written of those that begin and of those that are passed over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import sqlalchemy as sa

from frontend.tasks.attempt import Attempt
from frontend.tasks.engine import Entries
from frontend.tasks.leases import Leases
from frontend.tasks.ledger import Ledger
from frontend.tasks.order import PATIENCE_SECONDS
from frontend.tasks.queue import DurableTasks, open_database
from frontend.tasks.tables import PASSED, TASKS
from frontend.tasks.task import Options, Priority, Status
from tests.tasks.workers import Bench, all_events, completed, reaches
from tests.unit.fault_injection import FaultyTriton, serving

Resident = Callable[[Sequence[str]], bool]


@contextmanager
def leases_of(bench: Bench, name: str = "worker") -> Iterator[Leases]:
    """What a worker of the test writes, without its process."""
    settings = bench.settings()
    engine = open_database(settings, 12)
    try:
        entries = Entries(engine)
        entries.open()
        yield Leases(Ledger(engine, entries, settings.task_lease_seconds), settings, name)
    finally:
        engine.dispose()


def loaded(*models: str) -> Resident:
    return lambda asked: set(asked) <= set(models)


async def submit(tasks: DurableTasks, model: str, priority: Priority = Priority.NORMAL, **parameters: object) -> str:
    return (await tasks.submit("count", parameters, [model], Options(priority), "ada")).id


def play(bench: Bench, scene: Callable[[DurableTasks, Leases], Awaitable[None]]) -> None:
    async def use(tasks: DurableTasks) -> None:
        with leases_of(bench) as leases:
            await scene(tasks, leases)

    bench.run(use)


def carried_out(leases: Leases, grouped: bool) -> tuple[int, list[str]]:
    """Carries out all that waits, one after the other, with room for one model: how often one is loaded, and the order."""
    first = sa.select(TASKS.c.id, TASKS.c.dispatch).where(TASKS.c.status == Status.QUEUED)
    first = first.order_by(TASKS.c.rank, TASKS.c.queued, TASKS.c.id).limit(1)
    loads, there, begun = 0, "", list[str]()
    while True:
        with leases.ledger.engine.connect() as connection:
            row = connection.execute(first).one_or_none()
        if row is None:
            return loads, begun
        attempt = leases.turn(row.id, row.dispatch, loaded(there) if grouped else None)
        assert attempt is not None
        (model,) = json.loads(attempt.models)
        loads, there = loads + (model != there), model
        begun.append(attempt.task)
        assert leases.finish(attempt, Status.COMPLETED, result={})


def test_two_models_in_turn_are_loaded_twice_and_not_for_each_task(bench: Bench) -> None:
    async def scene(tasks: DurableTasks, leases: Leases) -> None:
        submitted = [await submit(tasks, "ab"[number % 2]) for number in range(24)]
        loads, begun = await asyncio.to_thread(carried_out, leases, False)
        assert (loads, begun) == (24, submitted), "without knowing what is loaded: by place alone"
        submitted = [await submit(tasks, "ab"[number % 2]) for number in range(24)]
        loads, begun = await asyncio.to_thread(carried_out, leases, True)
        assert loads == 2
        assert begun == submitted[::2] + submitted[1::2], "first in, first out among tasks of one model"
        assert (await tasks.find(status=Status.COMPLETED))[0] == 48
        assert {view.attempt for view in (await tasks.find(limit=48))[1]} == {1}

    play(bench, scene)


def test_who_is_passed_over_keeps_its_place_and_begins_when_its_patience_is_over(bench: Bench) -> None:
    async def scene(tasks: DurableTasks, leases: Leases) -> None:
        passed, first, second = [await submit(tasks, model) for model in "baa"]
        attempt = leases.turn(passed, 1, loaded("a"))
        assert attempt is not None
        assert (attempt.task, attempt.before) == (first, 1)
        view = await tasks.view(passed)
        assert (view.status, view.position, view.attempt) == (Status.QUEUED, 1, 0)
        engine = leases.ledger.entries
        assert engine.missing([(passed, 2), (second, 1)]) == [], "it has a new entry"
        assert engine.missing([(first, 1)]) == [(first, 1)], "and the one of the task that began is not needed any more"
        assert leases.turn(passed, 1, loaded("a")) is None, "nobody begins anything with the old one"
        assert leases.turn(first, 1, loaded("a")) is None
        patience = PATIENCE_SECONDS[Priority.NORMAL]
        with leases.ledger.engine.begin() as connection:
            connection.execute(PASSED.update().values(since=PASSED.c.since - patience + 5))
        soon = leases.turn(passed, 2, loaded("a"))
        assert soon is not None
        assert soon.task == second
        third = await submit(tasks, "a")
        with leases.ledger.engine.begin() as connection:
            connection.execute(PASSED.update().values(since=PASSED.c.since - 5))
        late = leases.turn(passed, 3, loaded("a"))
        assert late is not None
        assert (late.task, late.before) == (passed, 0), "though a task of the loaded model waits"
        assert (await tasks.view(third)).status is Status.QUEUED
        await tasks.cancel(passed)
        leases.finish(late, Status.CANCELLED)
        told = [event.data.get("status") for event in await all_events(tasks, passed)]
        assert told == ["QUEUED", "RUNNING", "CANCELLED"], "its readers hear of nothing but its own turn"

    play(bench, scene)


def test_no_class_is_passed_over_by_a_lower_one(bench: Bench) -> None:
    async def scene(tasks: DurableTasks, leases: Leases) -> None:
        high = await submit(tasks, "b", Priority.HIGH)
        await submit(tasks, "a")
        attempt = leases.turn(high, 1, loaded("a"))
        assert attempt is not None
        assert attempt.task == high
        critical = await submit(tasks, "b", Priority.CRITICAL)
        await submit(tasks, "a", Priority.CRITICAL)
        attempt = leases.turn(critical, 1, loaded("a"))
        assert attempt is not None
        assert attempt.task == critical, "its patience is none"

    play(bench, scene)


def test_workers_with_a_turn_at_once_begin_different_tasks(bench: Bench) -> None:
    async def scene(tasks: DurableTasks, leases: Leases) -> None:
        cold, warm = [await submit(tasks, "b") for _ in range(8)], [await submit(tasks, "a") for _ in range(8)]

        def turns() -> list[Attempt | None]:
            with ThreadPoolExecutor(8) as threads:
                return list(threads.map(lambda task: leases.turn(task, 1, loaded("a")), cold))

        begun = [attempt.task for attempt in await asyncio.to_thread(turns) if attempt is not None]
        assert sorted(begun) == sorted(warm), "each of the eight turns is one of the eight tasks that need no load"
        assert {(await tasks.view(task)).status for task in cold} == {Status.QUEUED}
        assert leases.ledger.entries.missing([(task, 2) for task in cold]) == []

    play(bench, scene)


def test_a_worker_that_dies_with_a_task_that_went_before_others_loses_none(bench: Bench) -> None:
    """With the engine and a server that says what is ready: three tasks of a model that is not, and of one that is."""
    triton = FaultyTriton()
    triton.index = {"a": ("READY", ""), "b": ("UNAVAILABLE", "")}

    async def use(tasks: DurableTasks) -> None:
        cold, warm = list[str](), list[str]()
        for _ in range(3):
            cold.append(await submit(tasks, "b", steps=5, pause=0.02))
            warm.append(await submit(tasks, "a", steps=5, pause=0.02))
        long = await submit(tasks, "a", steps=10_000, pause=0.02)
        warm.append(long)
        worker = bench.start()
        await reaches(tasks, long, 1)  # the last of those that need no load
        assert {(await tasks.view(task)).status for task in cold} == {Status.QUEUED}
        assert "before 3 whose models would have to be loaded" in (await tasks.logs(long))[0]
        worker.kill()
        made = ((await tasks.view(long)).progress or {})["steps_seen"]
        triton.index["b"] = ("READY", "")
        bench.start()  # under the name of the first one, whose tasks it takes back at once
        views = [await completed(tasks, task) for task in cold]
        assert (await reaches(tasks, long, made + 1)).attempt == 2
        await tasks.cancel(long)
        views += [await completed(tasks, task) for task in warm[:-1]]
        assert {view.attempt for view in views} == {1}, "each was begun once"
        begun = sorted(views, key=lambda view: view.started or 0)
        assert [view.id for view in begun] == warm[:-1] + cold

    with serving(triton) as address:
        bench.changed |= {"task_concurrency": 1, "grpc_port": int(address.rpartition(":")[2])}
        bench.run(use)
