"""``evaluate`` and ``iterate``: order, memory, faults. The server is a fault injector whose energy is the number of atoms."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from forcegate import errors, evaluate, iterate
from forcegate.structure import from_atoms
from tests.unit.fault_injection import FaultyTriton, serving


@pytest.fixture
def triton() -> FaultyTriton:
    return FaultyTriton()


@pytest.fixture
def address(triton: FaultyTriton) -> Iterator[str]:
    with serving(triton) as where:
        yield where


def chains(count: int) -> Iterator[Atoms]:
    for number in range(count):
        yield bulk("Cu") * (1 + number % 7, 1, 1)


def test_answers_come_in_the_order_of_the_input(address: str, triton: FaultyTriton) -> None:
    triton.faults = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 3
    results = evaluate(chains(100), "m", address=address)
    assert [result.index for result in results] == list(range(100))
    assert [result.energy for result in results] == [1 + number % 7 for number in range(100)]
    assert results[6].forces is not None
    assert results[6].forces.shape == (7, 3)


def test_many_requests_are_in_flight_and_never_more_than_asked_for(address: str, triton: FaultyTriton) -> None:
    triton.seconds = 0.05  # long against what sending takes, on a busy machine too
    evaluate(chains(200), "m", address=address, in_flight=20)
    assert 15 <= triton.most_running <= 20


def test_a_generator_is_read_only_as_far_as_needed(address: str) -> None:
    read = 0

    def source() -> Iterator[Atoms]:
        nonlocal read
        for atoms in chains(10_000):
            read += 1
            yield atoms

    stream = iterate(source(), "m", address=address, in_flight=4)
    for given in range(200):
        assert next(stream).index == given
        # Four in flight, and at most four times as many answers that wait for an earlier one.
        assert read - given <= 4 * 4
    stream.close()
    assert read < 250


def test_one_bad_structure_does_not_stop_the_others(address: str) -> None:
    structures = [bulk("Cu"), Atoms("CuX", [[0, 0, 0], [0, 0, 2]]), bulk("Cu") * (2, 1, 1)]
    results = evaluate(structures, "m", address=address, raise_errors=False)
    assert [result.energy for result in results] == [1.0, None, 2.0]
    assert isinstance(results[1].error, errors.InvalidStructure)
    with pytest.raises(errors.InvalidStructure):
        results[1].to_atoms()
    with pytest.raises(errors.InvalidStructure, match=r"Structure 1 \(CuX\)"):
        evaluate(structures, "m", address=address)


def test_batch_mates_of_a_structure_that_kills_the_process_are_answered(address: str, triton: FaultyTriton) -> None:
    triton.poison, triton.seconds = 92, 0.02
    structures = [*chains(10), bulk("U", "bcc", a=3.4), *chains(10)]
    results = evaluate(structures, "m", address=address, raise_errors=False)
    assert [result.index for result in results if result.error is not None] == [10]
    assert isinstance(results[10].error, errors.EvaluationFailed)
    assert results[20].energy == 3.0
    assert triton.processes == 2


def test_a_service_that_has_gone_ends_the_run(address: str, triton: FaultyTriton) -> None:
    triton.faults = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 10_000
    with pytest.raises(errors.ServerUnavailable):
        evaluate(chains(1000), "m", address=address, timeout=0.6, raise_errors=False)
    assert len(triton.requests) < 200


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [({"head": "c"}, errors.UnknownHead, "It has: a, b"), ({"outputs": ["charges"]}, errors.UnsupportedOutput, "magmoms")],
)
def test_a_wrong_option_is_refused_before_anything_is_sent(
    address: str, triton: FaultyTriton, options: dict[str, object], kind: type[errors.ForcegateError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        evaluate(chains(3), "m", address=address, **options)
    assert triton.requests == []


def test_results_become_ase_atoms_with_a_calculator(address: str) -> None:
    atoms = bulk("Cu", cubic=True)
    (result,) = evaluate([from_atoms(atoms)], "m", outputs=("energy", "forces", "stress", "magmoms"), address=address)
    written = result.to_atoms()
    assert written.get_potential_energy() == 4.0
    assert written.get_stress().shape == (6,)
    assert written.get_magnetic_moments().shape == (4,)
    assert np.array_equal(written.positions, atoms.positions)
    assert result.provenance["model"] == "m"


def test_stress_is_none_without_three_periodic_directions(address: str) -> None:
    (result,) = evaluate([Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])], "m", address=address)
    assert result.stress is None
    assert result.energy == 2.0


def test_progress_and_what_is_not_a_structure(address: str) -> None:
    seen: list[tuple[int, int | None]] = []
    evaluate([bulk("Cu")] * 3, "m", address=address, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(TypeError, match="Structure 0 is a str"):
        evaluate(["Cu.cif"], "m", address=address)  # type: ignore[list-item]


def with_policy(triton: FaultyTriton, policy: str) -> None:
    triton.parameters |= {"dispersion": policy, "functional": "PBE(+U)", "extra_outputs": "energies"}


def test_a_correction_is_added_and_named(address: str, triton: FaultyTriton) -> None:
    with_policy(triton, "allowed")
    triton.faults = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 3
    results = evaluate(chains(50), "m", address=address, dispersion="d3bj", in_flight=8)
    # The fault injector answers for the correction as it does for the model.
    assert [result.energy for result in results] == [2 * (1 + number % 7) for number in range(50)]
    assert {request.model_name for request in triton.requests} == {"m", "d3bj-pbe"}
    assert results[0].provenance["dispersion"] == "d3bj-pbe"
    assert evaluate(chains(1), "m", address=address, dispersion="auto")[0].energy == 1, "allowed is not recommended"


def test_a_recommended_correction_is_added_by_auto(address: str, triton: FaultyTriton) -> None:
    with_policy(triton, "recommended")
    assert evaluate(chains(1), "m", address=address, dispersion="auto")[0].energy == 2
    assert evaluate(chains(1), "m", address=address)[0].energy == 1
    (energy,) = evaluate(chains(1), "m", address=address, dispersion="auto", outputs=("energy",))
    assert (energy.energy, energy.forces) == (2, None)


def test_a_structure_that_either_of_them_refuses_fails_alone(address: str, triton: FaultyTriton) -> None:
    with_policy(triton, "allowed")
    triton.poison, triton.deaths = 92, 0
    structures = [bulk("Cu"), bulk("U", "bcc", a=3.4), Atoms("CuX", [[0, 0, 0], [0, 0, 2]]), bulk("Cu")]
    results = evaluate(structures, "m", address=address, dispersion="d3bj", raise_errors=False)
    assert [result.energy for result in results] == [2, None, None, 2]
    assert [type(result.error) for result in results[1:3]] == [errors.EvaluationFailed, errors.InvalidStructure]


@pytest.mark.parametrize(
    ("policy", "options", "kind"),
    [
        ("included", {"dispersion": "d3bj"}, errors.DispersionNotSupported),
        ("allowed", {"dispersion": "d4"}, errors.InvalidRequest),
        # There are none of each atom, and what the model says of them would not sum to the energy.
        ("allowed", {"dispersion": "d3bj", "outputs": ("energy", "energies")}, errors.UnsupportedOutput),
    ],
)
def test_a_correction_that_would_be_wrong_is_refused_before_anything_is_sent(
    address: str, triton: FaultyTriton, policy: str, options: dict[str, object], kind: type[errors.ForcegateError]
) -> None:
    with_policy(triton, policy)
    with pytest.raises(kind):
        evaluate(chains(3), "m", address=address, **options)
    assert triton.requests == []
