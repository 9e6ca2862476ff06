"""The calculator's manners: what it asks for, what it keeps, what it tries again. The server is a fault injector."""

from __future__ import annotations

import copy
import pickle
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from forcegate import ForcegateCalculator, contract, errors
from forcegate.connection import Connection, typed
from forcegate.retries import MAX_CRASHES
from forcegate.structure import from_atoms
from tests.unit.fault_injection import UNHEALTHY, FaultyTriton, serving

INTERNAL, NOT_FOUND, UNAVAILABLE = grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def triton() -> FaultyTriton:
    return FaultyTriton()


@pytest.fixture
def address(triton: FaultyTriton) -> Iterator[str]:
    with serving(triton) as where:
        yield where


@pytest.fixture
def calculator(address: str) -> Iterator[ForcegateCalculator]:
    with ForcegateCalculator("m", address, timeout=10) as calc:
        yield calc


def attached(calculator: ForcegateCalculator, atoms: Atoms) -> Atoms:
    atoms.calc = calculator
    return atoms


def test_a_request_holds_every_tensor_of_the_contract() -> None:
    atoms = molecule("H2O")
    atoms.info["charge"], atoms.info["spin"] = -1, 2
    request = Connection("m").request([from_atoms(atoms)], ["energy"], head="a", request_id="7")
    assert [tensor.name for tensor in request.inputs] == [spec.name for spec in contract.INPUTS]
    for tensor, raw, spec in zip(request.inputs, request.raw_input_contents, contract.INPUTS, strict=True):
        assert tuple(tensor.shape) == spec.shape(1, 3)
        assert len(raw) == np.prod(tensor.shape) * spec.dtype.itemsize
    by_name = dict(zip([tensor.name for tensor in request.inputs], request.raw_input_contents, strict=True))
    assert np.frombuffer(by_name["numbers"], np.int32).tolist() == [8, 1, 1]
    assert np.allclose(np.frombuffer(by_name["positions"]).reshape(3, 3), atoms.positions)
    assert np.frombuffer(by_name["charge"])[0] == -1.0
    assert np.frombuffer(by_name["spin"], np.int32)[0] == 2
    assert request.parameters["head"].string_param == "a"
    assert request.id == "7"


def test_energy_forces_and_stress_of_one_geometry_cost_one_call(calculator: ForcegateCalculator, triton: FaultyTriton) -> None:
    atoms = attached(calculator, bulk("Cu", cubic=True))
    assert atoms.get_potential_energy() == 4.0
    atoms.get_forces()
    atoms.get_stress()
    atoms.get_potential_energy(force_consistent=True)
    assert len(triton.requests) == 1
    atoms.rattle(0.01)
    atoms.get_forces()
    assert len(triton.requests) == 2


def test_a_further_output_is_computed_once_asked_for_and_then_with_every_geometry(
    calculator: ForcegateCalculator, triton: FaultyTriton
) -> None:
    atoms = attached(calculator, bulk("Cu", cubic=True))
    atoms.get_forces()
    assert atoms.get_magnetic_moments().shape == (4,)
    assert [output.name for output in triton.requests[1].outputs] == ["magmoms"]
    atoms.rattle(0.01)
    atoms.get_forces()
    atoms.get_magnetic_moments()
    assert len(triton.requests) == 3
    assert calculator.implemented_properties[-1] == "magmoms"


def test_energies_of_atoms_are_left_out_where_a_correction_is_added(address: str, triton: FaultyTriton) -> None:
    triton.parameters |= {"extra_outputs": "energies,magmoms", "dispersion": "allowed", "functional": "PBE"}
    with ForcegateCalculator("m", address, dispersion="d3bj", compute=("energy", "energies")) as calc:
        atoms = attached(calc, bulk("Cu", cubic=True))
        assert atoms.get_potential_energy() == 8.0, "four of the model and four of the correction"
        assert calc.implemented_properties[4:] == ["magmoms"]
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_potential_energies()
        with pytest.raises(PropertyNotImplementedError, match="d3bj-pbe"):
            calc.calculate(atoms, ["energies"])
        assert "energies" not in calc.results
    assert "energies" not in {output.name for request in triton.requests for output in request.outputs}
    with ForcegateCalculator("m", address) as calc:
        assert attached(calc, bulk("Cu", cubic=True)).get_potential_energies().shape == (4,)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ForcegateCalculator("m", address, timeout=10, connect_timeout=1) as calc:
        assert attached(calc, bulk("Cu")).get_potential_energy() == 1.0


def test_energies_alone_where_only_they_are_wanted(address: str, triton: FaultyTriton) -> None:
    with ForcegateCalculator("m", address, compute=("energy",)) as calc:
        attached(calc, bulk("Cu")).get_potential_energy()
    assert [output.name for output in triton.requests[0].outputs] == ["energy"]


