"""A database of tasks for a test, its gateway's side, and worker processes that the test may kill."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from frontend.settings import PREFIX, Settings
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Event, Options, Status, View
from tests.tasks.worker import begin

_Answer = TypeVar("_Answer")

PATIENCE_SECONDS = 90.0
"""For anything that a test waits for; machines that run tests are slow at times."""
QUICK = {"task_beat_seconds": 0.5, "task_lease_seconds": 5.0, "task_state_seconds": 0.2, "task_poll_seconds": 0.05}
"""Leases short enough for tests, and long enough for a machine that runs many of them."""
READY = get_context("forkserver")
"""A process that has imported what a worker imports, which takes seconds, and becomes one by a fork; each test starts several."""
READY.set_forkserver_preload(["tests.tasks.worker", "dbos"])


@dataclass
class WorkerProcess:
    """A worker that a test started."""

    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def ready(self) -> bool:
        """Whether it takes tasks."""
        assert self.process.is_alive(), self.log.read_text()
        return "worker is ready" in self.log.read_text()

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self.process.kill()
        self.process.join()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGTERM, and waits for the end."""
        self.send(signal.SIGCONT)
        self.process.terminate()
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode == 0, self.log.read_text()


@dataclass
class Bench:
    """The tasks of one database. ``changed`` are settings of this bench, for all of its processes."""

    state: Path
    database_url: str
    changed: dict[str, Any] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)

    def settings(self, **more: Any) -> Settings:
        """The settings."""
        return Settings(**{"state": self.state, "database_url": self.database_url, **QUICK, **self.changed, **more})

    def start(self, **more: Any) -> WorkerProcess:
        """Starts a worker; ``wait_ready`` waits until it takes tasks."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | {"OMP_NUM_THREADS": "1"}
        values = {"state": self.state, "database_url": self.database_url, **QUICK, **self.changed, **more}
        variables |= {PREFIX + name.upper(): str(value) for name, value in values.items()}
        self.state.mkdir(parents=True, exist_ok=True)
        log = self.state / f"worker-{len(self.workers)}.log"
        process = READY.Process(target=begin, args=(variables, log))
        log.touch()
        process.start()
        worker = WorkerProcess(process, log)
        self.workers.append(worker)
        return worker

    def start_ready(self, **more: Any) -> WorkerProcess:
        """Starts a worker and waits until it takes tasks."""
        worker = self.start(**more)
        until(lambda: worker.ready)
        return worker

    def close(self) -> None:
        """Ends all workers."""
        for worker in self.workers:
            if worker.process.is_alive():
                worker.kill()

    def run(self, use: Callable[[DurableTasks], Awaitable[_Answer]], clock: Callable[[], float] = time.time) -> _Answer:
        """What ``use`` does with the tasks, as a gateway would."""

        async def main() -> _Answer:
            tasks = DurableTasks(self.settings(), clock)
            try:
                return await use(tasks)
            finally:
                await tasks.close()

        return asyncio.run(main())


async def submit(tasks: DurableTasks, kind: str, parameters: dict[str, Any], **options: Any) -> View:
    """A task of the user ``ada``."""
    return await tasks.submit(kind, parameters, ["none"], Options(**options), "ada")


async def finished(tasks: DurableTasks, task: str, seconds: float = PATIENCE_SECONDS) -> View:
    """The task at its end."""
    view = await tasks.wait(task, seconds)
    assert view.status.final, view
    return view


async def completed(tasks: DurableTasks, task: str, seconds: float = PATIENCE_SECONDS) -> View:
    """The task, which has to have succeeded."""
    view = await finished(tasks, task, seconds)
    assert view.status is Status.COMPLETED, view
    return view


async def reaches(tasks: DurableTasks, task: str, steps: int) -> View:
    """The task as soon as its progress has seen so many steps."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        view = await tasks.view(task)
        if view.progress is not None and view.progress["steps_seen"] >= steps:
            return view
        assert not view.status.final, view
        assert time.monotonic() < deadline, view
        await asyncio.sleep(0.05)


async def all_events(tasks: DurableTasks, task: str, after: int = 0) -> list[Event]:
    """The events until the end."""
    return [event async for event in tasks.events(task, after)]


def until(condition: Callable[[], bool]) -> None:
    """Waits for ``condition``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
