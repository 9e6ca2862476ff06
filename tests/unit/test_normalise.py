"""Normalising keeps the physics: the same atoms see the same neighbours at the same distances, whatever the cell is like.

The reference is ASE's own neighbour list on the structure as it was sent, with its own handling of every kind of periodicity.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from forcefields.cells import MIN_HEIGHT
from forcefields.neighbours import closest_pair, neighbour_images, neighbour_pairs
from forcefields.runtime.physics import VACUUM_MARGIN, normalise
from forcegate.structure import Structure

CUTOFF = 4.0


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Random atoms, many of them far outside, in a random cell: left-handed, skewed, with zero vectors, any periodicity."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    count = draw(st.integers(1, 6))
    while True:
        cell = np.diag(generator.uniform(2.5, 7.0, 3)) + generator.uniform(-2.0, 2.0, (3, 3))
        if abs(np.linalg.det(cell)) > 15 and (not pbc.any() or (1 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0)).min() > 1.5):
            break
    if draw(st.booleans()):
        cell = cell[[1, 0, 2]]
    if draw(st.booleans()):
        cell[~pbc] = 0.0
    if draw(st.booleans()):
        # The same lattice, much more skewed.
        periodic = np.flatnonzero(pbc)
        for k in periodic[1:]:
            cell[k] += draw(st.integers(-3, 3)) * cell[periodic[0]]
    spread = draw(st.sampled_from([2.0, 15.0, 200.0]))
    return Structure(np.full(count, 18, dtype=np.int32), generator.uniform(-spread, spread, (count, 3)), cell, pbc)


def distances(structure: Structure) -> list[tuple[int, int, float]]:
    """All directed pairs within the cutoff, by ASE, sorted."""
    cell = structure.cell.copy()
    # ASE wants something there, and ignores it.
    for k in np.flatnonzero(~structure.pbc):
        if not cell[k].any() or np.linalg.matrix_rank(cell) < 3:
            others = np.delete(cell, k, axis=0)
            cell[k] = np.linalg.svd(others)[2][-1] if np.linalg.matrix_rank(others) == 2 else cell[k]
    if np.linalg.matrix_rank(cell) < 3:
        periodic = structure.cell[structure.pbc]
        cell[~structure.pbc] = np.linalg.svd(periodic)[2][len(periodic) :] if len(periodic) else np.eye(3)
    i, j, d = primitive_neighbor_list("ijd", structure.pbc, cell, structure.positions, CUTOFF, self_interaction=False)
    return sorted(zip(i.tolist(), j.tolist(), np.round(d, 6).tolist(), strict=True))


def same(found: list[tuple[int, int, float]], expected: list[tuple[int, int, float]]) -> None:
    """Equal lists, but for pairs at the very cutoff, which rounding may take either way."""
    trimmed = [[pair for pair in pairs if pair[2] < CUTOFF - 1e-5] for pairs in (found, expected)]
    assert [pair[:2] for pair in trimmed[0]] == [pair[:2] for pair in trimmed[1]]
    np.testing.assert_allclose([pair[2] for pair in trimmed[0]], [pair[2] for pair in trimmed[1]], atol=2e-6)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(structures())
def test_every_atom_keeps_its_neighbours(structure: Structure) -> None:
    normalised = normalise(structure, CUTOFF)
    i, j, vectors = neighbour_pairs(normalised, CUTOFF)
    found = sorted(zip(i.tolist(), j.tolist(), np.round(np.linalg.norm(vectors, axis=1), 6).tolist(), strict=True))
    same(found, distances(structure))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(structures())
def test_what_every_package_may_rely_on(structure: Structure) -> None:
    normalised = normalise(structure, CUTOFF)
    assert normalised.pbc.all()
    assert np.linalg.det(normalised.cell) > 0
    fractional = normalised.positions @ np.linalg.inv(normalised.cell)
    assert fractional.min() > -1e-9
    assert fractional.max() < 1 + 1e-9
    assert normalised.numbers is not structure.numbers or normalised.numbers.flags.c_contiguous
    np.testing.assert_array_equal(normalised.numbers, structure.numbers)
    # What was periodic stays as it was, up to the sign.
    np.testing.assert_allclose(np.abs(normalised.cell[structure.pbc]), np.abs(structure.cell[structure.pbc]), atol=1e-12)
    # What was not is at right angles to it, and wide enough.
    free = normalised.cell[~structure.pbc]
    assert (np.linalg.norm(free, axis=1) >= CUTOFF + VACUUM_MARGIN - 1e-9).all()
    np.testing.assert_allclose(free @ structure.cell[structure.pbc].T, 0.0, atol=1e-9)


def test_the_input_is_not_changed() -> None:
    structure = Structure(
        np.array([1, 8], dtype=np.int32),
        np.array([[-9.0, 30.0, 2.0], [1.0, 2.0, 3.0]]),
        4.0 * np.eye(3)[[1, 0, 2]],
        np.ones(3, bool),
    )
    kept = [array.copy() for array in (structure.numbers, structure.positions, structure.cell, structure.pbc)]
    for array in (structure.numbers, structure.positions, structure.cell, structure.pbc):
        array.setflags(write=False)
    normalise(structure, CUTOFF)
    for array, before in zip((structure.numbers, structure.positions, structure.cell, structure.pbc), kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("coordinate", [-1e-17, -1e-300, 4.0, 4.0 - 1e-16, 1e6])
def test_atoms_on_the_boundary_are_inside(coordinate: float) -> None:
    """-1e-17 modulo 1 rounds to 1.0, which is outside."""
    structure = Structure(np.array([18], dtype=np.int32), np.full((1, 3), coordinate), 4.0 * np.eye(3), np.ones(3, dtype=bool))
    fractional = normalise(structure, CUTOFF).positions / 4.0
    assert (fractional >= 0).all()
    assert (fractional < 1).all()


def test_distant_fragments_are_brought_together_without_touching() -> None:
    """Their own shape stays to the last digit that the coordinates hold, and the box stays small."""
    molecule = np.array([[0.0, 0.0, 0.0], [0.9, 0.3, 0.1], [-0.3, 0.8, 0.2]])
    positions = np.vstack([molecule, molecule + np.array([5e5, -3e5, 1e5]), molecule + np.array([0.0, 7.0, 0.0])])
    normalised = normalise(Structure(np.full(9, 18, dtype=np.int32), positions), CUTOFF)
    assert normalised.cell.max() < 50
    for start in (0, 3, 6):
        fragment = normalised.positions[start : start + 3]
        np.testing.assert_allclose(fragment - fragment[0], molecule, atol=1e-9)
    i, j, _ = neighbour_pairs(normalised, CUTOFF)
    assert all(a // 3 == b // 3 for a, b in zip(i, j, strict=True))


def test_ordinary_gaps_are_left_alone() -> None:
    """A slab with an adsorbed molecule 4 A above it is not compressed."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 6.0], [0.0, 0.0, 10.9]])
    structure = Structure(np.full(4, 18, dtype=np.int32), positions, 5.0 * np.eye(3), np.array([True, True, False]))
    z = normalise(structure, CUTOFF).positions[:, 2]
    np.testing.assert_allclose(z - z[0], positions[:, 2], atol=1e-12)


