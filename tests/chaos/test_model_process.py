"""A model's process dies, hangs, or meets a structure that it cannot bear: its neighbours' answers stay right."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from forcegate.connection import Connection
from forcegate.evaluation import evaluate
from forcegate.structure import from_atoms
from tests.chaos.load import clients
from tests.service import RunningService, serving, wait_until

ARGON = Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0]])


def with_element(symbol: str) -> Atoms:
    """Three atoms, the last of which makes the faulty model misbehave (tests/families/faulty/adapter.py)."""
    return Atoms(["Ar", "Ar", symbol], positions=ARGON.positions)


def reference(service: RunningService) -> float:
    return float(evaluate([ARGON], "lj-argon", address=service.grpc)[0].energy or 0)


def wait_for_other_process(service: RunningService, model: str, old: int, seconds: float) -> float:
    """The time until the model has a new process that answers."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if service.stub(model).pid != old:
                evaluate([ARGON if model in ("faulty", "lj-argon") else bulk("Cu")], model, address=service.grpc, timeout=seconds)
                return time.monotonic() - started
        except StopIteration:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{model} was not back within {seconds} s")


def test_killed_under_load_heals_and_no_client_sees_it(fragile: RunningService) -> None:
    expected = reference(fragile)
    with clients(fragile, "lj-argon", ARGON) as load:
        load.wait_for(100)
        old = fragile.stub("lj-argon")
        old.kill()
        seconds = wait_for_other_process(fragile, "lj-argon", old.pid, 10)
        load.wait_for(100)
    assert load.failures == []
    assert load.energies == pytest.approx([expected] * len(load.energies), abs=1e-9)
    assert seconds < 10
    assert load.slowest < 15


def test_a_real_model_heals_within_ten_seconds(tmp_path: Path) -> None:
    copper = bulk("Cu", cubic=True)
    with serving(tmp_path, ("chgnet-0.3.0",)) as service, clients(service, "chgnet-0.3.0", copper, rest=2, grpc=2) as load:
        load.wait_for(10)
        old = service.stub("chgnet-0.3.0")
        old.kill()
        seconds = wait_for_other_process(service, "chgnet-0.3.0", old.pid, 20)
        load.wait_for(10)
        load.stop.set()
    assert load.failures == []
    assert max(load.energies) - min(load.energies) < 1e-4
    assert seconds < 10


@pytest.mark.parametrize(
    ("symbol", "code"), [("At", "evaluation_failed"), ("Rn", "non_finite_result")], ids=["raises", "not a number"]
)
def test_a_structure_that_fails_fails_alone(fragile: RunningService, symbol: str, code: str) -> None:
    expected = reference(fragile)
    batch = [ARGON] * 20 + [with_element(symbol)] + [ARGON] * 11
    results = evaluate(batch, "faulty", raise_errors=False, address=fragile.grpc)
    assert results[20].error is not None
    assert results[20].error.code == code
    assert [r.energy for k, r in enumerate(results) if k != 20] == pytest.approx([expected] * 31, abs=1e-9)


def test_out_of_memory_is_halved_until_it_fits(fragile: RunningService) -> None:
    before = fragile.metric("forcegate_out_of_memory", model="faulty")
    batch = [ARGON] * 12 + [with_element("Fr")] * 2
    for _ in range(5):  # whether the two share a batch is up to the moment
        results = evaluate(batch, "faulty", raise_errors=False, address=fragile.grpc)
        assert [r.error for r in results] == [None] * 14
    assert fragile.metric("forcegate_out_of_memory", model="faulty") > before


@pytest.mark.parametrize("symbol", ["Pm", "Po"], ids=["in the forward pass", "while its graph is built"])
def test_a_structure_that_kills_the_model_is_refused_and_its_neighbours_answered(fragile: RunningService, symbol: str) -> None:
    expected = reference(fragile)
    old = fragile.stub("faulty").pid
    batch = [ARGON] * 10 + [with_element(symbol)] + [ARGON] * 5
    results = evaluate(batch, "faulty", raise_errors=False, address=fragile.grpc, timeout=60)
    assert results[10].error is not None
    assert results[10].error.code == "evaluation_failed"
    assert not results[10].error.retryable
    assert [r.energy for k, r in enumerate(results) if k != 10] == pytest.approx([expected] * 15, abs=1e-9)
    wait_for_other_process(fragile, "faulty", old, 15)


