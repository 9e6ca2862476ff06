"""Tasks over REST: a service with lj-argon, its queue and its worker, as a user meets them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from forcegate.structure import from_atoms, to_mapping
from frontend.tasks.queue import RETRY_AFTER_SECONDS
from tests.api.queued import A0, FINAL, LONG, argon, body, is_error, perfect, read_events, result, submitted, until
from tests.service import RunningService, serving
from tests.unit.calculations.potentials import lattice_minimum

MOST = 48
"""Unfinished tasks that one user may have."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(tmp_path_factory.mktemp("tasks"), ("lj-argon",), task_concurrency=33, max_tasks_per_user=MOST) as running:
        yield running


@pytest.fixture(scope="module")
def rest(own: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=own.url, timeout=120) as client:
        yield client


KINDS: dict[str, dict[str, Any]] = {
    "single-point": {},
    "optimization": {"fmax": 0.01},
    "stability": {"equilibration_steps": 5, "production_steps": 20},
    "bulk-modulus": {"atoms": perfect()},
    "heat-capacity": {"atoms": perfect(), "mesh_length": 30, "temperatures": [50]},
    "elasticity": {"atoms": perfect(), "relax_ions": False},
    "interaction-energy": {"atoms": perfect(9.0), "guest": {"symbols": ["Ar"], "positions": [[0, 0, 0]]}, "spacing": 2.0},
    "qmof-energy": {"reference_energy": -0.3},
    "batch": {"atoms": [argon(), argon(2)], "task": "optimization", "task_params": {"fmax": 0.01}},
}


def test_every_kind_through_the_service(rest: httpx.Client) -> None:
    with ThreadPoolExecutor(len(KINDS)) as threads:
        found = dict(zip(KINDS, threads.map(lambda kind: result(rest, kind, body() | KINDS[kind]), KINDS), strict=True))
    for kind, answer in found.items():
        assert answer["provenance"]["model"] == "lj-argon", kind
        assert len(answer["provenance"]["checkpoint_sha256"]) == 64, kind
        assert answer["provenance"]["dispersion"] == "included", kind  # argon's attraction is nothing else
    minimum, energy, _ = lattice_minimum()
    assert found["optimization"]["converged"]
    assert found["bulk-modulus"]["equilibrium_volume"] == pytest.approx(minimum**3 / 4, rel=5e-3)  # kinks of the cutoff
    # Each of four atoms has the energy of the lattice sum, within what 0.01 eV/A leaves of 0.3 eV.
    assert found["optimization"]["final_energy"] == pytest.approx(4 * energy, abs=2e-3)
    assert found["batch"]["results"][1]["final_energy"] == pytest.approx(4 * energy, abs=2e-3)
    assert found["stability"]["trajectory_length"] == 3


def test_the_synchronous_form_answers_as_the_task_does(rest: httpx.Client) -> None:
    waited = rest.post("/api/v1/optimization/", json=body())
    assert waited.status_code == 200, waited.text
    queued = result(rest, "optimization", body())
    assert waited.json()["final_energy"] == pytest.approx(queued["final_energy"], abs=1e-9)
    assert waited.json()["final_atoms"] == waited.json()["optimized_atoms"]
    assert rest.get(f"/api/v1/tasks/{waited.json()['task_id']}").json()["priority"] == "HIGH"
    compared = rest.post(
        "/api/v1/multi_model", json={"model_names": ["lj-argon", "nobody"], "task": "qmof_energy", "atoms": argon()}
    )
    assert [entry["status"] for entry in compared.json()["results"]] == ["success", "error"]
    batch = rest.post("/api/v1/batch", json=body([argon(), {"symbols": ["Cu"], "positions": [[0, 0, 0]]}], task="qmof_energy"))
    assert batch.json()["results"][1]["error"]["code"] == "unsupported_element"
    failed = rest.post("/api/v1/bulk_modulus", json=body(perfect(1.1 * A0)))
    is_error(failed, 422, "fit_failed")
    assert len(failed.json()["points"]["volumes"]) == 7


