"""The scheduler that serves, over hours of simulated devices that fail."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.living import Living
from benchmarks.simulation import Outcome, Scenario, scenario
from frontend.scheduler.policy import PRIORITIES, Policy
from frontend.tasks.order import DELAY_SECONDS


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Outcome]:
    made = scenario(tasks=300, load=0.6, failures=4, seed=11)
    return made, Living(made, tmp_path_factory.mktemp("living"), Policy(instances=4)).run()


def test_every_task_ends_and_no_device_holds_more_than_it_may(hours: tuple[Scenario, Outcome]) -> None:
    made, lived = hours
    assert lived.violations == []
    assert set(lived.ends) == {task.id for task in made.tasks}
    assert lived.lost > 0, "the failures did hit work in flight"


def test_nothing_starves_and_higher_priorities_wait_less(hours: tuple[Scenario, Outcome]) -> None:
    made, lived = hours
    assert max(lived.waits.values()) < max(DELAY_SECONDS.values())
    urgent, others = (
        np.mean([lived.waits[task.id] for task in made.tasks if task.priority in levels])
        for levels in (range(2), range(2, len(PRIORITIES)))
    )
    assert urgent < others


def test_tasks_share_loads(hours: tuple[Scenario, Outcome]) -> None:
    made, lived = hours
    assert lived.loads < 0.5 * len(made.tasks)
