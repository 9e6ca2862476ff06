"""A second instance of a model, with a real Triton: it comes with a queue, costs nobody an answer, and goes with idleness."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
from ase import Atoms
from ase.build import bulk

from forcegate.evaluation import evaluate
from tests.service import RunningService, serving, wait_until

MODEL = "lj-argon"
CLIENTS = 12


def crystal(seed: int) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (6, 6, 6)
    atoms.rattle(0.05, seed=seed)
    return atoms


STRUCTURES = [crystal(seed) for seed in range(CLIENTS)]


def body(atoms: Atoms) -> bytes:
    given = {"symbols": list(atoms.symbols), "positions": atoms.positions.tolist(), "cell": atoms.cell.tolist(), "pbc": [True] * 3}
    return json.dumps({"model_name": MODEL, "atoms": given}).encode()


BODIES = [body(atoms) for atoms in STRUCTURES]
HTTP = httpx.Client(timeout=150, headers={"Content-Type": "application/json"}, limits=httpx.Limits(max_connections=2 * CLIENTS))
"""One for all: the model has to be what they wait for."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    options = {"scheduler": "on", "scheduler_memory_gb": 2, "deadline_seconds": 120, "drain_seconds": 5}
    options |= {"scheduler_replicas": 2, "scheduler_replica_wait_seconds": 0.05, "scheduler_replica_sustained_seconds": 1}
    with serving(tmp_path_factory.mktemp("replicas") / "state", [MODEL], scheduler_replica_idle_seconds=2, **options) as running:
        yield running


def stubs(service: RunningService) -> list[psutil.Process]:
    found = []
    for process in service.tritonserver().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("triton_python_b") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def told(service: RunningService) -> dict[str, object]:
    models = HTTP.get(f"{service.url}/api/v1/scheduler/devices").json()["models"]
    return next(model for model in models if model["model"] == MODEL)


def number(service: RunningService, series: str) -> float:
    lines = HTTP.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def by_rest(service: RunningService, which: int) -> float:
    answer = HTTP.post(f"{service.url}/api/v1/single_point", content=BODIES[which])
    assert answer.status_code == 200, answer.text
    return float(answer.json()["energy"])


def by_grpc(service: RunningService, which: int) -> float:
    found = evaluate([STRUCTURES[which]] * 4, MODEL, address=service.grpc)[0]
    assert found.error is None, found.error
    assert found.energy is not None
    return float(found.energy)


@contextmanager
def loaded(service: RunningService, ask: object) -> Iterator[list[tuple[int, float]]]:
    """Clients that ask one after the other while the block runs; what they were answered, which is all there when it has ended."""
    answers: list[tuple[int, float]] = []
    stop = threading.Event()

    def client(which: int) -> None:
        while not stop.is_set():
            answers.append((which, ask(service, which)))  # type: ignore[operator]

    with ThreadPoolExecutor(CLIENTS) as pool:
        running: list[Future[None]] = [pool.submit(client, which) for which in range(CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
    for each in running:
        each.result()


def test_a_queue_brings_a_second_process_and_idleness_takes_it_away(service: RunningService) -> None:
    expected = [by_rest(service, which) for which in range(CLIENTS)]
    first = stubs(service)
    assert len(first) == 1
    with loaded(service, by_rest) as answers:
        wait_until(lambda: number(service, "forcegate_scheduler_replicas{") == 2, "no second instance", 60)
        assert first[0] in stubs(service), "the first one goes on: nothing was loaded again"
        assert service.log("triton").count("successfully unloaded") == 0, "it was loaded again as a whole"
        assert told(service)["instances"] == {"cpu": 2}
        spent, before = {p: sum(p.cpu_times()[:2]) for p in stubs(service)}, len(answers)
        wait_until(lambda: len(answers) >= before + 2 * CLIENTS, "nobody is answered", 60)
        wait_until(lambda: all(sum(p.cpu_times()[:2]) > seconds + 0.1 for p, seconds in spent.items()), "one computes nothing", 30)
        held = sum(process.memory_info().rss for process in stubs(service)) / 2**20
        device = HTTP.get(f"{service.url}/gpu-status").json()["devices"][0]
        assert device["memory_models_mb"] == pytest.approx(held, rel=0.1)
        assert device["memory_planned_mb"] >= 0.9 * held
    for which, energy in answers:
        assert energy == pytest.approx(expected[which], rel=1e-12)
    wait_until(lambda: len(stubs(service)) == 1, "it stays although nobody asks", 60)
    assert by_rest(service, 0) == pytest.approx(expected[0], rel=1e-12)
    wait_until(lambda: told(service)["instances"] == {"cpu": 1}, "it is still told of")
    wait_until(lambda: number(service, 'forcegate_scheduler_scalings_total{direction="in",reason="idle"}') == 1, "not counted")
    assert number(service, 'forcegate_scheduler_scalings_total{direction="out",reason="queue"}') == 1
    assert number(service, "forcegate_scheduler_loads_total{") == 1
    assert number(service, "forcegate_scheduler_evictions_total{") == 0
    wait_until(lambda: number(service, f'forcegate_model_ready{{model="{MODEL}"') == 1, "a gateway misses the one that has gone")


def test_users_of_grpc_get_one_too_and_the_death_of_one_of_two_costs_nobody_an_answer(service: RunningService) -> None:
    expected = [by_rest(service, which) for which in range(CLIENTS)]
    with loaded(service, by_grpc) as answers:
        wait_until(lambda: len(stubs(service)) == 2 and told(service)["instances"] == {"cpu": 2}, "no second instance", 60)
        before = stubs(service)
        before[0].kill()
        # Triton goes on sending requests to the dead one, so that both are replaced.
        wait_until(lambda: not {*before} & {*stubs(service)} and len(stubs(service)) >= 1, "it is not brought back", 60)
        done, began = len(answers), time.monotonic()
        wait_until(lambda: len(answers) >= done + 2 * CLIENTS, "nobody is answered", 60)
        assert time.monotonic() - began < 30
    for which, energy in answers:
        assert energy == pytest.approx(expected[which], rel=1e-12)
    wait_until(lambda: len(stubs(service)) == 1 and told(service)["instances"] == {"cpu": 1}, "it stays", 60)
    assert by_rest(service, 0) == pytest.approx(expected[0], rel=1e-12)
