"""A laboratory's days for the scheduler: devices that fail, models, tasks; and what no scheduler could exceed on them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from frontend.scheduler.policy import PRIORITIES

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
    """What came out.

    Attributes:
        waits: of each task until its first call began, in s.
        ends: of each task.
        lost: calls whose device was lost, and that were made again.
        end: of the last task.
        violations: what must not be and was, in sentences.
        samples: time; for each device whether it computes, and the MB that it holds; tasks that wait.
        stays: which model was on which device: device, model, from, until.
    """

    waits: dict[int, float] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    loads: int = 0
    evictions: int = 0
    lost: int = 0
    end: float = 0.0
    violations: list[str] = field(default_factory=list)
    samples: list[tuple[float, list[bool], list[int], int]] = field(default_factory=list)
    stays: list[tuple[int, str, float, float]] = field(default_factory=list)


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
