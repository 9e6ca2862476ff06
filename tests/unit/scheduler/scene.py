"""A machine that keeps its books, with an owner of its residents and clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forcefields.cost import Cost
from forcegate.errors import ForcegateError, ServerUnavailable
from frontend.scheduler.device import Device
from frontend.scheduler.follower import Follower
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.owner import Owner
from frontend.scheduler.policy import Policy
from frontend.scheduler.server import Server

SIZE, BUDGET = 300, 1000
EDGES_PER_MB = 100
COST = Cost(seconds_per_pass=1e-3, seconds_per_atom=1e-5, seconds_per_edge=1e-7, bytes_per_edge=2**20 / EDGES_PER_MB, edges=10**6)
NAMES = [f"m{k}" for k in range(8)]


REPLICAS = Policy(margin_mb=0, models_per_device=16, instances=2, replica_sustained_seconds=0.3, hold=0.0)


async def becomes(condition: Callable[[], bool]) -> None:
    """Returns when the condition has come true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Books:
    """A machine that says what is on it, and what was most on it."""

    def __init__(self) -> None:
        self.there: dict[str, int] = {}
        self.work_mb = self.most = 0
        self.load_seconds = self.scale_seconds = 0.002
        self.placed: dict[str, dict[str, int]] = {}
        self.unsteady: set[str] = set()
        self.loads: Counter[str] = Counter()
        self.unloads: Counter[str] = Counter()
        self.failing: dict[str, ForcegateError] = {}
        self.hanging: set[str] = set()
        self.keeping: set[str] = set()
        self.clinging: set[str] = set()
        self.ended: list[str] = []
        self.in_use: Counter[str] = Counter()

    async def load(self, model: str, device: Device, dtype: str) -> None:  # noqa: ARG002
        self.loads[model] += 1
        self.there[model] = SIZE // 2
        await asyncio.sleep(self.load_seconds)
        if model in self.hanging:
            await asyncio.sleep(60)
        if model in self.failing:
            del self.there[model]
            raise self.failing[model]
        self.there[model], self.placed[model] = SIZE, {device.id: 1}
        self.count()

    def count(self, work_mb: int = 0) -> None:
        """Something has come, or so much work begins."""
        self.work_mb += work_mb
        self.most = max(self.most, sum(self.there.values()) + self.work_mb)

    async def unload(self, model: str) -> None:
        assert not self.in_use[model], "unloaded with work in flight"
        self.unloads[model] += 1
        await asyncio.sleep(0.002)
        if model not in self.keeping:
            del self.there[model]

    async def scale(self, model: str, instances: Sequence[tuple[Device, int]]) -> None:
        wanted = {device.id: count for device, count in instances}
        before = self.placed.get(model, {})
        await asyncio.sleep(self.scale_seconds)
        if sum(wanted.values()) > sum(before.values()) and model in self.failing:
            raise self.failing[model]
        if sum(wanted.values()) < sum(before.values()) and model in self.clinging:
            raise ServerUnavailable("Triton does not answer.")
        self.placed[model], self.there[model] = wanted, SIZE * sum(wanted.values())
        self.count()

    def processes(self, model: str) -> int:
        return sum(self.placed.get(model, {}).values()) if model in self.there else 0

    def steady(self, model: str) -> bool:
        return model not in self.unsteady

    def look(self) -> None:
        """What holds memory is known at all times here."""

    def held_mb(self, model: str, device: Device) -> int:
        if self.processes(model) > 1 and model in self.there:
            return SIZE * self.placed[model].get(device.id, 0)
        return self.there.get(model, 0)

    def end(self, model: str) -> None:
        self.ended.append(model)
        self.there.pop(model, None)

    def cost(self, model: str) -> Cost:  # noqa: ARG002
        return COST

    def family(self, model: str) -> str:  # noqa: ARG002
        return "family"


class Scene:
    """An owner, its server in a folder, and clients of it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.books, self.folder, self.two = Books(), folder, options.pop("two", False)
        policy = options.pop("policy", Policy(margin_mb=0, models_per_device=16))
        self.owner = Owner(self.books, self.devices, policy, Footprints(folder / "footprints.json"), **options)
        self.server = Server(self.owner, folder, self.nothing, lambda: {"models": {}}, {})
        self.tasks: list[asyncio.Task[None]] = []

    def devices(self) -> list[Device]:
        if self.two:
            return [Device(f"gpu-{k}", k, "gpu", "GPU", BUDGET, 0) for k in range(2)]
        return [Device("cpu", 0, "cpu", "CPU", BUDGET, sum(self.books.there.values()))]

    async def nothing(self) -> None:
        return

    async def start(self) -> None:
        self.tasks.append(asyncio.create_task(self.server.run()))
        await asyncio.sleep(0)

    async def follower(self) -> tuple[Follower, asyncio.Task[None]]:
        made = Follower(self.folder, "test")
        task = asyncio.create_task(made.run())
        self.tasks.append(task)
        async with asyncio.timeout(5):
            while not made.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return made, task

    async def use(
        self, follower: Follower, *models: str, seconds: float = 5.0, work: float = 0.0, priority: int = 1, edges: int = 0
    ) -> None:
        until, sizes = asyncio.get_running_loop().time() + seconds, dict.fromkeys(models, edges)
        async with follower.hold(models, until, priority, sizes):
            assert all(self.books.there.get(model, 0) >= SIZE for model in models), "granted before it was there"
            self.books.in_use.update(models)
            self.books.count(edges // EDGES_PER_MB)
            try:
                await asyncio.sleep(work)
            finally:
                self.books.in_use.subtract(models)
                self.books.work_mb -= edges // EDGES_PER_MB

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
