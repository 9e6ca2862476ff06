"""The scheduler that serves, over hours of simulated devices that fail; ``benchmarks/scheduler.py`` runs days."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scenario import Outcome, Scenario, backlog_seconds, fluid_end, scenario
from benchmarks.scheduler import in_order
from benchmarks.simulation import Simulation
from frontend.scheduler.policy import PRIORITIES, Policy


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Outcome]:
    made = scenario(tasks=900, load=0.95, failures=3, seed=3)
    return made, Simulation(made, tmp_path_factory.mktemp("simulation"), Policy(instances=4)).run()


def test_every_task_ends_and_no_device_holds_more_than_it_may(hours: tuple[Scenario, Outcome]) -> None:
    made, outcome = hours
    assert outcome.violations == []
    assert set(outcome.ends) == {task.id for task in made.tasks}
    assert outcome.lost > 0, "the failures did hit work in flight"


def test_throughput_is_at_least_nine_tenths_of_what_no_scheduler_can_exceed(hours: tuple[Scenario, Outcome]) -> None:
    made, outcome = hours
    assert 0.9 <= fluid_end(made) / outcome.end <= 1.0


def test_nothing_starves_and_higher_priorities_wait_less(hours: tuple[Scenario, Outcome]) -> None:
    made, outcome = hours
    # Three times what first come, first served would take without loads and failures, and the longest patience.
    assert max(outcome.waits.values()) <= 3 * backlog_seconds(made) + max(Policy().patience_seconds)
    means = [np.mean([outcome.waits[task.id] for task in made.tasks if task.priority == level]) for level in range(len(PRIORITIES))]
    assert in_order(means), means
    assert means[0] < means[-1] / 2


def test_tasks_share_loads(hours: tuple[Scenario, Outcome]) -> None:
    made, outcome = hours
    assert outcome.loads < 0.5 * len(made.tasks)