def test_what_takes_longer_goes_on_and_is_named(rest: httpx.Client) -> None:
    late = rest.post("/api/v1/stability", json=body(**LONG), headers={"X-Forcegate-Timeout": "1"})
    is_error(late, 504, "task_continues")
    assert late.json()["retryable"] is False  # the same request again would be a second task
    task = late.json()["task_id"]
    assert late.headers["location"] == late.json()["status_url"] == f"/api/v1/tasks/{task}"
    assert until(rest, task, "RUNNING")["progress"] is not None or until(rest, task, "RUNNING")
    is_error(rest.get(f"/api/v1/tasks/{task}/result"), 409, "task_not_finished")
    is_error(rest.post(f"/api/v1/tasks/{task}/retry"), 409, "conflict")
    rest.post(f"/api/v1/tasks/{task}/cancel")
    assert until(rest, task, *FINAL)["status"] == "CANCELLED"


@pytest.mark.parametrize(("detach", "state"), [(False, "CANCELLED"), (True, "RUNNING")])
def test_a_caller_who_leaves_ends_the_task_unless_it_was_told_to_go_on(rest: httpx.Client, detach: bool, state: str) -> None:
    user = {"X-Forcegate-User": f"leaver-{detach}"}

    def mine() -> list[dict[str, Any]]:
        return list(rest.get("/api/v1/tasks", params={"user": "me"}, headers=user).json()["tasks"])

    leaving = httpx.Client(base_url=str(rest.base_url))
    data = body(**LONG, options={"detach": detach})

    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            leaving.post("/api/v1/stability", json=data, headers=user, timeout=3)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    (task,) = mine()
    until(rest, task["task_id"], state)
    rest.post(f"/api/v1/tasks/{task['task_id']}/cancel")


def test_events_tell_every_step_and_go_on_where_a_reader_stopped(rest: httpx.Client) -> None:
    task = submitted(rest, "optimization", body(fmax=0.002))
    first = read_events(rest, task, most=3)
    rest_of_them = read_events(rest, task, after=first[-1][0])
    everything = first + rest_of_them
    numbers = [number for number, _, _ in everything]
    assert numbers == list(range(1, len(numbers) + 1))
    assert everything[-1][1] == "status"
    assert everything[-1][2]["status"] == "COMPLETED"
    steps = [data for _, name, data in everything if name == "progress"]
    assert steps
    assert {"step", "energy", "fmax"} <= set(steps[-1])
    assert read_events(rest, task, after=numbers[-1]) == []  # and the stream ends


def test_the_trajectory_and_the_picture(rest: httpx.Client, tmp_path: Path) -> None:
    task = submitted(rest, "optimization", body(fmax=0.002))
    until(rest, task, "COMPLETED")
    answer = rest.get(f"/api/v1/tasks/{task}/result").json()
    (tmp_path / "all.extxyz").write_bytes(rest.get(f"/api/v1/tasks/{task}/trajectory").content)
    frames = read(tmp_path / "all.extxyz", index=":")
    assert len(frames) == answer["steps"] + 1
    assert np.allclose(frames[-1].positions, answer["final_atoms"]["positions"], atol=1e-7)  # eight decimals in the file
    for name, ending in (("xyz", "xyz"), ("pdb", "pdb"), ("xdatcar", "XDATCAR")):
        other = rest.get(f"/api/v1/tasks/{task}/trajectory", params={"format": name})
        assert other.status_code == 200, other.text
        assert other.headers["content-disposition"].endswith(f'.{ending}"')
        assert other.text.count("Ar") >= len(frames) or name == "xdatcar"
    is_error(rest.get(f"/api/v1/tasks/{task}/trajectory?format=traj"), 400, "invalid_request")
    plain = submitted(rest, "qmof-energy", body())
    until(rest, plain, "COMPLETED")
    is_error(rest.get(f"/api/v1/tasks/{plain}/trajectory"), 404, "not_found")
    eos = submitted(rest, "bulk-modulus", body(perfect(), relax_ions=False))
    until(rest, eos, "COMPLETED")
    names = [entry["name"] for entry in rest.get(f"/api/v1/tasks/{eos}/artifacts").json()["artifacts"]]
    assert "bulk-modulus.png" in names
    assert rest.get(f"/api/v1/tasks/{eos}/artifacts/bulk-modulus.png").content.startswith(b"\x89PNG")
    for path in (
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "%00",
        "a" * 5000,
        f"..%2f{task}%2ftrajectory.extxyz",
    ):
        is_error(rest.get(f"/api/v1/tasks/{eos}/artifacts/{path}"), 404, "not_found")


