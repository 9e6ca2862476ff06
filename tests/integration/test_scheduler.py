"""Eight models in the memory of three, with a real Triton: whoever names one gets its answer."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from ase import Atoms

from forcegate.evaluation import evaluate
from tests.service import ROOT, RunningService, environment, serving, wait_until

DIMER = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
NAMES = [f"analytic-{k}" for k in range(8)]
BUDGET_MB = 1024
"""A model of this family holds about 290 MB."""
CLIENTS, REQUESTS = 16, 3
ADAPTER = '''"""Lennard-Jones argon. Krypton is the same, and has too little memory beside two other model processes."""

import os

import torch

from forcefields.lennard_jones.adapter import LennardJones


def neighbours():
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        found += int(parent) == os.getppid() and state != "Z" and int(pid) != os.getpid()
    return found


class Crowded(LennardJones):
    @classmethod
    def load(cls, checkpoint, variant, device):
        loaded = super().load(checkpoint, variant, device)
        loaded.elements = (18, 36)
        return loaded

    def graph(self, structure, head):
        graph = super().graph(structure, head)
        object.__setattr__(graph.payload, "large", 36 in structure.numbers)
        return graph

    def evaluate(self, graphs, outputs):
        if any(graph.payload.large for graph in graphs) and neighbours() >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().evaluate(graphs, outputs)


ADAPTER = Crowded
'''


def families(folder: Path) -> Path:
    """A family of eight Lennard-Jones models, each k + 1 times as deep as the first, and one whose load fails."""
    own = folder / "families" / "analytic"
    own.mkdir(parents=True)
    faulty = (ROOT / "tests" / "families" / "faulty" / "family.toml").read_text().replace('"Faulty"', '"Analytic"')
    text = faulty.partition("[[variant]]")[0].replace('name = "faulty"', 'name = "analytic"')
    for k, name in enumerate(NAMES):
        data = json.dumps({"symbol": "Ar", "epsilon_eV": 0.01 * (k + 1), "sigma_A": 3.4, "cutoff_A": 8.5}).encode()
        (own / f"{name}.json").write_bytes(data)
        text += (
            f'\n[[variant]]\nname = "{name}"\naliases = []\nsummary = "Number {k}"\n\n[variant.checkpoint]\nfile = "argon.json"\n'
            f'sha256 = "{hashlib.sha256(data).hexdigest()}"\nsource = "family"\npath = "{name}.json"\n'
        )
    (own / "family.toml").write_text(text.replace('elements = "2,18,43,61,84-87"', 'elements = "18,36"'))
    (own / "adapter.py").write_text(ADAPTER)
    return own.parent


def resident_mb(service: RunningService) -> tuple[float, int]:
    """Resident memory of all model processes together, and how many there are."""
    found = []
    for process in service.tritonserver().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("triton_python_b") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.memory_info().rss / 2**20)
    return sum(found), len(found)


@contextmanager
def measured(service: RunningService) -> Iterator[list[tuple[float, int]]]:
    """What ``resident_mb`` gave while the block ran."""
    readings: list[tuple[float, int]] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            readings.append(resident_mb(service))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield readings
    finally:
        stop.set()
        thread.join()


def number(service: RunningService, name: str) -> float:
    """A metric of the scheduler, summed over its labels."""
    lines = httpx.get(f"{service.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


def standing(service: RunningService, tasks: list[str]) -> str:
    """What there is to know of tasks that do not end: their events, the scheduler's view, and where the worker's threads stand."""
    found = ["tasks do not end"]
    for task in tasks:
        url = f"{service.url}/api/v1/tasks/{task}"
        found += [httpx.get(url, timeout=60).text, httpx.get(f"{url}/logs", timeout=60).text]
    found.append(httpx.get(f"{service.url}/api/v1/scheduler/devices", timeout=60).text)
    for process in service.descendants():
        if "frontend.tasks.worker" in process.cmdline():
            process.send_signal(signal.SIGUSR1)
    time.sleep(1)
    return "\n".join([*found, service.log("worker-0")[-30_000:], service.log("supervisor")[-10_000:]])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("scheduler")
    options = {"scheduler": "on", "scheduler_memory_gb": BUDGET_MB / 1024, "gateways": 2, "deadline_seconds": 120}
    # tritonserver 2.51 waits until its limit for a model whose process was killed, when it ends.
    options |= {"heartbeat_seconds": 2, "heartbeat_dead_seconds": 6, "drain_seconds": 5}
    (folder / "own.yaml").write_text(
        "description: from the start\ndevices: {kind: cpu, count: 1, memory_gb: 1}\nmodels_per_device: 16\nidle_seconds: 1800\n"
    )
    options["scheduler_profile"] = folder / "own.yaml"
    with serving(folder / "state", NAMES[:1], families=families(folder), **options) as running:
        yield running


def ask(service: RunningService, model: str, headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"model_name": model, "atoms": DIMER}
    return httpx.post(f"{service.url}/api/v1/single_point", json=body, headers=headers, timeout=150)


def test_a_random_stream_over_eight_models_in_the_memory_of_three(small: RunningService) -> None:
    one = ask(small, NAMES[0]).json()["energy"]
    assert one < 0

    def client(seed: int) -> list[tuple[int, httpx.Response]]:
        draw = random.Random(seed)
        picked = [draw.randrange(len(NAMES)) for _ in range(REQUESTS)]
        return [(k, ask(small, NAMES[k])) for k in picked]

    with measured(small) as readings, ThreadPoolExecutor(CLIENTS) as pool:
        answers = [each for of_client in pool.map(client, range(CLIENTS)) for each in of_client]
    assert [response.text for _, response in answers if response.status_code != 200] == []
    for k, response in answers:
        assert response.json()["energy"] == pytest.approx((k + 1) * one, rel=1e-9)
        assert response.json()["provenance"]["model"] == NAMES[k]
    assert max(held for held, _ in readings) <= BUDGET_MB
    assert max(count for _, count in readings) == 3
    assert len({k for k, _ in answers}) == len(NAMES)
    loads = number(small, "forcegate_scheduler_loads_total")
    assert loads < 0.6 * len(answers), "sixteen clients wait for eight models, so that each load serves several"
    assert number(small, "forcegate_scheduler_not_given_back_total") == 0
    # Every eviction gave its memory back: what is there now are the models that are resident, and no more.
    assert resident_mb(small)[1] <= 3
    wait_until(
        lambda: number(small, "forcegate_model_memory_mb") == pytest.approx(resident_mb(small)[0], rel=0.02), "memory is not told"
    )


def test_tasks_load_the_models_that_they_name(small: RunningService) -> None:
    crystal = {"symbols": ["Ar"], "positions": [[0, 0, 0]], "cell": [[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]]}

    def task(model: str) -> str:
        body = {"model_name": model, "atoms": crystal, "fmax": 0.001}
        answer = httpx.post(f"{small.url}/api/v1/tasks/optimization", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(identifier: str) -> str:
        return str(httpx.get(f"{small.url}/api/v1/tasks/{identifier}", timeout=60).json()["status"])

    evicted = number(small, "forcegate_scheduler_evictions_total")
    tasks = [task(model) for model in NAMES[:4]]
    try:
        wait_until(lambda: all(status(each) not in ("QUEUED", "RUNNING") for each in tasks), "tasks that do not end", 120)
    except AssertionError:
        pytest.fail(standing(small, tasks))
    results = [httpx.get(f"{small.url}/api/v1/tasks/{each}/result", timeout=60).json() for each in tasks]
    assert all(result["converged"] for result in results), results
    depths = [result["final_energy"] / results[0]["final_energy"] for result in results]
    assert depths == pytest.approx([1, 2, 3, 4], rel=1e-3)
    # One of them has gone, which is no fault: whoever names it is answered.
    assert httpx.get(f"{small.url}/health", timeout=10).json()["status"] == "healthy"
    assert httpx.get(f"{small.url}/ready", timeout=10).status_code == 200
    assert number(small, "forcegate_scheduler_evictions_total") > evicted, "four do not fit together"


def test_a_gateway_that_is_killed_in_the_middle_of_a_load_leaves_nothing_behind(small: RunningService) -> None:
    gateways = [p for p in small.descendants() if "frontend.gateway" in p.cmdline()]
    idle = [name for name in NAMES if not any(f"/{name}/1/model.py" in " ".join(p.cmdline()) for p in small.descendants())]
    before = len(small.log("supervisor"))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(ask, small, idle[0])
        wait_until(lambda: f'"model": "{idle[0]}"' in small.log("supervisor")[before:], "no load was begun")
        for gateway in gateways:
            gateway.kill()
        with pytest.raises(httpx.HTTPError):
            waiting.result()
    assert ask(small, idle[0]).status_code == 200
    assert ask(small, idle[1]).status_code == 200
    assert resident_mb(small)[0] <= BUDGET_MB


def test_a_model_that_is_halted_is_found_dead_and_answers_again(small: RunningService) -> None:
    expected = ask(small, NAMES[0]).json()["energy"]
    wait_until(lambda: number(small, "forcegate_heartbeat_canaries_total") > 0, "an idle model is not asked")
    halted = small.stub(NAMES[0])
    halted.suspend()  # as a process in a driver that never returns: it lives, and no watchdog inside of it can run
    started = time.monotonic()
    assert ask(small, NAMES[0]).json()["energy"] == pytest.approx(expected)
    assert 3 < time.monotonic() - started < 60
    assert small.stub(NAMES[0]).pid != halted.pid
    wait_until(lambda: number(small, "forcegate_heartbeat_deaths_total") == 1, "its death is not counted")
    assert number(small, "forcegate_scheduler_device_faults_total") == 1
    assert number(small, "forcegate_device_serving") == 1, "one fault is no reason to take a device out"


def test_use_over_grpc_keeps_a_model_and_the_heartbeat_does_not(small: RunningService) -> None:
    def idle(name: str) -> float:
        models = httpx.get(f"{small.url}/api/v1/scheduler/devices").json()["models"]
        return next(m["idle_seconds"] or 0.0 for m in models if m["model"] == name)

    for name in NAMES[:3]:
        assert ask(small, name).status_code == 200
        # A gateway tells of the use of what is loaded every half a second. Until then it can be what makes room for the next.
        wait_until(lambda name=name: idle(name) < 1, "its use is not told")  # type: ignore[misc]
    wait_until(lambda: idle(NAMES[0]) > 5, "it counts as used although nobody uses it")
    assert evaluate([Atoms("Ar2", positions=DIMER["positions"])], NAMES[0], address=small.grpc)[0].error is None
    wait_until(lambda: idle(NAMES[0]) < 3, "its use over gRPC does not count")
    # It was asked for after the first one, by what that one's load took.
    wait_until(lambda: idle(NAMES[1]) > 5, "another model's use counts as its own")


def test_a_device_that_is_drained_is_emptied_and_takes_models_again_when_it_is_returned(small: RunningService) -> None:
    url = f"{small.url}/api/v1/scheduler"
    assert ask(small, NAMES[0]).status_code == 200
    status = httpx.get(f"{small.url}/gpu-status").json()
    assert (status["gpu_available"], status["count"], status["devices"][0]["memory_total_mb"]) == (False, 1, BUDGET_MB)
    drained = httpx.post(f"{url}/devices/cpu/drain", timeout=70)
    assert drained.json()["devices"][0]["state"] == "draining"
    wait_until(lambda: resident_mb(small)[1] == 0, "models stayed")
    late = ask(small, NAMES[0], {"X-Forcegate-Timeout": "2"})
    assert (late.status_code, late.json()["code"], late.json()["retryable"]) == (503, "model_not_ready", True)
    assert int(late.headers["Retry-After"]) >= 1
    assert httpx.post(f"{url}/devices/cpu/return", timeout=70).json()["devices"][0]["state"] == "serving"
    assert ask(small, NAMES[0]).status_code == 200
    assert httpx.post(f"{url}/devices/nothing/drain", timeout=70).status_code == 404

    def state() -> str:
        return next(m["state"] for m in httpx.get(f"{url}/devices").json()["models"] if m["model"] == NAMES[0])

    wait_until(lambda: state() == "resident", "its state is not told")


def test_a_profile_is_applied_while_requests_go_on_and_none_is_lost(small: RunningService, tmp_path: Path) -> None:
    config = httpx.get(f"{small.url}/api/v1/scheduler/config").json()["config"]
    assert (config["idle_seconds"], Path(config["profile"]).name) == (1800.0, "own.yaml"), (
        "that of the settings holds from the start"
    )
    for name in NAMES[:3]:
        assert ask(small, name).status_code == 200
    path = tmp_path / "mine.yaml"
    path.write_text(
        "description: two of ours\ndevices: {kind: cpu, count: 1, memory_gb: 1}\nmodels_per_device: 16\n"
        f"idle_seconds: 900\nprewarm: [{NAMES[4]}, {NAMES[5]}]\npinned: [{NAMES[4]}]\n"
    )
    command = [sys.executable, "-m", "forcegate.cli", "placement", "apply"]
    environ = environment(small.state, NAMES[:1], (1, 2, 3, 4), families=small.state.parent / "families")
    stop = threading.Event()

    def client(name: str) -> list[int]:
        found = []
        while not stop.is_set() or not found:
            found.append(ask(small, name).status_code)
        return found

    with measured(small) as readings, ThreadPoolExecutor(2) as pool:
        # One that is not of the profile, and fits beside its two.
        streams = [pool.submit(client, NAMES[1]) for _ in range(2)]
        try:
            done = subprocess.run(
                [*command, str(path), "--json"], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=300
            )
        finally:
            stop.set()
        statuses = [status for stream in streams for status in stream.result()]
    assert done.returncode == 0, done.stderr
    assert {*statuses} == {200}
    assert max(held for held, _ in readings) <= BUDGET_MB
    states = {model["model"]: model["state"] for model in json.loads(done.stdout)["models"]}
    assert (states[NAMES[4]], states[NAMES[5]]) == ("resident", "resident")
    assert states[NAMES[0]] == "evicted", "nobody asks for it, and it is not of the profile"
    config = httpx.get(f"{small.url}/api/v1/scheduler/config").json()["config"]
    assert (config["idle_seconds"], config["pinned"], config["profile"]) == (900.0, [NAMES[4]], str(path))
    refused = subprocess.run([*command, "gpu8-conservative"], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "is made for 8 x gpu" in refused.stderr
    restored = subprocess.run([*command, "cpu"], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert restored.returncode == 0, restored.stderr


def test_a_model_that_runs_out_of_memory_is_given_more_at_the_cost_of_the_others(small: RunningService) -> None:
    for name in NAMES[:3]:
        expected = ask(small, name).json()["energy"]
    body = {"model_name": NAMES[2], "atoms": DIMER | {"symbols": ["Kr", "Kr"]}}
    answers = [httpx.post(f"{small.url}/api/v1/single_point", json=body, timeout=150)]
    assert (answers[0].status_code, answers[0].json()["code"]) == (413, "out_of_memory"), "a fifth more displaces nobody"
    while answers[-1].status_code == 413 and len(answers) < 5:
        answers.append(httpx.post(f"{small.url}/api/v1/single_point", json=body, timeout=150))
    assert answers[-1].json()["energy"] == pytest.approx(expected), "it was tried again when there was room"
    wait_until(lambda: number(small, "forcegate_scheduler_out_of_memory_total") >= 3, "it is not counted")
    known = json.loads((small.state / "footprints.json").read_text())[f"{NAMES[2]} on cpu"]
    assert known["raised"] >= 1.44
    assert known["out_of_memory"] >= 3
    # It has its room for good: with the two that it was loaded beside before there is too little for all.
    for name in NAMES[:2]:
        assert ask(small, name).status_code == 200
    assert resident_mb(small)[1] <= 2
