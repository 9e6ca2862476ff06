"""The scheduler's own placement, order and quarantine over simulated devices and time.

Discrete events: tasks arrive, models are loaded, work ends, devices fail and come back. Work of several models on one device shares
its speed equally, as time slices do. Only devices, work and time are simulated; each decision is made by ``frontend/scheduler``.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from frontend.scheduler.cluster import Cluster
from frontend.scheduler.device import Device
from frontend.scheduler.order import Order, Waiting
from frontend.scheduler.policy import PRIORITIES, Policy
from frontend.scheduler.quarantine import Ward

GPU_MB = 80 * 1024


@dataclass(frozen=True)
class Model:
    """A model of the simulation: memory, time to load, and how often it is asked for."""

    name: str
    base_mb: int
    load_seconds: float
    weight: float


@dataclass(frozen=True)
class Task:
    """A task: its work is in seconds of a whole device."""

    id: int
    model: str
    arrival: float
    seconds: float
    work_mb: int
    priority: int


@dataclass(frozen=True)
class Failure:
    """A device is lost for some time."""

    device: int
    at: float
    seconds: float


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    devices: int
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    failures: tuple[Failure, ...]


def scenario(
    devices: int = 8, models: int = 40, tasks: int = 10_000, load: float = 0.95, failures: int = 12, seed: int = 1
) -> Scenario:
    """A laboratory's days: log-normal sizes, a few models that everybody uses, bursts, devices that fail.

    Args:
        load: work that arrives, over what all devices can do, on average.
    """
    random = np.random.default_rng(seed)
    bases = random.uniform(1000, 12_000, models)
    popularity = 1.0 / np.arange(1, models + 1)
    known = tuple(
        Model(f"model-{n:02d}", int(base), float(3.0 + base / 1000), float(weight))
        for n, (base, weight) in enumerate(zip(bases, random.permutation(popularity), strict=True))
    )
    seconds = random.lognormal(math.log(20.0), 1.0, tasks)
    memory = np.minimum(random.lognormal(math.log(3000.0), 1.0, tasks), 60_000).astype(int)
    chosen = random.choice(models, tasks, p=popularity_of(known))
    # Bursts: a tenth of the arrivals begin a group of tasks of one model that come within a second.
    span = float(seconds.sum() / devices / load)
    arrivals = np.sort(random.uniform(0, span, tasks))
    at = 0
    while at < tasks:
        if random.random() < 0.02:
            size = min(int(random.integers(5, 60)), tasks - at)
            arrivals[at : at + size] = arrivals[at] + np.arange(size) / size
            chosen[at : at + size] = chosen[at]
            at += size
        else:
            at += 1
    priorities = random.choice(len(PRIORITIES), tasks, p=(0.02, 0.18, 0.6, 0.2))
    made = sorted(
        (
            Task(n, known[chosen[n]].name, float(arrivals[n]), float(seconds[n]), int(memory[n]), int(priorities[n]))
            for n in range(tasks)
        ),
        key=lambda task: task.arrival,
    )
    broken = tuple(
        Failure(int(random.integers(devices)), float(random.uniform(0.05, 0.9) * span), float(random.uniform(60, 1200)))
        for _ in range(failures)
    )
    return Scenario(devices, known, tuple(made), broken)


def popularity_of(models: tuple[Model, ...]) -> np.ndarray:
    """The probability that a task asks for each model."""
    weights = np.array([model.weight for model in models])
    return weights / weights.sum()


@dataclass
class Outcome:
    """What came out: for each task its wait in s, for the whole the end in s; samples over time for a plot."""

    waits: dict[int, float] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    loads: int = 0
    evictions: int = 0
    lost: int = 0
    end: float = 0.0
    violations: list[str] = field(default_factory=list)
    decision_seconds: list[float] = field(default_factory=list)
    samples: list[tuple[float, list[float], list[int], int]] = field(default_factory=list)
    stays: list[tuple[int, str, float, float]] = field(default_factory=list)


@dataclass
class _Running:
    """Work in flight: what is left of it, in seconds of a whole device."""

    task: Task
    waiting: Waiting
    left: float


class Simulation:
    """One run of a scenario.

    Args:
        check: whether the invariants are checked after every pass; what is broken is in the outcome.
    """

    def __init__(self, scenario: Scenario, policy: Policy | None = None, check: bool = True) -> None:
        self.scenario, self.check = scenario, check
        self.policy = policy or Policy()
        devices = [Device(f"gpu-{n:04d}", n, "gpu", "simulated", GPU_MB, 0, 0.0, 40.0) for n in range(scenario.devices)]
        self.cluster = Cluster(devices, self.policy)
        self.order = Order(self.cluster)
        self.ward = Ward()
        self.models = {model.name: model for model in scenario.models}
        self.tasks = {task.id: task for task in scenario.tasks}
        self.running: list[dict[str, _Running]] = [{} for _ in devices]
        self.changed = [0.0] * scenario.devices
        self.version = [0] * scenario.devices
        self.generation = [0] * scenario.devices
        self.since: dict[tuple[int, str], float] = {}
        self.outcome = Outcome()
        self._events: list[tuple[float, int, str, tuple[object, ...]]] = []
        self._number = itertools.count()

    def run(self) -> Outcome:
        """Runs to the end."""
        for task in self.scenario.tasks:
            self._at(task.arrival, "arrive", task)
        for failure in self.scenario.failures:
            self._at(failure.at, "fail", failure)
        while self._events:
            now = self._events[0][0]
            while self._events and self._events[0][0] <= now:
                _, _, kind, arguments = heapq.heappop(self._events)
                getattr(self, f"_{kind}")(now, *arguments)
            self._pass(now)
            if self.check:
                self._invariants(now)
            self._sample(now)
        for (at, model), begun in self.since.items():
            self.outcome.stays.append((at, model, begun, self.outcome.end))
        return self.outcome

    # Events.

    def _arrive(self, now: float, task: Task) -> None:
        self.order.push(Waiting(task.id, task.model, self.models[task.model].base_mb, task.work_mb, task.priority, now))

    def _ready(self, now: float, at: int, model: str, generation: int) -> None:
        if generation == self.generation[at] and model in self.cluster.residents[at]:
            self.cluster.loaded(model, at, now)

    def _ended(self, now: float, at: int, version: int) -> None:
        if version != self.version[at]:
            return
        self._advance(at, now)
        for model, work in list(self.running[at].items()):
            if work.left <= 1e-6:
                del self.running[at][model]
                self.cluster.finish(model, at, work.task.work_mb, now)
                self.outcome.ends[work.task.id] = self.outcome.end = now
        self._plan(at, now)

    def _fail(self, now: float, failure: Failure) -> None:
        at = failure.device
        self._advance(at, now)
        device = self.cluster.devices[at].id
        self.ward.fault(device, "lost", now)
        self.cluster.bar(device, "lost")
        for work in self.running[at].values():
            self.outcome.lost += 1
            self.order.push(work.waiting, again=True)
        self.running[at].clear()
        self.generation[at] += 1
        for model in list(self.cluster.residents[at]):
            self._gone(at, model, now)
        self._plan(at, now)
        self._at(now + failure.seconds, "return", failure)

    def _return(self, now: float, failure: Failure) -> None:
        health = self.ward.of(self.cluster.devices[failure.device].id)
        health.tick(now)
        if health.takes_work:
            self.cluster.bar(self.cluster.devices[failure.device].id, "")
        else:
            self._at(health.until, "return", failure)

    def _wake(self, _now: float) -> None:
        """A pass is made after every event."""

    # What the decisions lead to.

    def _pass(self, now: float) -> None:
        steps = self.order.dispatch(now)
        while True:
            begun = time.process_time()
            step = next(steps, None)
            self.outcome.decision_seconds.append(time.process_time() - begun)
            if step is None:
                break
            task, model, decision = step
            at = decision.at
            for victim in decision.evictions:
                self.cluster.remove(victim, at)
                self.outcome.evictions += 1
                self._gone(at, victim, now)
            if task is None:
                self.outcome.loads += 1
                self.cluster.load(model, at, self.models[model].base_mb, now)
                self.since[at, model] = now
                self._at(now + self.models[model].load_seconds, "ready", at, model, self.generation[at])
            else:
                self._begin(task, at, now)
        if len(self.order) and not any(self.running) and not self._events:
            # Nothing else will happen: what holds the rest up is time itself.
            self._at(now + 1.0, "wake")

    def _begin(self, task: Waiting, at: int, now: float) -> None:
        self._advance(at, now)
        if self.check and task.model in self.running[at]:
            self.outcome.violations.append(f"two tasks on one instance of {task.model}")
        self.cluster.start(task.model, at, task.work_mb, now)
        whole = self.tasks[task.id]
        self.running[at][task.model] = _Running(whole, task, whole.seconds)
        self.outcome.waits.setdefault(task.id, now - whole.arrival)
        self._plan(at, now)

    def _gone(self, at: int, model: str, now: float) -> None:
        self.cluster.remove(model, at)
        self.outcome.stays.append((at, model, self.since.pop((at, model)), now))

    def _advance(self, at: int, now: float) -> None:
        """Work of one device shares its speed."""
        there = self.running[at]
        for work in there.values():
            work.left -= (now - self.changed[at]) / len(there)
        self.changed[at] = now

    def _plan(self, at: int, now: float) -> None:
        self.version[at] += 1
        there = self.running[at]
        if there:
            left = min(work.left for work in there.values()) * len(there)
            self._at(now + max(left, 0.0), "ended", at, self.version[at])

    def _at(self, when: float, kind: str, *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._number), kind, arguments))

    # What must hold.

    def _invariants(self, now: float) -> None:
        broken = self.outcome.violations
        cluster, policy = self.cluster, self.policy
        for at, there in enumerate(cluster.residents):
            held = sum(resident.base_mb for resident in there.values())
            held += sum(work.task.work_mb for work in self.running[at].values())
            if held > GPU_MB - policy.margin_mb:
                broken.append(f"{now:.0f} s: {held} MB on a device of {GPU_MB}")
            if len(there) > policy.models_per_device:
                broken.append(f"{now:.0f} s: {len(there)} models on one device")
            if at in cluster.barred and there:
                broken.append(f"{now:.0f} s: work on a lost device")
        # Nobody waits behind somebody else's obstacle: no head of a queue could begin at this moment.
        for task in self.order.heads(now):
            for at, resident in cluster.homes(task.model).items():
                fits = cluster.room_at(at) >= task.work_mb and resident.loaded and not resident.in_flight and not resident.leaving
                if fits and cluster.usable[at]:
                    broken.append(f"{now:.0f} s: {task.model} could begin on {at}")
            if not cluster.homes(task.model):
                room = cluster.usable & (cluster.count < policy.models_per_device)
                if (room & (cluster.room() >= task.base_mb + task.work_mb)).any():
                    broken.append(f"{now:.0f} s: {task.model} could be loaded")

    def _sample(self, now: float) -> None:
        if self.outcome.samples and now - self.outcome.samples[-1][0] < 60.0:
            return
        busy = [float(len(there) > 0) for there in self.running]
        self.outcome.samples.append((now, busy, [int(held) for held in self.cluster.held], len(self.order)))


def fluid_end(scenario: Scenario) -> float:
    """When the last task would end at the earliest, in s: no scheduler can be faster.

    All devices that are not lost work without a pause on whatever has arrived, split at will, and loading costs nothing. Whatever
    arrives from some moment on has to be done after it, so that the latest such bound over all moments counts.
    """
    arrivals = np.array([task.arrival for task in scenario.tasks])
    remaining = np.cumsum(np.array([task.seconds for task in scenario.tasks])[::-1])[::-1]
    return max(_worked_off(scenario, float(at), float(work)) for at, work in zip(arrivals[::10], remaining[::10], strict=True))


def _worked_off(scenario: Scenario, start: float, work: float) -> float:
    """When ``work`` that begins at ``start`` is done by all devices that are there."""
    changes = defaultdict(int)
    for device in range(scenario.devices):
        lost = sorted((f.at, f.at + f.seconds) for f in scenario.failures if f.device == device)
        until = -math.inf
        for begun, ended in lost:  # times of one device that overlap are one
            begun = max(begun, until)
            if ended > begun:
                changes[begun] -= 1
                changes[ended] += 1
                until = ended
    now, speed, left = start, scenario.devices + sum(step for at, step in changes.items() if at <= start), work
    for at in sorted(moment for moment in changes if moment > start):
        if left <= speed * (at - now):
            break
        left -= speed * (at - now)
        now, speed = at, speed + changes[at]
    return now + left / max(speed, 1)


def backlog_seconds(scenario: Scenario) -> float:
    """The longest that work has to wait when all devices work without a pause and without loads, first come, first served, in s."""
    left = longest = 0.0
    before = 0.0
    for task in scenario.tasks:
        left = max(left - scenario.devices * (task.arrival - before), 0.0) + task.seconds
        before = task.arrival
        longest = max(longest, left / scenario.devices)
    return longest