@pytest.mark.parametrize("height", [MIN_HEIGHT, 0.5, 2.0])
def test_thin_cells_have_all_their_images(height: float) -> None:
    structure = Structure(np.array([18], dtype=np.int32), np.zeros((1, 3)), np.diag([3.0, 3.0, height]), np.ones(3, dtype=bool))
    i, _, vectors = neighbour_pairs(normalise(structure, CUTOFF), CUTOFF)
    assert len(i) == len(distances(structure))
    assert np.abs(vectors[:, 2]).max() >= CUTOFF - height - 1e-9


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(structures())
def test_images_give_the_same_vectors(structure: Structure) -> None:
    """i, j and the image of j that the other list names lead to the same pairs."""
    normalised = normalise(structure, CUTOFF)
    i, j, shift, distance = neighbour_images(normalised, CUTOFF)
    assert (np.diff(i) >= 0).all()
    vectors = normalised.positions[j] + shift @ normalised.cell - normalised.positions[i]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), distance, atol=1e-9)
    same(sorted(zip(i.tolist(), j.tolist(), np.round(distance, 6).tolist(), strict=True)), distances(structure))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(structures())
def test_the_closest_pair(structure: Structure) -> None:
    normalised = normalise(structure, CUTOFF)
    known = distances(structure)
    found = closest_pair(normalised, CUTOFF - 0.1)
    nearest = min((pair[2] for pair in known), default=np.inf)
    if nearest >= CUTOFF - 0.1:
        assert found is None
    else:
        assert found is not None
        assert found[2] == pytest.approx(nearest, abs=2e-6)


def test_neighbours_in_a_vast_cell_take_no_memory() -> None:
    """A search that keeps every empty part of the cell would need 1e15 of them here."""
    structure = Structure(
        np.full(2, 18, dtype=np.int32), np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 4.0]]), 9e5 * np.eye(3), np.ones(3, dtype=bool)
    )
    assert len(neighbour_pairs(structure, CUTOFF)[0]) == 2