def test_what_cannot_be_carried_out_never_reaches_the_queue(rest: httpx.Client) -> None:
    total = rest.get("/api/v1/tasks").json()["total"]
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"model_name": "nobody"}, 404, "unknown_model"),
        ({"model_name": "chgnet-0.3.0"}, 409, "checkpoint_missing"),
        ({"head": "r2scan"}, 422, "unknown_head"),
        ({"use_d3": True}, 422, "dispersion_not_supported"),  # never left out in silence
        ({"atoms": {"symbols": ["Cu"], "positions": [[0, 0, 0]]}}, 422, "unsupported_element"),
        ({"atoms": argon() | {"charge": 1}}, 422, "charge_not_supported"),
        ({"atoms": argon() | {"positions": [[0, 0, None]] * 4}}, 422, "non_finite_input"),
        ({"atoms": argon() | {"positions": [[0, 0, 2e6]] * 4}}, 422, "invalid_cell"),
        ({"atoms": argon() | {"positions": [[0, 0, 0]] * 4}}, 422, "coincident_atoms"),
        ({"atoms": argon() | {"cell": [[5, 0, 0], [0, 5, 0], [5, 5, 0.01]]}}, 422, "invalid_cell"),
        ({"atoms": argon() | {"charge": 0.5}}, 422, "charge_not_supported"),
        ({"atoms": {"symbols": [], "positions": []}}, 422, "empty_structure"),
        ({"atoms": {"format": "cif", "text": "nonsense"}}, 422, "invalid_structure"),
        ({"fmax": "small"}, 400, "invalid_request"),
        ({"options": {"idempotency_key": "a b"}}, 400, "invalid_request"),
    ]
    for changes, status, code in wrong:
        response = rest.post("/api/v1/tasks/optimization", json=body() | changes)
        if code == "checkpoint_missing":
            assert response.status_code in (409, 503), response.text
        else:
            is_error(response, status, code)
        assert rest.post("/api/v1/optimization", json=body() | changes).status_code == response.status_code
        if set(changes) == {"atoms"}:  # a bad structure has one error, in the same words, whatever is asked of it
            point = rest.post("/api/v1/single_point", json=body() | changes).json()
            assert {name: point[name] for name in ("code", "detail", "hint")} == {
                name: response.json()[name] for name in ("code", "detail", "hint")
            }
    assert rest.get("/api/v1/tasks").json()["total"] == total
    for path in ("nobody", "%00", "x" * 300):
        is_error(rest.get(f"/api/v1/tasks/{path}"), 404, "not_found")
    is_error(rest.get("/api/v1/tasks?status=SLEEPING"), 400, "invalid_request")
    is_error(rest.get("/api/v1/tasks?limit=0"), 400, "invalid_request")
    is_error(rest.get("/api/v1/tasks?model=nobody"), 404, "unknown_model")


def test_the_same_key_is_the_same_task(rest: httpx.Client) -> None:
    data = body(options={"idempotency_key": "once"})
    assert submitted(rest, "qmof-energy", data) == submitted(rest, "qmof-energy", data)
    is_error(rest.post("/api/v1/tasks/qmof-energy", json=data | {"reference_energy": 1.0}), 409, "conflict")


def large(seed: int) -> dict[str, Any]:
    """256 atoms: a model so cheap is done with a small structure before the next one can come."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (4, 4, 4)
    atoms.rattle(0.2, seed=seed)
    return to_mapping(from_atoms(atoms))


def mean_batch(own: RunningService, carry_out: Callable[[], object]) -> float:
    """Structures in a batch of Triton's, on the average, while ``carry_out`` works."""
    names = ("nv_inference_request_success", "nv_inference_exec_count")
    before = [own.metric(name, model="lj-argon") for name in names]
    carry_out()
    requests, passes = (own.metric(name, model="lj-argon") - old for name, old in zip(names, before, strict=True))
    return requests / passes


