"""Nobody is hurt by a neighbour's bad structure: in a batch with five bad ones each of them gets its own typed error, the rest
their right answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from forcegate import errors, evaluate
from tests.conformance import cases
from tests.conformance.comparison import ANALYTIC, Tolerance, beyond, deviations
from tests.conformance.reference import family_of
from tests.service import RunningService


def good(family: str) -> list[Atoms]:
    """27 structures of 1 to 20 atoms."""
    names = ["Cu", "SrTiO3", "water", "slab TTF", "one atom in a box", "left-handed cell", "triclinic", "wire FTF", "unwrapped"]
    return [cases.rattled(cases.structure(family, name), seed) for seed in range(3) for name in names]


def bad(family: str) -> dict[type[errors.ForcegateError], Atoms]:
    """One structure for each error."""
    not_finite = cases.structure(family, "SrTiO3")
    not_finite.positions[3, 1] = np.nan
    coincident = cases.structure(family, "Cu")
    # One lattice vector away: the two meet only across the boundary of the cell.
    coincident.positions[2] = coincident.positions[1] + coincident.cell.array[0] + 0.01
    unknown = cases.structure(family, "Cu")
    unknown.numbers[1] = 84
    grid = 3.5 * np.stack(np.meshgrid(*[np.arange(100.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return {
        errors.NonFiniteInput: not_finite,
        errors.CoincidentAtoms: coincident,
        errors.UnsupportedElement: unknown,
        errors.EmptyStructure: Atoms(cell=[5.0, 5.0, 5.0], pbc=True),
        errors.StructureTooLarge: Atoms(
            numbers=np.full(10**6, 18 if family == "lennard_jones" else 29), positions=grid, cell=[350.0] * 3, pbc=True
        ),
    }


@pytest.mark.parametrize("model", ["lj-argon", "sevennet-0", "chgnet-0.3.0"])
def test_five_bad_structures_among_thirty_two(model: str, service: RunningService) -> None:
    family = family_of(model)
    batch: list[Atoms] = good(family)
    expected: dict[int, type[errors.ForcegateError]] = {}
    alone = evaluate(batch, model, address=service.grpc, in_flight=1)
    for place, (kind, atoms) in zip((2, 9, 16, 23, 30), bad(family).items(), strict=True):
        batch.insert(place, atoms)
        expected[place] = kind
    assert len(batch) == 32

    rejected = {kind: service.metric("forcegate_rejected", model=model, code=kind.code) for kind in expected.values()}
    calls = service.metric("nv_inference_exec_count", model=model)
    with ThreadPoolExecutor(1) as caller:
        if family == "lennard_jones":
            # It answers faster than a client on a busy machine asks: what comes beside a large one waits, as with the other two.
            large = caller.submit(evaluate, [bulk("Ar", "fcc", 5.26, cubic=True) * (15, 15, 15)], model, address=service.grpc)
            time.sleep(0.1)
        results = evaluate(batch, model, address=service.grpc, raise_errors=False)
    assert family != "lennard_jones" or large.result()[0].energy < 0.0
    assert service.metric("nv_inference_exec_count", model=model) - calls < 32, "good and bad shared no call of the model"

    assert {index: type(result.error) for index, result in enumerate(results) if result.error is not None} == expected
    remaining = iter(alone)
    for index, result in enumerate(results):
        if index in expected:
            assert result.energy is None
            assert result.forces is None
            assert result.error is not None
            assert 400 <= result.error.status < 500
            assert not result.error.retryable
            assert result.error.hint
            assert result.error.request_id
            assert service.metric("forcegate_rejected", model=model, code=result.error.code) == rejected[expected[index]] + 1
            continue
        one = next(remaining)
        found = deviations(
            {"energy": result.energy, "forces": result.forces, "stress": result.stress},
            {"energy": one.energy, "forces": one.forces, "stress": one.stress},
        )
        assert beyond(found, ANALYTIC if family == "lennard_jones" else Tolerance()) == {}


def test_the_error_says_which_atoms(service: RunningService) -> None:
    """The details name what to look for in the file."""
    messages = {}
    for kind, atoms in bad("sevennet").items():
        (result,) = evaluate([atoms], "sevennet-0", address=service.grpc, raise_errors=False)
        messages[kind] = str(result.error)
    assert "position with index 3" in messages[errors.NonFiniteInput]
    assert "Atom 1 and atom 2" in messages[errors.CoincidentAtoms] or "Atom 2 and atom 1" in messages[errors.CoincidentAtoms]
    assert "Po" in messages[errors.UnsupportedElement]
    assert "1000000 atoms" in messages[errors.StructureTooLarge]


@pytest.mark.parametrize("model", ["lj-argon", "sevennet-0", "chgnet-0.3.0"])
def test_a_vast_cell_is_no_danger(model: str, service: RunningService) -> None:
    """Neighbour searches that keep every empty part of a cell in memory would need 1e13 bytes here, and end the process."""
    near = cases.structure(family_of(model), "near fragments")
    vast = near.copy()
    vast.set_cell([60_000.0, 60_000.0, 60_000.0])
    vast.set_pbc(True)
    one, other = evaluate([near, vast], model, address=service.grpc)
    # The energy is the same but for float32, which resolves 0.004 A in so wide a cell where a package keeps coordinates in it.
    assert (
        deviations({"energy": one.energy, "forces": one.forces}, {"energy": other.energy, "forces": other.forces})["energy"] < 0.05
    )


@pytest.mark.parametrize("model", ["lj-argon", "sevennet-0", "chgnet-0.3.0"])
def test_a_dense_cluster_beside_a_distant_atom(model: str, service: RunningService) -> None:
    """The mean density of this structure is that of a gas, yet it has 1e9 neighbour pairs."""
    number = 18 if model == "lj-argon" else 29
    ball = 0.2 * np.stack(np.meshgrid(*[np.arange(34.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    atoms = Atoms(numbers=np.full(len(ball) + 1, number), positions=np.vstack([ball, [900.0, 900.0, 900.0]]))
    atoms.set_cell([1000.0, 1000.0, 1000.0])
    atoms.set_pbc(True)
    (result,) = evaluate([atoms], model, address=service.grpc, raise_errors=False)
    assert type(result.error) is errors.StructureTooLarge
