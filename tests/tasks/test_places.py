"""Places and waits as a reader of REST sees them: a gateway without Triton, beside a worker with one slot."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import httpx

from frontend.app import create_app
from frontend.service import Service
from frontend.tasks.queue import DurableTasks, open_database
from frontend.tasks.tables import DURATIONS
from frontend.tasks.task import Priority
from tests.service import free_ports
from tests.tasks.workers import Bench, completed, reaches, submit

SECONDS = 1.0
"""Of one task."""


def settle(bench: Bench) -> None:
    """The mean of one duration becomes one of many: a single task of a busy machine moves it by a little."""
    engine = open_database(bench.settings(), 2)
    with engine.begin() as connection:
        assert connection.execute(DURATIONS.update().values(count=100, seconds=SECONDS)).rowcount == 1
    engine.dispose()


def test_place_and_wait_move_as_the_tasks_in_front_end(bench: Bench) -> None:
    bench.changed |= {"task_concurrency": 1, "grpc_port": free_ports(1)[0]}
    parameters = {"steps": 10, "pause": SECONDS / 10}

    async def look(rest: httpx.AsyncClient, task: str) -> dict[str, object]:
        answer = await rest.get(f"/api/v1/tasks/{task}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def scene(tasks: DurableTasks, rest: httpx.AsyncClient) -> None:
        unknown = (await submit(tasks, "count", parameters)).id
        assert (await look(rest, unknown))["estimated_wait_seconds"] is None, "nobody carries tasks out yet"
        bench.start_ready()
        await completed(tasks, unknown)  # and so it is known what such a task takes
        settle(bench)
        first, *others = [(await submit(tasks, "count", parameters)).id for _ in range(4)]
        await reaches(tasks, first, 1)
        seen: dict[int, list[float]] = {}
        while (view := await look(rest, others[-1]))["status"] == "QUEUED":
            seen.setdefault(int(str(view["position"])), []).append(float(str(view["estimated_wait_seconds"])))
            if len(seen) == 1 and len(seen[3]) == 1:
                queue = (await rest.get("/api/v1/scheduler/queue")).json()
                entries = {entry["task_id"]: entry for entry in queue["priorities"][Priority.NORMAL]["tasks"]}
                assert [entries[task]["position"] for task in others] == [1, 2, 3]
                waits = [entries[task]["estimated_wait_seconds"] for task in others]
                # One slot: each waits for one task more, up to the noise of a machine at work.
                assert all(0.7 * SECONDS < later - sooner < 3 * SECONDS for sooner, later in pairwise(waits))
            await asyncio.sleep(0.05)
        assert list(seen) == [3, 2, 1], "one place for each task that ends"
        began = [waits[0] for waits in seen.values()]
        assert began == sorted(began, reverse=True)
        assert all(waits[-1] < waits[0] for waits in seen.values()), "the wait shrinks while a task in front runs"
        assert seen[1][-1] < SECONDS < seen[3][0], seen
        view = await look(rest, others[-1])
        assert (view["position"], view["estimated_wait_seconds"]) == (None, None)

    async def gateway() -> None:
        app = create_app(bench.settings())
        async with app.router.lifespan_context(app):
            service: Service = app.state.service
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=60) as rest:
                assert isinstance(service.tasks, DurableTasks)
                await scene(service.tasks, rest)

    asyncio.run(gateway())
