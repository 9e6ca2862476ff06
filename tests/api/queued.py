"""Bodies of tasks for lj-argon, and what tests ask of a task over REST."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from ase.build import bulk

from forcegate.structure import from_atoms, to_mapping
from tests.unit.calculations.potentials import lattice_minimum

A0 = lattice_minimum()[0]
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
LONG = {"equilibration_steps": 0, "production_steps": 1_000_000, "sample_interval": 1000}
"""Dynamics that no test waits for."""


def argon(seed: int = 1, a: float = 5.3, rattled: float = 0.1) -> dict[str, Any]:
    atoms = bulk("Ar", "fcc", a=a, cubic=True)
    atoms.rattle(rattled, seed=seed)
    return to_mapping(from_atoms(atoms))


def perfect(a: float = A0) -> dict[str, Any]:
    return to_mapping(from_atoms(bulk("Ar", "fcc", a=a)))


def body(atoms: Any = None, **parameters: Any) -> dict[str, Any]:
    return {"model_name": "lj-argon", "atoms": atoms or argon(), **parameters}


def submitted(rest: httpx.Client, kind: str, data: dict[str, Any]) -> str:
    response = rest.post(f"/api/v1/tasks/{kind}", json=data)
    assert response.status_code == 202, response.text
    where = f"/api/v1/tasks/{response.json()['task_id']}"
    assert response.headers["location"] == response.json()["status_url"] == where
    return str(response.json()["task_id"])


def until(rest: httpx.Client, task: str, *states: str, seconds: float = 300) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (view := rest.get(f"/api/v1/tasks/{task}").json())["status"] not in states:
        assert time.monotonic() < deadline, view
        time.sleep(0.05)
    return dict(view)


def result(rest: httpx.Client, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    task = submitted(rest, kind, data)
    view = until(rest, task, *FINAL)
    assert view["status"] == "COMPLETED", view
    return dict(rest.get(f"/api/v1/tasks/{task}/result/").json())


def is_error(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.json()["detail"]


def read_events(
    rest: httpx.Client, task: str, after: int | None = None, most: int = 10**6
) -> list[tuple[int, str, dict[str, Any]]]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found: list[tuple[int, str, dict[str, Any]]] = []
    with rest.stream("GET", f"/api/v1/tasks/{task}/events", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        entry: dict[str, str] = {}
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                entry[name] = value
            elif entry.get("data"):
                found.append((int(entry["id"]), entry["event"], json.loads(entry["data"])))
                entry = {}
                if len(found) == most:
                    break
    return found
