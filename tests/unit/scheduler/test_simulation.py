"""The scheduler's own code over a day of simulated devices, with failures; benchmarks/scheduler.py runs the large one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulation import Outcome, Scenario, Simulation, backlog_seconds, fluid_end, scenario
from frontend.scheduler.policy import PRIORITIES, Policy


@pytest.fixture(scope="module")
def day() -> tuple[Scenario, Outcome]:
    made = scenario(tasks=1200, load=0.95, failures=3, seed=3)
    return made, Simulation(made).run()


def test_every_task_ends_and_no_invariant_is_broken(day: tuple[Scenario, Outcome]) -> None:
    made, outcome = day
    # Never over the margin, never two tasks on one instance, nobody held up by another's obstacle: after every single event.
    assert outcome.violations == []
    assert set(outcome.ends) == {task.id for task in made.tasks}


def test_throughput_is_at_least_nine_tenths_of_what_no_scheduler_can_exceed(day: tuple[Scenario, Outcome]) -> None:
    made, outcome = day
    assert 0.9 <= fluid_end(made) / outcome.end <= 1.0


def test_priorities_are_respected_and_nothing_starves(day: tuple[Scenario, Outcome]) -> None:
    made, outcome = day
    means = [np.mean([outcome.waits[t.id] for t in made.tasks if t.priority == level]) for level in range(len(PRIORITIES))]
    assert means == sorted(means)
    # Three times what first come, first served would take without loads and failures, and the longest patience.
    bound = 3 * backlog_seconds(made) + max(Policy().patience_seconds)
    assert max(outcome.waits.values()) <= bound


def test_tasks_share_loads(day: tuple[Scenario, Outcome]) -> None:
    made, outcome = day
    assert outcome.loads < 0.5 * len(made.tasks)
    assert outcome.lost > 0, "the failures did hit work in flight"