def test_a_hung_evaluation_is_ended_by_the_watchdog(fragile: RunningService) -> None:
    """The hang holds Python's global lock, so that no thread of Python could end it."""
    expected = reference(fragile)
    old = fragile.stub("faulty").pid
    started = time.monotonic()
    results = evaluate([ARGON] * 4 + [with_element("Tc")], "faulty", raise_errors=False, address=fragile.grpc, timeout=60)
    assert [r.energy for r in results[:4]] == pytest.approx([expected] * 4, abs=1e-9)
    assert results[4].error is not None
    assert results[4].error.code == "evaluation_failed"
    assert time.monotonic() - started < 30, "the watchdog is set to 3 s here"
    assert "Timeout (0:00:03" in fragile.log("triton"), "its traceback tells where the model hung"
    wait_for_other_process(fragile, "faulty", old, 15)


def test_a_model_that_is_killed_again_while_it_comes_back_comes_back(fragile: RunningService) -> None:
    first = fragile.stub("lj-argon")
    first.kill()
    second = None
    deadline = time.monotonic() + 10
    while second is None and time.monotonic() < deadline:
        with suppress(StopIteration):
            found = fragile.stub("lj-argon")
            second = found if found.pid != first.pid else None
        time.sleep(0.02)
    assert second is not None, "the first replacement never started"
    second.kill()
    wait_for_other_process(fragile, "lj-argon", second.pid, 20)
    assert evaluate([ARGON], "lj-argon", address=fragile.grpc)[0].energy == pytest.approx(reference(fragile))


def test_after_all_of_it_no_shared_memory_is_leaked(fragile: RunningService) -> None:
    deadline = time.monotonic() + 15
    while len(fragile.shared_memory()) > 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(fragile.shared_memory()) == 2, "one region for each model that lives"


def test_after_all_of_it_there_is_one_process_for_each_model(fragile: RunningService) -> None:
    time.sleep(1)
    stubs = [p for p in fragile.descendants() if p.name().startswith("triton_python_b") and p.status() != "zombie"]
    assert len(stubs) == 2


def test_what_was_cancelled_while_it_waited_costs_nothing(fragile: RunningService) -> None:
    # 3000 atoms that do not see each other: the watchdog gives their step 35 s in place of 3.
    many = Atoms("He" + "Ar2999", positions=20.0 * np.stack(np.unravel_index(range(3000), (15, 15, 15)), axis=1))
    connection = Connection("faulty", fragile.grpc)
    held = fragile.state / "model_repository" / "faulty" / "1" / "held"  # tests/families/faulty/adapter.py
    before = fragile.metric("forcegate_atoms", model="faulty")

    def send(atoms: Atoms) -> grpc.Future:
        request = connection.request([from_atoms(atoms)], ["energy"], None, "cancelled")
        return connection.stub.ModelInfer.future(request, timeout=60)

    held.touch()
    try:
        slow = send(many)
        # The server reads the long request later than short ones that were sent after it.
        wait_until(held.with_name("holding").exists, "the long one was not begun")
        waiting = [send(ARGON) for _ in range(8)]
        deadline = time.monotonic() + 20
        while fragile.metric_now("nv_inference_pending_request_count", model="faulty") < len(waiting):
            assert not slow.done(), slow.exception()
            assert time.monotonic() < deadline, "they do not wait"
            time.sleep(0.02)
        for future in waiting:
            future.cancel()
        # What comes later on the same connection is read later: once this has an answer, the server knows that they are cancelled.
        other = Connection("lj-argon", fragile.grpc).request([from_atoms(ARGON)], ["energy"], None, "later")
        connection.stub.ModelInfer(other, timeout=20)
    finally:
        held.unlink()
    slow.result()
    send(ARGON).result()
    connection.close()
    assert fragile.metric("forcegate_atoms", model="faulty") - before == len(many) + len(ARGON)