def test_charge_spin_and_head_make_a_new_calculation_and_initial_moments_do_not(
    calculator: ForcegateCalculator, triton: FaultyTriton
) -> None:
    atoms = attached(calculator, bulk("Cu", cubic=True))
    atoms.get_forces()
    atoms.set_initial_magnetic_moments([1.0] * 4)
    atoms.get_forces()
    assert len(triton.requests) == 1
    atoms.info["charge"] = 1
    atoms.get_forces()
    atoms.info["spin"] = 3
    atoms.get_forces()
    assert len(triton.requests) == 3
    calculator.set(head="b")
    atoms.get_forces()
    assert triton.requests[3].parameters["head"].string_param == "b"
    with pytest.raises(TypeError, match="no parameter"):
        calculator.set(heads="b")


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_stress_without_three_periodic_directions_is_refused_in_words(
    calculator: ForcegateCalculator, triton: FaultyTriton, pbc: object
) -> None:
    atoms = attached(calculator, Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], cell=[9, 9, 9], pbc=pbc))
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three directions"):
        atoms.get_stress()
    assert triton.requests == []
    atoms.get_forces()
    assert "stress" not in calculator.results
    assert "stress" not in [output.name for output in triton.requests[0].outputs]


def test_the_input_is_not_changed(calculator: ForcegateCalculator) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.positions -= 20.0
    atoms.info["note"] = "kept"
    before = atoms.copy()
    attached(calculator, atoms).get_forces()
    assert atoms == before
    assert atoms.info == before.info


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_a_copy_works_after_the_original_is_closed(
    calculator: ForcegateCalculator, triton: FaultyTriton, duplicate: object
) -> None:
    atoms = attached(calculator, bulk("Cu", cubic=True))
    atoms.get_forces()
    other = duplicate(calculator)  # type: ignore[operator]
    calculator.close()
    other.get_forces(atoms)
    assert len(triton.requests) == 1, "the copy keeps the results"
    atoms.rattle(0.01)
    assert other.get_forces(atoms).shape == (4, 3)
    other.close()


def test_threads_that_share_a_calculator_each_get_their_own_answer(calculator: ForcegateCalculator, triton: FaultyTriton) -> None:
    triton.seconds = 0.002
    wrong: list[float] = []

    def work(cells: int) -> None:
        atoms = bulk("Cu") * (cells, 1, 1)
        for step in range(10):
            atoms.positions[0, 0] = 0.01 * step
            if (energy := calculator.get_potential_energy(atoms)) != cells:
                wrong.append(energy)

    threads = [threading.Thread(target=work, args=(cells,)) for cells in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "fault",
    [
        (UNAVAILABLE, "failed to connect to all addresses"),
        (UNAVAILABLE, "Request for unknown model: 'm' has no available versions"),
        (NOT_FOUND, "Request for unknown model: 'm' is not found"),
        (INTERNAL, "overloaded: too much in flight"),
    ],
)
def test_what_can_pass_is_tried_again(
    calculator: ForcegateCalculator, triton: FaultyTriton, fault: tuple[grpc.StatusCode, str]
) -> None:
    triton.faults = [fault] * 3
    assert attached(calculator, bulk("Cu")).get_potential_energy() == 1.0
    assert len(triton.requests) == 4


def test_a_model_s_own_error_is_raised_at_once_with_its_type_and_request(
    calculator: ForcegateCalculator, triton: FaultyTriton
) -> None:
    triton.faults = [(INTERNAL, "coincident_atoms: Atoms 0 and 1 are 0.01 A apart. | hint: Remove one.")] * 2
    with pytest.raises(errors.CoincidentAtoms) as caught:
        attached(calculator, bulk("Cu")).get_forces()
    assert (caught.value.detail, caught.value.hint) == ("Atoms 0 and 1 are 0.01 A apart.", "Remove one.")
    assert caught.value.request_id == triton.requests[0].id
    assert caught.value.__cause__ is None
    assert len(triton.requests) == 1


def test_a_new_process_is_waited_for(calculator: ForcegateCalculator, triton: FaultyTriton) -> None:
    triton.poison, triton.deaths, triton.recovery = 92, 1, 1.0
    with pytest.raises(errors.EvaluationFailed, match="died of this structure"):
        attached(calculator, bulk("U", "bcc", a=3.4)).get_forces()
    assert len(triton.requests) == 2, "nothing is sent to a process that is known to be dead"


def test_a_structure_that_goes_on_killing_processes_is_given_up(calculator: ForcegateCalculator, triton: FaultyTriton) -> None:
    triton.poison, triton.deaths, triton.recovery = 92, 1000, 0.05
    with pytest.raises(errors.EvaluationFailed, match=f"ended {MAX_CRASHES} times") as caught:
        attached(calculator, bulk("U", "bcc", a=3.4)).get_forces()
    assert not caught.value.retryable
    assert len(triton.requests) == MAX_CRASHES
    assert attached(calculator, bulk("Cu")).get_potential_energy() == 1.0, "the next structure is served"


