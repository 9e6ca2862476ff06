"""The checks before and after an evaluation, one refusal at a time, with the values at their limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from forcefields import catalogue
from forcefields.base import Result
from forcefields.runtime import physics
from forcefields.runtime.physics import Limits
from forcegate import errors
from forcegate.structure import Structure

LIMITS = Limits(atoms=10, edges=1000)
SINGLE = replace(catalogue.load().resolve("chgnet-0.3.0"))
HEADS = catalogue.load().resolve("sevennet-mf-0")


def crystal(**changes: object) -> Structure:
    """Two atoms in a box of 4 A."""
    structure = Structure(
        np.array([11, 17], dtype=np.int32), np.array([[0.1, 0.2, 0.3], [2.0, 2.1, 2.2]]), 4.0 * np.eye(3), np.ones(3, dtype=bool)
    )
    return replace(structure, **changes)  # type: ignore[arg-type]


def atoms(count: int) -> Structure:
    """A line of atoms."""
    return Structure(np.full(count, 6, dtype=np.int32), np.arange(3.0 * count).reshape(count, 3))


def with_position(value: float) -> Structure:
    positions = crystal().positions.copy()
    positions[1, 2] = value
    return crystal(positions=positions)


def with_cell(rows: object, pbc: object = (True, True, True)) -> Structure:
    return crystal(cell=np.array(rows, dtype=float), pbc=np.array(pbc, dtype=bool))


def refused(structure: Structure, head: str = "", variant: catalogue.Variant = SINGLE) -> errors.ForcegateError:
    """The error with which a structure is refused."""
    with pytest.raises(errors.ForcegateError) as caught:
        physics.validate(structure, head, variant, LIMITS)
    return caught.value


def test_a_right_structure_passes() -> None:
    assert physics.validate(crystal(), "", SINGLE, LIMITS) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_positions_that_are_not_finite(value: float) -> None:
    error = refused(with_position(value))
    assert type(error) is errors.NonFiniteInput
    assert "position with index 1" in error.detail


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)])
def test_cells_that_are_not_finite(value: float, pbc: tuple[bool, ...]) -> None:
    """Also a vector that is not periodic: whatever wrote it is broken."""
    error = refused(with_cell([[4, 0, 0], [0, 4, 0], [0, 0, value]], pbc))
    assert type(error) is errors.NonFiniteInput
    assert "cell vector with index 2" in error.detail


@pytest.mark.parametrize("charge", [math.nan, math.inf])
def test_a_charge_that_is_not_finite(charge: float) -> None:
    assert type(refused(crystal(charge=charge))) is errors.NonFiniteInput


def test_no_atoms() -> None:
    assert type(refused(atoms(0))) is errors.EmptyStructure


def test_as_many_atoms_as_are_taken_and_one_more() -> None:
    physics.validate(atoms(10), "", SINGLE, LIMITS)
    error = refused(atoms(11))
    assert type(error) is errors.StructureTooLarge
    assert "11 atoms" in error.detail


@pytest.mark.parametrize(("number", "name"), [(84, "Po"), (95, "Am"), (0, "number 0"), (-3, "number -3"), (400, "number 400")])
def test_elements_without_training(number: int, name: str) -> None:
    error = refused(crystal(numbers=np.array([11, number], dtype=np.int32)))
    assert type(error) is errors.UnsupportedElement
    assert name in error.detail


@pytest.mark.parametrize("number", [1, 83, 89, 94])
def test_the_outermost_elements_that_are_known(number: int) -> None:
    physics.validate(crystal(numbers=np.array([11, number], dtype=np.int32)), "", SINGLE, LIMITS)


def test_coordinates_up_to_the_largest() -> None:
    physics.validate(with_position(physics.MAX_COORDINATE), "", SINGLE, LIMITS)
    assert type(refused(with_position(1.001 * physics.MAX_COORDINATE))) is errors.InvalidCell
    assert type(refused(with_cell(2e6 * np.eye(3)))) is errors.InvalidCell


@pytest.mark.parametrize(
    ("rows", "pbc"),
    [
        (np.zeros((3, 3)), (True, True, True)),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], (True, True, True)),
        ([[4, 0, 0], [0, 0, 0], [0, 0, 4]], (False, True, False)),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0.19]], (True, True, True)),
        ([[4, 0, 0], [8, 0, 0], [0, 0, 4]], (True, True, False)),
        ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], (True, True, True)),
        ([[4, 0, 0], [0, 4, 0], [4, 4, 0.15]], (True, True, True)),
        ([[4, 0, 0], [4, 0.1, 0], [0, 0, 4]], (True, True, False)),
    ],
    ids=[
        "no cell",
        "c missing",
        "wire without b",
        "c too short",
        "a and b parallel",
        "coplanar",
        "nearly coplanar",
        "nearly parallel",
    ],
)
def test_cells_that_do_not_fit_the_periodic_directions(rows: object, pbc: tuple[bool, ...]) -> None:
    assert type(refused(with_cell(rows, pbc))) is errors.InvalidCell


@pytest.mark.parametrize(
    ("rows", "pbc"),
    [
        (np.zeros((3, 3)), (False, False, False)),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0]], (True, True, False)),
        ([[4, 0, 0], [0, 4, 0], [8, 8, 0]], (True, True, False)),
        ([[0, 0, 0], [0, 4, 0], [0, 0, 0]], (False, True, False)),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 0.21]], (True, True, True)),
        ([[0, 4, 0], [4, 0, 0], [0, 0, 4]], (True, True, True)),
        ([[4, 0, 0], [40, 4, 0], [400, 40, 4]], (True, True, True)),
    ],
    ids=["molecule", "slab without c", "slab with c in its plane", "wire", "thin", "left-handed", "skewed"],
)
def test_cells_that_do_fit(rows: object, pbc: tuple[bool, ...]) -> None:
    physics.validate(with_cell(rows, pbc), "", SINGLE, LIMITS)


@pytest.mark.parametrize(
    ("given", "used"), [("", "PBE"), ("PBE", "PBE"), ("R2SCAN", "R2SCAN"), ("r2scan", "R2SCAN"), ("pbe", "PBE")]
)
def test_heads_are_found_in_any_case(given: str, used: str) -> None:
    assert physics.validate(crystal(), given, HEADS, LIMITS) == used


@pytest.mark.parametrize(("head", "variant"), [("HSE", HEADS), ("PBE", SINGLE), ("x" * 1000, HEADS)])
def test_heads_that_the_model_does_not_have(head: str, variant: catalogue.Variant) -> None:
    error = refused(crystal(), head, variant)
    assert type(error) is errors.UnknownHead
    assert error.hint
    assert len(error.detail) < 150


def test_charge_and_spin_that_would_be_ignored() -> None:
    assert type(refused(crystal(charge=1.0))) is errors.ChargeNotSupported
    assert type(refused(crystal(charge=-0.5))) is errors.ChargeNotSupported
    assert type(refused(crystal(spin=2))) is errors.SpinNotSupported
    assert type(refused(crystal(spin=-1))) is errors.InvalidStructure
    physics.validate(crystal(charge=0.0, spin=1), "", SINGLE, LIMITS)


def test_atoms_that_coincide() -> None:
    for distance, fine in ((0.099, False), (0.101, True)):
        structure = physics.normalise(with_position(2.2), 5.0)
        positions = structure.positions.copy()
        positions[1] = positions[0] + [0, distance, 0]
        moved = replace(structure, positions=positions)
        if fine:
            physics.check_distances(moved)
        else:
            with pytest.raises(errors.CoincidentAtoms, match=r"Atom 0 and atom 1 are 0\.099 A apart"):
                physics.check_distances(moved)


def test_an_atom_that_coincides_with_a_periodic_image() -> None:
    structure = crystal(positions=np.array([[0.02, 2.0, 2.0], [3.97, 2.0, 2.0]]))
    with pytest.raises(errors.CoincidentAtoms, match=r"0\.050 A"):
        physics.check_distances(physics.normalise(structure, 5.0))
    # The same two are far apart where that direction is not periodic.
    physics.check_distances(physics.normalise(replace(structure, pbc=np.array([False, True, True])), 5.0))


def test_estimated_pairs_of_a_crystal() -> None:
    """The estimate is within a factor of two of the true count, which for density n is N n 4/3 pi r^3."""
    structure = physics.normalise(crystal(), 5.0)
    pairs = 2 * (2 / 64) * 4 / 3 * math.pi * 5.0**3
    physics.check_size(structure, 5.0, Limits(10, int(pairs)))
    with pytest.raises(errors.StructureTooLarge, match="neighbour pairs"):
        physics.check_size(structure, 5.0, Limits(10, int(pairs / 3)))


def test_a_dense_cluster_is_seen_beside_a_distant_atom() -> None:
    """1000 atoms within 2 A have a million pairs; their mean density in a box of 1000 A says less than one."""
    ball = 0.2 * np.stack(np.meshgrid(*[np.arange(10.0)] * 3), axis=-1).reshape(-1, 3)
    far = Structure(np.full(1001, 18, dtype=np.int32), np.vstack([ball, [900.0] * 3]), 1000 * np.eye(3), np.ones(3, dtype=bool))
    with pytest.raises(errors.StructureTooLarge):
        physics.check_size(physics.normalise(far, 5.0), 5.0, Limits(10_000, 50_000))


def test_a_dilute_gas_is_not_taken_for_a_large_structure() -> None:
    generator = np.random.default_rng(0)
    gas = Structure(
        np.full(1000, 18, dtype=np.int32), generator.uniform(0, 300, (1000, 3)), 300 * np.eye(3), np.ones(3, dtype=bool)
    )
    physics.check_size(physics.normalise(gas, 5.0), 5.0, Limits(10_000, 10_000))


def test_too_many_pairs_name_the_size_that_fits() -> None:
    physics.check_edges(100, 1000, LIMITS)
    with pytest.raises(errors.StructureTooLarge, match="about 50 atoms"):
        physics.check_edges(100, 2000, LIMITS)


def answer(**changes: object) -> Result:
    return replace(Result(-1.0, np.zeros((2, 3)), np.arange(6.0)), **changes)  # type: ignore[arg-type]


def test_stress_survives_only_full_periodicity() -> None:
    assert physics.finish(answer(), crystal()).stress is not None
    for pbc in ((True, True, False), (False, False, False)):
        stress = physics.finish(answer(), crystal(pbc=np.array(pbc))).stress
        assert stress is not None
        assert np.isnan(stress).all()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"energy": math.nan}, "energy"),
        ({"energy": math.inf}, "energy"),
        ({"forces": np.array([[0, 0, 0], [0, math.nan, 0]])}, "forces"),
        ({"stress": np.array([0, 0, 0, 0, 0, math.inf])}, "stress"),
    ],
)
def test_results_that_are_not_finite(changes: dict[str, object], word: str) -> None:
    with pytest.raises(errors.NonFiniteResult, match=word):
        physics.finish(answer(**changes), crystal())


def test_stress_that_is_masked_anyway_need_not_be_finite() -> None:
    physics.finish(answer(stress=np.full(6, math.nan)), crystal(pbc=np.array([True, True, False])))