def test_thirty_two_relaxations_share_batches_and_health_answers_meanwhile(own: RunningService, rest: httpx.Client) -> None:
    """32 tasks at once. Where they went one by one, or a handler blocked, one of these numbers would tell."""
    slow: list[float] = []
    done = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=own.url, timeout=30) as client:
            while not done.is_set():
                began = time.perf_counter()
                assert client.get("/health").status_code == 200
                slow.append(time.perf_counter() - began)
                done.wait(0.02)

    def relax() -> None:
        options = {"fmax": 1e-5, "max_steps": 25, "fix_cell": True, "optimizer": "FIRE", "trajectory_interval": 100}
        with ThreadPoolExecutor(8) as threads:
            tasks = list(threads.map(lambda seed: submitted(rest, "optimization", body(large(seed), **options)), range(32)))
        assert {until(rest, task, *FINAL)["status"] for task in tasks} == {"COMPLETED"}

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert mean_batch(own, relax) > 4
    finally:
        done.set()
        looking.join()
    # Two cores hold worker, server, gateway and this test; a handler that waited for a task would take seconds.
    assert np.quantile(slow, 0.99) < 1.0


def test_the_relaxations_of_one_batch_move_in_step(own: RunningService, rest: httpx.Client) -> None:
    # Large enough that a pass takes longer than the way of a request.
    few = {"fmax": 1e-5, "max_steps": 5, "fix_cell": True, "optimizer": "FIRE", "trajectory_interval": 100}
    data = body([large(seed) for seed in range(32)], task="optimization", task_params=few)
    answers: list[dict[str, Any]] = []
    assert mean_batch(own, lambda: answers.append(rest.post("/api/v1/batch", json=data).json())) > 4
    assert answers[0]["succeeded"] == 32


def test_the_log_of_a_task_grows_while_it_runs(rest: httpx.Client) -> None:
    # There is no force on an atom alone; the largest of 256 atoms never falls below 1e-300 eV/A.
    endless = {"fmax": 1e-300, "max_steps": 100_000, "optimizer": "FIRE", "fix_cell": True}
    alone = {"symbols": ["Ar"], "positions": [[0, 0, 0]]}
    task = submitted(rest, "batch", body([alone, large(1)], task="optimization", task_params=endless))

    def lines(at_least: int) -> list[str]:
        deadline = time.monotonic() + 60
        while len(found := rest.get(f"/api/v1/tasks/{task}/logs").json()["lines"]) < at_least:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return list(found)

    try:
        worker = until(rest, task, "RUNNING")["worker"]
        begun = lines(1)
        assert begun[0] == f"Attempt 1 begins on worker {worker}."
        grown = lines(2)
        assert grown == [*begun, "structure-0 is finished."][:2]
        assert rest.get(f"/api/v1/tasks/{task}").json()["status"] == "RUNNING", "the other one goes on"
    finally:
        rest.post(f"/api/v1/tasks/{task}/cancel")
    assert until(rest, task, *FINAL)["status"] == "CANCELLED"
    answer = rest.get(f"/api/v1/tasks/{task}/logs").json()
    assert answer == {"task_id": task, "lines": [*grown, "Cancelled."]}
    assert [data["text"] for _, name, data in read_events(rest, task) if name == "log"] == answer["lines"]
    is_error(rest.get("/api/v1/tasks/nobody/logs"), 404, "not_found")


