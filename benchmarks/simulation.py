"""The scheduler that serves, in simulated time: its owner, the socket and the followers, and the order in which workers take tasks.

Everything that decides is the code that runs in a service; simulated are the devices, the loads, the work and the clock
(``benchmarks/scenario.py`` has the tasks). Workers carry out so many tasks at once, each a sequence of calls that hold their model,
and an instance evaluates one call after the other.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenario import GPU_MB, Failure, Outcome, Scenario, Task
from benchmarks.virtual import VirtualLoop
from forcefields.cost import Cost
from forcegate.errors import ForcegateError, ModelNotReady, ServerUnavailable
from frontend.scheduler.device import Device
from frontend.scheduler.follower import Follower
from frontend.scheduler.footprint import MB, Footprints
from frontend.scheduler.owner import Owner
from frontend.scheduler.policy import TASK_PRIORITY, Policy
from frontend.scheduler.replicas import Seen
from frontend.scheduler.server import Server
from frontend.tasks.order import EPOCH, LOOKED_AT, Candidate, choose, rank
from frontend.tasks.task import Priority

EDGES_PER_MB = 10
COST = Cost(0.0, 0.0, 0.0, bytes_per_edge=MB / EDGES_PER_MB, edges=10**9)
CALL_SECONDS = 5.0
"""The longest call of a task; a worker gives its model back after each."""
TICK_SECONDS = 2.0
UNLOAD_SECONDS = 0.5
FOLLOWERS = 2
SAMPLE_SECONDS = 20.0


@dataclass(eq=False)
class Call:
    """What is left of one call, in s of a whole device, and the MB that it takes."""

    left: float
    mb: int
    done: asyncio.Future[None]
    device: int = -1


class Devices:
    """GPUs, what is on them, and what they compute: the machine of the owner. Calls on one device share its speed equally."""

    def __init__(self, made: Scenario, policy: Policy) -> None:
        self._loop, self._most = asyncio.get_running_loop(), GPU_MB - policy.margin_mb
        self.models = {model.name: model for model in made.models}
        self.held: dict[str, Counter[int]] = defaultdict(Counter)
        self.ready: dict[str, Counter[int]] = defaultdict(Counter)
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.queues: dict[str, list[tuple[int, int, Call]]] = defaultdict(list)
        self.lost: set[int] = set()
        self.loads = 0
        self.violations: list[str] = []
        self._numbers = itertools.count()
        self._changed = [0.0] * made.devices
        self._timers: list[asyncio.TimerHandle | None] = [None] * made.devices

    # What the owner sees and does (``frontend.scheduler.carrier.Machine``).

    def devices(self) -> list[Device]:
        """One reading of all."""
        return [
            Device(
                f"gpu-{at:04d}", at, "gpu", "simulated", GPU_MB, self._used(at), 0.0, 40.0, (), "lost" if at in self.lost else ""
            )
            for at in range(len(self._changed))
        ]

    async def load(self, model: str, device: Device, dtype: str) -> None:  # noqa: ARG002
        """See ``Machine``."""
        self.loads += 1
        self.held[model][device.index] += 1
        self._check(device.index)
        await asyncio.sleep(self.models[model].load_seconds)
        if device.index in self.lost:
            self.end(model)
            raise ModelNotReady("Its device was lost.")
        self.ready[model][device.index] += 1

    async def unload(self, model: str) -> None:
        """See ``Machine``."""
        if self.calls[model] or self.queues[model]:
            self.violations.append(f"{self._loop.time():.0f} s: {model} is unloaded with work in flight")
        await asyncio.sleep(UNLOAD_SECONDS)
        self.end(model)

    async def scale(self, model: str, instances: Sequence[tuple[Device, int]]) -> None:
        """See ``Machine``."""
        wanted = Counter({device.index: count for device, count in instances})
        new, old = wanted - self.held[model], self.held[model] - wanted
        if new:
            self.held[model] += new
            for at in new:
                self._check(at)
            try:
                await asyncio.sleep(self.models[model].load_seconds)
                if self.lost & new.keys() or not self.ready[model]:
                    raise ModelNotReady("Its device was lost.")
            except BaseException:  # given up, too
                self.held[model] -= new
                raise
            self.ready[model] += new
        self.ready[model] -= old
        while any(len(self._on(at, model)) > self.ready[model][at] for at in old):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.held[model] -= old
        self._next(model)

    def steady(self, model: str) -> bool:
        """See ``Machine``."""
        return bool(self.ready[model])

    def processes(self, model: str) -> int:
        """See ``Machine``."""
        return self.held[model].total()

    def look(self) -> None:
        """See ``Machine``. What there is is known at all times here."""

    def held_mb(self, model: str, device: Device) -> int:
        """See ``Machine``."""
        work = sum(call.mb for call in self._on(device.index, model))
        return self.models[model].base_mb * self.held[model][device.index] + work

    def end(self, model: str) -> None:
        """See ``Machine``."""
        self.held[model].clear()
        self.ready[model].clear()

    def cost(self, model: str) -> Cost:  # noqa: ARG002
        """See ``Machine``."""
        return COST

    def family(self, model: str) -> str:
        """See ``Machine``."""
        return model

    # What work does.

    async def compute(self, model: str, seconds: float, mb: int, priority: int) -> None:
        """One call.

        Raises:
            ServerUnavailable: the device of an instance is lost meanwhile.
        """
        if not self.ready[model]:
            raise ServerUnavailable("It is gone.")
        call = Call(seconds, mb, self._loop.create_future())
        heapq.heappush(self.queues[model], (priority, next(self._numbers), call))
        self._next(model)
        await call.done

    def waits(self) -> Mapping[str, float]:
        """Seconds that new work waits for an instance, by model."""
        return {
            model: sum(call.left for _, _, call in queue) / max(self.ready[model].total(), 1)
            for model, queue in self.queues.items()
            if queue
        }

    def lose(self, at: int) -> None:
        """A device is lost, and the models that had an instance there with all that they computed."""
        self.lost.add(at)
        for model in [model for model, there in self.held.items() if there[at]]:
            calls = self.calls.pop(model, [])
            for device in {call.device for call in calls}:
                self._advance(device)
            for call in [*calls, *(call for _, _, call in self.queues.pop(model, []))]:
                call.done.set_exception(ServerUnavailable("Its device was lost."))
            self.end(model)
            for device in {call.device for call in calls}:
                self._plan(device)

    def there(self) -> set[tuple[int, str]]:
        """Devices and the models that they hold."""
        return {(at, model) for model, held in self.held.items() for at, count in held.items() if count}

    def busy(self) -> list[bool]:
        """Which devices compute."""
        return [bool(self._on(at)) for at in range(len(self._changed))]

    def used_mb(self) -> list[int]:
        """What each device holds."""
        return [self._used(at) for at in range(len(self._changed))]

    def _on(self, at: int, model: str = "") -> list[Call]:
        calls = [self.calls[model]] if model else [each for each in self.calls.values() if each]
        return [call for each in calls for call in each if call.device == at]

    def _used(self, at: int) -> int:
        held = sum(self.models[model].base_mb * there[at] for model, there in self.held.items())
        return held + sum(call.mb for call in self._on(at))

    def _check(self, at: int) -> None:
        if (used := self._used(at)) > self._most:
            self.violations.append(f"{self._loop.time():.0f} s: {used} MB on device {at}, where {self._most} may be")

    def _next(self, model: str) -> None:
        """Free instances begin with what waits."""
        while self.queues[model]:
            ready = self.ready[model]
            free = [(len(self._on(at)), at) for at, count in ready.items() if count > len(self._on(at, model))]
            if not free:
                return
            _, _, call = heapq.heappop(self.queues[model])
            call.device = min(free)[1]
            self._advance(call.device)
            self.calls[model].append(call)
            self._check(call.device)
            self._plan(call.device)

    def _advance(self, at: int) -> None:
        now, there = self._loop.time(), self._on(at)
        for call in there:
            call.left -= (now - self._changed[at]) / len(there)
        self._changed[at] = now

    def _plan(self, at: int) -> None:
        if (timer := self._timers[at]) is not None:
            timer.cancel()
        there = self._on(at)
        left = min((call.left for call in there), default=0.0) * len(there)
        self._timers[at] = self._loop.call_later(max(left, 0.0), self._ended, at) if there else None

    def _ended(self, at: int) -> None:
        self._timers[at] = None
        self._advance(at)
        for model, calls in list(self.calls.items()):
            for call in [call for call in calls if call.device == at and call.left <= 1e-6]:
                calls.remove(call)
                call.done.set_result(None)
            self._next(model)
        self._plan(at)


class Simulation:
    """One run of a scenario. All workers together carry out ``slots`` tasks at once; a worker has 32 of them by default."""

    def __init__(self, made: Scenario, folder: Path, policy: Policy | None = None, slots: int = 64) -> None:
        self._made, self._folder, self._policy, self._slots = made, folder, policy or Policy(), slots
        self._waiting: list[tuple[int, int, Task]] = []
        self._passed: dict[int, float] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Runs to the end."""
        loop = VirtualLoop()
        try:
            loop.run_until_complete(self._whole())
        finally:
            loop.close()
        return self.outcome

    async def _whole(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._devices, known = Devices(self._made, self._policy), Footprints()
        for model in self._made.models:  # as after the first day of a service
            known.loaded(model.name, "gpu", model.base_mb)
        self._owner = Owner(self._devices, self._devices.devices, self._policy, known, clock=self._clock)
        server = Server(self._owner, self._folder, self._observe, lambda: {"models": {}}, {}, TICK_SECONDS)
        background = [asyncio.create_task(server.run())]
        self._followers = [Follower(self._folder, "worker", self._clock) for _ in range(FOLLOWERS)]
        self._followers[0].waiting = self._devices.waits
        background += [asyncio.create_task(each.run()) for each in self._followers]
        while not all(each.connected for each in self._followers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        background += [asyncio.create_task(self._fail(failure)) for failure in self._made.failures]
        background.append(asyncio.create_task(self._sample()))
        for task in self._made.tasks:
            await asyncio.sleep(max(task.arrival - self._clock(), 0.0))
            bisect.insort(self._waiting, (rank(list(Priority)[task.priority], EPOCH + task.arrival), task.id, task))
            self._dispatch()
        while len(self.outcome.ends) < len(self._made.tasks):  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        self.outcome.end, self.outcome.loads = max(self.outcome.ends.values()), self._devices.loads
        self.outcome.violations, self.outcome.evictions = self._devices.violations, self._owner.tally.evictions.total()
        for each in background:
            each.cancel()
        await asyncio.gather(*background, return_exceptions=True)

    async def _observe(self) -> None:
        """What a supervisor finds out."""
        for model, calls in self._devices.calls.items():
            self._owner.seen(model, Seen(0.0, len(calls)))
        for model, life in self._owner.lives.items():
            if life.residency.state == "resident" and not self._devices.held[model]:
                self._owner.lost(model, "lost")

    def _dispatch(self) -> None:
        """Free slots take tasks, as workers do."""
        while self._waiting and len(self._running) < self._slots:
            front = [task for _, _, task in self._waiting[:LOOKED_AT]]
            priorities = list(Priority)
            candidates = [
                Candidate(str(task.id), 1, (task.model,), priorities[task.priority], self._passed.get(task.id)) for task in front
            ]
            at = choose(candidates, self._resident, self._clock())
            for task in front[:at]:
                self._passed.setdefault(task.id, self._clock())
            task = self._waiting.pop(at)[2]
            running = asyncio.create_task(self._carry_out(task))
            self._running.add(running)
            running.add_done_callback(self._finished)

    def _finished(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._dispatch()

    def _resident(self, models: Sequence[str]) -> bool:
        return all(self._owner.life(model).state in ("resident", "loading") for model in models)

    async def _carry_out(self, task: Task) -> None:
        follower, left = self._followers[task.id % FOLLOWERS], task.seconds
        while left > 1e-9:
            seconds, edges = min(CALL_SECONDS, left), {task.model: task.work_mb * EDGES_PER_MB}
            try:
                async with follower.hold([task.model], math.inf, TASK_PRIORITY, edges):
                    self.outcome.waits.setdefault(task.id, self._clock() - task.arrival)
                    await self._devices.compute(task.model, seconds, task.work_mb, task.priority)
            except ForcegateError:
                self.outcome.lost += 1
                await asyncio.sleep(1.0)
                continue
            left -= seconds
        self.outcome.ends[task.id] = self._clock()

    async def _sample(self) -> None:
        since: dict[tuple[int, str], float] = {}
        while True:
            now, there = self._clock(), self._devices.there()
            self.outcome.samples.append((now, self._devices.busy(), self._devices.used_mb(), len(self._waiting)))
            for at, model in since.keys() - there:
                self.outcome.stays.append((at, model, since.pop((at, model)), now))
            for each in there - since.keys():
                since[each] = now
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _fail(self, failure: Failure) -> None:
        await asyncio.sleep(failure.at)
        self._devices.lose(failure.device)
        await asyncio.sleep(failure.seconds)
        self._devices.lost.discard(failure.device)
