"""The queue without a worker: order, places, idempotency, limits, cancelling what waits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from forcegate.errors import Conflict, InvalidRequest, NotFound, Overloaded
from frontend.tasks.order import DELAY_SECONDS
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Callback, Options, Priority, Status
from tests.tasks.workers import Bench, all_events, completed, submit


class Clock:
    """A clock that the test sets, from the time of now."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def test_order_is_that_of_classes_then_of_arrival_and_waiting_raises_a_task(bench: Bench) -> None:
    clock = Clock()
    diary = bench.state / "diary"

    async def use(tasks: DurableTasks) -> None:
        names: dict[str, str] = {}

        async def add(name: str, priority: Priority) -> None:
            view = await submit(tasks, "count", {"diary": str(diary), "steps": 1, "name": name}, priority=priority)
            names[view.id] = name
            clock.now += 0.01

        # It has waited for longer than LOW comes after CRITICAL, so it goes before the CRITICAL one of now.
        clock.now -= DELAY_SECONDS[Priority.LOW] + 5
        await add("aged low", Priority.LOW)
        clock.now += DELAY_SECONDS[Priority.LOW] + 5
        for name, priority in (
            ("low", "LOW"),
            ("normal 1", "NORMAL"),
            ("critical", "CRITICAL"),
            ("normal 2", "NORMAL"),
            ("high", "HIGH"),
        ):
            await add(name, Priority(priority))
        waiting = [await tasks.view(task) for task in names]
        assert [view.estimated_wait_seconds for view in waiting] == [None] * 6, "without a worker nobody knows when"
        in_order = [names[view.id] for view in sorted(waiting, key=lambda view: view.position or 0)]
        assert in_order == ["aged low", "critical", "high", "normal 1", "normal 2", "low"]
        assert sorted(view.position or 0 for view in waiting) == [1, 2, 3, 4, 5, 6]

        bench.start(task_concurrency=1)
        last = next(task for task, name in names.items() if name == "low")
        positions = set()
        while not (view := await tasks.view(last)).status.final:
            positions.add(view.position)
            await asyncio.sleep(0.01)
        views = [await completed(tasks, task) for task in names]
        started = [names[view.id] for view in sorted(views, key=lambda view: view.started or 0)]
        assert started == in_order, "the engine takes them in the order that the places promise"
        assert len(positions - {None}) >= 2, "the place of a task moves while those before it are carried out"
        assert all(
            (later.started or 0) >= (earlier.finished or 0)
            for earlier, later in pairwise(sorted(views, key=lambda view: view.started or 0))
        ), "one slot, one task at a time"

    bench.run(use, clock)


def test_the_same_key_and_content_give_the_same_task(bench: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        options = Options(idempotency_key="a")
        # Sent twice at once, as a client does that lost an answer.
        several = await asyncio.gather(*(tasks.submit("count", {"steps": 1}, ["m"], options, "ada") for _ in range(6)))
        assert len({view.id for view in several}) == 1
        other = await tasks.submit("count", {"steps": 1}, ["m"], options, "bob")
        assert other.id != several[0].id, "keys of different users are different keys"
        for kind, parameters, changed in (
            ("count", {"steps": 2}, options),
            ("relax", {"steps": 1}, options),
            ("count", {"steps": 1}, replace(options, priority=Priority.LOW)),
        ):
            with pytest.raises(Conflict, match="idempotency key"):
                await tasks.submit(kind, parameters, ["m"], changed, "ada")
        assert (await tasks.find(user="ada"))[0] == 1

    bench.run(use)


def test_a_user_may_have_so_many_unfinished_tasks_and_no_more(bench: Bench) -> None:
    bench.changed["max_tasks_per_user"] = 3

    async def use(tasks: DurableTasks) -> None:
        outcomes = await asyncio.gather(*(submit(tasks, "count", {}) for _ in range(8)), return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert len(refused) == 5, "also where they come at once"
        assert all((error.retry_after or 0) > 0 for error in refused)
        await tasks.submit("count", {}, [], Options(), "bob")
        (one, *_) = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        await tasks.cancel(one.id)
        await submit(tasks, "count", {})

    bench.run(use)


def test_what_waits_is_cancelled_at_once_and_can_be_retried(bench: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        first, second = await submit(tasks, "count", {}), await submit(tasks, "count", {})
        assert ((await tasks.view(first.id)).position, (await tasks.view(second.id)).position) == (1, 2)
        assert (await tasks.cancel(first.id)).status is Status.CANCELLED
        assert (await tasks.view(second.id)).position == 1, "who is behind moves up"
        assert [event.data["status"] for event in await all_events(tasks, first.id)] == ["QUEUED", "CANCELLED"]
        again = await tasks.cancel(first.id)
        assert again.status is Status.CANCELLED
        with pytest.raises(Conflict, match="QUEUED"):
            await tasks.retry(second.id)
        retried = await tasks.retry(first.id)
        assert (retried.status, retried.finished) == (Status.QUEUED, None)

    bench.run(use)


def test_finding_by_status_kind_model_and_user_in_pages(bench: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        views = [await tasks.submit("count", {}, [f"model_{n % 2}"], Options(), f"user {n % 3}") for n in range(6)]
        await tasks.cancel(views[0].id)
        assert (await tasks.find())[0] == 6
        total, page = await tasks.find(limit=2, offset=1)
        assert (total, [view.id for view in page]) == (6, [views[4].id, views[3].id]), "the newest first"
        assert [view.id for view in (await tasks.find(status=Status.CANCELLED))[1]] == [views[0].id]
        assert (await tasks.find(model="model_1"))[0] == 3
        assert (await tasks.find(model="model%1"))[0] == 0, "names are no patterns"
        assert (await tasks.find(user="user 2", kind="count"))[0] == 2
        assert (await tasks.find(kind="relax")) == (0, [])
        for strange in ("no such task", "'; DROP TABLE forcegate_tasks", "\x00", "\ud800"):
            with pytest.raises((NotFound, InvalidRequest)):
                await tasks.view(strange)
        figures = await tasks.figures()
        assert (figures.queued[Priority.NORMAL], figures.by_status[Status.CANCELLED], figures.slots) == (5, 1, 0)

    bench.run(use)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "http://",
        "http://127.0.0.1:9000/hook",
        "http://localhost/hook",
        "http://10.1.2.3/",
        "http://[::1]/",
        "http://[::ffff:192.168.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://user:word@example.org/",
        "http://[",
        "http://example.org:port/",
    ],
)
def test_callbacks_into_the_local_network_are_refused(tmp_path: object, url: str) -> None:
    bench = Bench(tmp_path, "")  # type: ignore[arg-type]

    async def use(tasks: DurableTasks) -> None:
        with pytest.raises(InvalidRequest, match="callback"):
            await submit(tasks, "count", {}, callback=Callback(url))

    bench.run(use)