def test_the_deadline_holds_when_nothing_comes_back(address: str, triton: FaultyTriton) -> None:
    triton.seconds = 3.0
    with ForcegateCalculator("m", address, timeout=0.5) as calc:
        start = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match="did not answer in time"):
            attached(calc, bulk("Cu")).get_forces()
        assert 0.4 < time.monotonic() - start < 1.5


def test_the_deadline_holds_over_all_attempts(address: str, triton: FaultyTriton) -> None:
    with ForcegateCalculator("m", address, timeout=1.0) as calc:
        atoms = attached(calc, bulk("Cu"))
        atoms.get_forces()
        triton.faults = [(UNAVAILABLE, "Socket closed")] * 1000
        atoms.rattle(0.1)
        start = time.monotonic()
        with pytest.raises(errors.ServerUnavailable):
            atoms.get_forces()
        assert 0.3 < time.monotonic() - start <= 1.2


def test_a_wrong_address_is_noticed_before_the_timeout() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with ForcegateCalculator("m", address, timeout=60, connect_timeout=0.5) as calc:
        start = time.monotonic()
        with pytest.raises(errors.ServerUnavailable, match="forcegate serve"):
            attached(calc, bulk("Cu")).get_forces()
        assert time.monotonic() - start < 5.0


def test_a_server_that_comes_back_is_found_again(triton: FaultyTriton) -> None:
    with serving(triton) as address:
        calc = ForcegateCalculator("m", address, timeout=20)
        atoms = attached(calc, bulk("Cu"))
        atoms.get_forces()
    atoms.rattle(0.1)
    results: list[float] = []
    thread = threading.Thread(target=lambda: results.append(atoms.get_potential_energy()))
    thread.start()
    time.sleep(1.0)
    assert results == []
    with serving(triton, address):
        thread.join(timeout=15)
        calc.close()
    assert results == [1.0]


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        (None, errors.UnknownModel, "Did you mean mm"),
        (("UNAVAILABLE", "checkpoint_mismatch: file a, expected b, found c"), errors.CheckpointMismatch, "expected b, found c"),
        (("UNAVAILABLE", "unloaded"), errors.ModelNotReady, "not loaded"),
    ],
)
def test_why_a_model_is_not_there(
    address: str,
    triton: FaultyTriton,
    monkeypatch: pytest.MonkeyPatch,
    entry: tuple[str, str] | None,
    kind: type[errors.ForcegateError],
    words: str,
) -> None:
    monkeypatch.setenv("FORCEGATE_TRITON_KEY", "of the service's own processes")
    triton.index = {"mm": ("READY", "")} | ({"m": entry} if entry else {})
    triton.faults = [(NOT_FOUND, "Request for unknown model: 'm' is not found")] * 1000
    with ForcegateCalculator("m", address, timeout=60, connect_timeout=0.5) as calc, pytest.raises(kind, match=words):
        attached(calc, bulk("Cu")).get_forces()


def test_an_unknown_name_is_noticed_without_the_key_of_the_index(address: str, triton: FaultyTriton) -> None:
    triton.index = {"mm": ("READY", "")}
    triton.faults = [(NOT_FOUND, "Request for unknown model: 'm' is not found")] * 1000
    with (
        ForcegateCalculator("m", address, connect_timeout=0.5) as calc,
        pytest.raises(errors.UnknownModel, match="Did you mean mm"),
    ):
        attached(calc, bulk("Cu")).get_forces()


def test_another_version_of_the_contract_is_refused(calculator: ForcegateCalculator, triton: FaultyTriton) -> None:
    triton.parameters["contract_version"] = "2"
    with pytest.raises(errors.SetupError, match="version 2 of the tensor contract"):
        _ = calculator.provenance


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded),
        (INTERNAL, UNHEALTHY, errors.ModelCrashed),
        (INTERNAL, "Received RST_STREAM with error code 2", errors.ServerUnavailable),
        (grpc.StatusCode.CANCELLED, "", errors.ServerUnavailable),
        (INTERNAL, "Failed to increase the shared memory pool size for key 'x'", errors.Overloaded),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected inference output 'magmoms' for model 'm'", errors.UnsupportedOutput),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max", errors.BodyTooLarge),
        (INTERNAL, "Failed to process the request(s), message: KeyError: 3", errors.EvaluationFailed),
        (INTERNAL, "[request 4] unknown_head: no head x", errors.UnknownHead),
    ],
)
def test_every_status_has_a_type(status: grpc.StatusCode, text: str, kind: type[errors.ForcegateError]) -> None:
    class Failure(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return status

        def details(self) -> str:
            return text

    assert type(typed(Failure(), "m", "127.0.0.1:8001")) is kind


def test_a_dispersion_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(errors.InvalidRequest, match="d4"):
        ForcegateCalculator("m", dispersion="d4")
