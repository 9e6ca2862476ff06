"""Relaxations through the queue of tasks, as many users submit them, over ASE's FIRE one by one; and /health meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from ase import Atoms
from ase.io import write

from benchmarks.plan import Plan
from benchmarks.sections.relaxations import FMAX, STEPS, rattled
from benchmarks.service import say
from benchmarks.worker import Commanded, python_of
from forcegate.client import Client
from frontend.settings import Settings
from frontend.supervisor import triton

MANY, FEW = 64, 16
LONGEST_SECONDS = 240.0
"""For all of them; a service that takes longer has failed."""
LOOK_SECONDS = 0.05
"""Between two looks at /health."""


def compare(plan: Plan, model: str) -> dict[str, Any]:
    """``MANY`` tasks at once, the first ``FEW`` of their structures one by one by the package's own calculator."""
    many, few = (16, 4) if plan.quick else (MANY, FEW)
    with plan.serving(model, workers=1, task_concurrency=MANY) as settings:
        given = rattled(model, many)
        seconds, energies, health = _queued(settings, model, given)
        alone = _alone(settings, model, given[:few])
    differences = [abs(a - b) / len(atoms) for a, b, atoms in zip(alone["energies"], energies, given, strict=False)]
    row = {
        "model": model,
        "relaxations": many,
        "an_hour": 3600 * many / seconds,
        "an_hour_one_by_one": 3600 * few / alone["seconds"],
        "largest_difference_ev_per_atom": max(differences),
        "health_p50_ms": 1e3 * float(np.percentile(health, 50)),
        "health_p99_ms": 1e3 * float(np.percentile(health, 99)),
        "health_asked": len(health),
    }
    row["queued_over_one_by_one"] = row["an_hour"] / row["an_hour_one_by_one"]
    ratio, slowest = row["queued_over_one_by_one"], row["health_p99_ms"]
    say(f"{model}: {row['an_hour']:.0f} relaxations an hour, {ratio:.2f} times ASE one by one; /health p99 {slowest:.0f} ms")
    return row


def _queued(settings: Settings, model: str, given: list[Atoms]) -> tuple[float, list[float], list[float]]:
    """Seconds from the first submission to the last result, the energies in eV, and seconds of each answer of /health."""
    url, health, done = f"http://{settings.host}:{settings.port}", [], threading.Event()

    def look() -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not done.is_set():
                asked = time.perf_counter()
                client.get("/health").raise_for_status()
                health.append(time.perf_counter() - asked)
                done.wait(LOOK_SECONDS)

    parameters = {"fmax": FMAX, "max_steps": STEPS, "optimizer": "FIRE"}
    with Client(url) as client:
        # The worker is there, and has asked the model for the first time.
        client.wait(client.submit("qmof-energy", given[0], model)["task_id"], LONGEST_SECONDS)
        looking = threading.Thread(target=look)
        looking.start()
        try:
            started = time.perf_counter()
            with ThreadPoolExecutor(8) as threads:
                accepted = list(threads.map(lambda atoms: client.submit("optimization", atoms, model, **parameters), given))
            deadline = started + LONGEST_SECONDS
            results = [client.wait(each["task_id"], max(0.0, deadline - time.perf_counter())) for each in accepted]
            seconds = time.perf_counter() - started
        finally:
            done.set()
            looking.join()
    return seconds, [result["final_energy"] for result in results], health


def _alone(settings: Settings, model: str, given: list[Atoms]) -> dict[str, Any]:
    command = [str(python_of(model, settings)), "-m", "benchmarks.relax_one_by_one", model]
    with Commanded(command, triton.environment(settings), settings.state / f"one-by-one-{model}.log") as alone:
        written = settings.state / "to-relax.extxyz"
        write(written, given)
        answer: dict[str, Any] = alone.ask(file=str(written), fmax=FMAX, steps=STEPS)
        return answer
