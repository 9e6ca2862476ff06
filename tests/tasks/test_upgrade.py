"""A new version of the service beside the old one, on the same database: tasks go on in it when the old one stops."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from ase.build import bulk

from forcegate.client import Client
from tests.service import serving, stop, wait_until

TASKS = 3
DYNAMICS = {
    "ensemble": "nve",
    "temperature": 30.0,
    "timestep": 2.0,
    "equilibration_steps": 100,
    "production_steps": 3000,
    "sample_interval": 50,
}


def test_tasks_go_on_in_the_new_service_when_the_old_one_stops(tmp_path: Path) -> None:
    common = {"database_url": f"sqlite:///{tmp_path / 'tasks.sqlite'}", "task_state_seconds": 0.5, "drain_seconds": 20}
    atoms = bulk("Ar", cubic=True, a=5.26) * (2, 2, 2)

    def submit(client: Client, seed: int) -> str:
        accepted = client.submit("stability", atoms, "lj-argon", seed=seed, options={"idempotency_key": str(seed)}, **DYNAMICS)
        return str(accepted["task_id"])

    with serving(tmp_path / "old", ("lj-argon",), **common) as old, Client(old.url) as client:
        tasks = [submit(client, seed) for seed in range(TASKS)]

        def under_way() -> bool:
            return all(((client.task(task)["progress"] or {}).get("steps_seen", 0)) > 300 for task in tasks)

        # The new one starts while the old one works.
        with serving(tmp_path / "new", ("lj-argon",), **common) as new, Client(new.url) as later:
            wait_until(under_way, "they are not under way", 120)
            mine = {client.task(task)["worker"] for task in tasks}
            assert stop(old) == 0
            assert [submit(later, seed) for seed in range(TASKS)] == tasks, "the same keys are the same tasks"
            # One that is never interrupted, beside them: it comes to the same numbers.
            undisturbed = later.submit("stability", atoms, "lj-argon", seed=0, **DYNAMICS)
            results = [later.wait(task, 600) for task in tasks]
            for seed, task in enumerate(tasks):
                view = later.task(task)
                assert view["status"] == "COMPLETED"
                finals = [event for event in later.events(task) if event.get("status") == "COMPLETED"]
                assert len(finals) == 1, "nobody finished it a second time"
                assert results[seed]["seed"] == seed
            taken_over = [view for view in map(later.task, tasks) if view["attempt"] > 1 and view["worker"] not in mine]
            assert taken_over, "nothing was under way when the old one stopped"
            for view in taken_over:
                # It went on: the steps of both attempts are those of one run and the few since the last state. From its beginning
                # it would have made the 300 of above twice.
                assert view["progress"]["steps_seen"] < 3101 + 300, view
            assert len(later.tasks(limit=100)) == TASKS + 1
            again = later.wait(undisturbed["task_id"], 120)
            assert again["mean_energy"] == pytest.approx(results[0]["mean_energy"], rel=1e-6)
            assert httpx.get(f"{new.url}/ready").status_code == 200
