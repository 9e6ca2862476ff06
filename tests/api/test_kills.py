"""kill -9 of the gateway, of tritonserver, and of everything at once, in the middle of relaxations and of dynamics."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.units import kB

from forcegate.structure import from_atoms, to_mapping
from tests.service import RunningService, serving

QUICK = {"task_beat_seconds": 0.5, "task_lease_seconds": 5, "task_state_seconds": 0.3}
RELAXATION = {"optimizer": "FIRE", "fmax": 1e-8, "fix_cell": True, "max_steps": 5000, "trajectory_interval": 20}
"""Of 500 atoms, to forces that nobody needs: it goes on for longer than all three kills take."""
DYNAMICS = {
    "ensemble": "nve",
    "temperature": 30,
    "timestep": 2.0,
    "equilibration_steps": 20,
    "production_steps": 400,
    "sample_interval": 20,
    "seed": 3,
}


def crystal(repeat: int, rattled: float = 0.0, seed: int = 1) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (repeat, repeat, repeat)
    if rattled:
        atoms.rattle(rattled, seed=seed)
    return atoms


def ask(service: RunningService, path: str, **body: Any) -> Any:
    """An answer of the service, as soon as there is somebody to give one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if body:
                answer = httpx.post(f"{service.url}/api/v1/{path}", json=body, timeout=30)
            else:
                answer = httpx.get(f"{service.url}/api/v1/{path}", timeout=30)
            if answer.status_code < 500:
                assert answer.status_code < 300, answer.text
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def seen(service: RunningService, task: str) -> int:
    """Steps that the task has made, as its worker has written them: the gateway may be away."""
    with closing(sqlite3.connect(service.state / "tasks.sqlite")) as database:
        row = database.execute("SELECT status, progress FROM forcegate_tasks WHERE id = ?", (task,)).fetchone()
    assert row[0] in ("QUEUED", "RUNNING"), row
    return int(json.loads(row[1] or "{}").get("steps_seen", 0))


def advanced(service: RunningService, tasks: list[str], steps: int) -> None:
    """Waits until each task has made some steps more."""
    before = {task: seen(service, task) for task in tasks}
    deadline = time.monotonic() + 60
    while not all(seen(service, task) >= before[task] + steps for task in tasks):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_kill_loses_or_repeats_a_task(tmp_path: Path) -> None:
    relaxing = [crystal(5, 0.2, seed) for seed in (1, 2)]
    with serving(tmp_path, ("lj-argon",), **QUICK) as first:
        tasks = [
            ask(first, "tasks/optimization", model_name="lj-argon", atoms=to_mapping(from_atoms(atoms)), **RELAXATION).json()[
                "task_id"
            ]
            for atoms in relaxing
        ]
        moving = to_mapping(from_atoms(crystal(4)))
        tasks.append(ask(first, "tasks/stability", model_name="lj-argon", atoms=moving, **DYNAMICS).json()["task_id"])
        advanced(first, tasks, 10)
        # Tasks go on while the gateway is away, and wait for tritonserver.
        kills: list[Callable[[], psutil.Process]] = [first.gateway, first.tritonserver]
        for victim in kills:
            victim().kill()
            advanced(first, tasks, 10)
        everything = [psutil.Process(first.pid), *first.descendants()]
        for process in everything:
            process.kill()
        psutil.wait_procs(everything[1:], 10)
        first.process.wait(10)
    with serving(tmp_path, ("lj-argon",), **QUICK) as again:
        listed = ask(again, "tasks").json()
        assert sorted(entry["task_id"] for entry in listed["tasks"]) == sorted(tasks), "none lost, none twice"
        *relaxed, dynamics = [finished(again, task) for task in tasks]
        perfect = ask(again, "single_point", model_name="lj-argon", atoms=to_mapping(from_atoms(crystal(1)))).json()
        for result in relaxed:
            assert result["converged"]
            assert result["final_energy"] / 500 == pytest.approx(perfect["energy_per_atom"], abs=1e-4)
        text = ask(again, f"tasks/{tasks[2]}/trajectory").text
    frames = [frame for frame in read(StringIO(text), index=":", format="extxyz") if frame.info["phase"] == "production"]
    assert [frame.info["step"] for frame in frames] == list(range(20, 401, 20)), "each frame once"
    temperatures = np.array([frame.info["temperature_K"] for frame in frames])
    potential = np.array([frame.get_potential_energy() for frame in frames])
    total = (potential + 1.5 * 256 * kB * temperatures) / 256
    # What NVE conserves, over all kills: potential energy becomes motion, and their sum stays to a hundredth of that.
    assert np.ptp(total) < 0.01 * np.ptp(potential / 256)
    assert abs(dynamics["energy_drift"]) < 1e-3


def finished(service: RunningService, task: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while (view := ask(service, f"tasks/{task}").json())["status"] in ("QUEUED", "RUNNING"):
        assert time.monotonic() < deadline, view
        time.sleep(0.1)
    assert view["status"] == "COMPLETED", view
    events = ask(service, f"tasks/{task}/events").text
    assert events.count('"COMPLETED"') == 1
    return dict(ask(service, f"tasks/{task}/result").json())