def test_a_user_with_too_many_tasks_is_refused_and_others_are_not(own: RunningService, rest: httpx.Client) -> None:
    endless, short = body(**LONG, options={"priority": "LOW"}), body()
    with httpx.Client(base_url=own.url, timeout=120, headers={"X-Forcegate-User": "eager"}) as eager:
        with ThreadPoolExecutor(8) as threads:
            tasks = list(threads.map(lambda _: submitted(eager, "stability", endless), range(MOST)))
        try:
            several = body([argon()], task="qmof_energy")
            for path, data in (("tasks/qmof-energy", short), ("qmof_energy", short), ("tasks/batch", several)):
                refused = eager.post(f"/api/v1/{path}", json=data)
                is_error(refused, 429, "overloaded")
                assert str(MOST) in refused.json()["detail"]
                assert refused.json()["retryable"] is True
                assert int(refused.headers["retry-after"]) == RETRY_AFTER_SECONDS, "longer than for a queue of requests"
            assert eager.get("/api/v1/tasks", params={"user": "me"}).json()["total"] == MOST, "nothing was queued"
            # Others, and what answers at once, are none the worse for it.
            other = rest.post("/api/v1/tasks/qmof-energy", json=short | {"options": {"priority": "CRITICAL"}})
            assert (other.status_code, other.json()["position"]) == (202, 1), "before all that wait"
            assert eager.post("/api/v1/single_point", json=short).status_code == 200
            # An end makes room for one more, and for one alone.
            eager.post(f"/api/v1/tasks/{tasks[-1]}/cancel")
            until(eager, tasks[-1], "CANCELLED")
            tasks.append(submitted(eager, "stability", endless))
            for path in ("stability", f"{tasks[-2]}/retry"):
                is_error(eager.post(f"/api/v1/tasks/{path}", json=endless), 429, "overloaded")
        finally:
            for task in tasks:
                eager.post(f"/api/v1/tasks/{task}/cancel")
        assert {until(eager, task, *FINAL)["status"] for task in tasks} == {"CANCELLED"}
        assert until(rest, other.json()["task_id"], *FINAL)["status"] == "COMPLETED"


def test_a_place_in_the_queue_moves_and_short_tasks_pass_long_ones_of_lower_priority(rest: httpx.Client) -> None:
    running = [submitted(rest, "stability", body(**LONG, options={"priority": "LOW"})) for _ in range(33)]
    for task in running:
        until(rest, task, "RUNNING")
    waiting = [submitted(rest, "qmof-energy", body(options={"priority": "LOW"})) for _ in range(5)]
    try:
        places = [rest.get(f"/api/v1/tasks/{task}").json()["position"] for task in waiting]
        assert places == [1, 2, 3, 4, 5]
        urgent = submitted(rest, "qmof-energy", body(options={"priority": "CRITICAL"}))
        queue = rest.get("/api/v1/scheduler/queue").json()
        assert (queue["waiting"], queue["running"]) == (6, 33)
        assert [entry["task_id"] for entry in queue["priorities"]["LOW"]["tasks"]] == waiting
        assert queue["priorities"]["CRITICAL"]["tasks"][0]["position"] == 1
        assert [rest.get(f"/api/v1/tasks/{task}").json()["position"] for task in waiting] == [2, 3, 4, 5, 6]
        rest.post(f"/api/v1/tasks/{waiting[0]}/cancel")
        assert rest.get(f"/api/v1/tasks/{waiting[1]}").json()["position"] == 2
        # One slot comes free, and the place of the last one moves as those in front of it end.
        rest.post(f"/api/v1/tasks/{running.pop()}/cancel")
        places = [5]
        while (view := rest.get(f"/api/v1/tasks/{waiting[-1]}").json())["status"] == "QUEUED":
            places.append(view["position"])
        assert places == sorted(places, reverse=True)
        assert len(set(places)) >= 3, places
        assert until(rest, urgent, *FINAL)["status"] == "COMPLETED"
        views = [until(rest, task, "COMPLETED") for task in (urgent, *waiting[1:])]
        begun = [view["started_at"] for view in views]
        assert begun == sorted(begun), "in the order of their places"
    finally:
        for task in running:
            rest.post(f"/api/v1/tasks/{task}/cancel")
    assert until(rest, waiting[0], *FINAL)["status"] == "CANCELLED"
    rest.post(f"/api/v1/tasks/{waiting[0]}/retry")
    assert until(rest, waiting[0], "COMPLETED")["attempt"] >= 1
