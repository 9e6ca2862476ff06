"""What the calculations measure on structures: displacements, coordination, largest forces, space groups, lengths of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build.rotate import rotation_matrix_from_points
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from forcegate.errors import SetupError

BOND = 1.25
"""Atoms nearer than this times the sum of their covalent radii count as neighbours."""


def largest_norm(vectors: np.ndarray) -> float:
    """The largest norm among ``vectors`` ``[N, 3]``: of a force on one atom, not of one component."""
    return float(np.linalg.norm(vectors, axis=1).max())


def displacements(start: Atoms, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """How far each atom has moved from ``start``, ``[N, 3]`` in A, without the motion of the whole.

    In a crystal the strain of the cell is no displacement: positions are compared in fractional coordinates, with the vectors of
    the new cell, and their mean is taken off. A molecule is laid over its start by the best rotation (Kabsch, Acta Cryst. A 32, 922
    (1976)). Positions must not have been wrapped into the cell on the way.

    Args:
        positions: ``[N, 3]``, A.
        cell: ``[3, 3]``, A.
    """
    old = start.positions
    if start.pbc.all():
        # solve(A.T, x.T).T is x @ inv(A)
        moved = (np.linalg.solve(cell.T, positions.T) - np.linalg.solve(start.cell.array.T, old.T)).T @ cell
        return moved - moved.mean(axis=0)
    if start.pbc.any() or len(start) < 2:
        moved = positions - old
        return moved - moved.mean(axis=0)
    centred, reference = positions - positions.mean(axis=0), old - old.mean(axis=0)
    return centred @ rotation_matrix_from_points(centred.T, reference.T).T - reference


def rms(vectors: np.ndarray) -> float:
    """Root of the mean square norm of ``vectors`` ``[N, 3]``."""
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def neighbour_radii(atoms: Atoms) -> np.ndarray:
    """Radii ``[N]`` in A: two atoms are neighbours where they are nearer than the sum of theirs.

    ``BOND`` times the covalent radius; an atom that has no neighbour by that (a noble gas, an ion far from others) reaches as far
    as ``BOND`` times the distance to its nearest one.
    """
    radii = BOND * covalent_radii[atoms.numbers]
    lonely = np.flatnonzero(coordination(atoms, radii) == 0)
    if len(lonely) == 0:
        return radii
    reach = max(8.0, 2 * float(radii.max()))
    first, distance = neighbor_list("id", atoms, reach)
    for atom in lonely:
        if (mine := distance[first == atom]).size:
            radii[atom] = max(radii[atom], 0.5 * BOND * mine.min())
    return radii


def coordination(atoms: Atoms, radii: np.ndarray) -> np.ndarray:
    """Number of neighbours of each atom, ``[N]``, images included, by the ``radii`` of ``neighbour_radii``."""
    return np.bincount(neighbor_list("i", atoms, list(radii)), minlength=len(atoms))


def heights(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of the cell, ``[3]`` in A."""
    return 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def supercell_for(cell: np.ndarray, length: float) -> tuple[int, int, int]:
    """The smallest multiples of the lattice vectors with opposite faces at least ``length`` A apart."""
    a, b, c = (max(1, int(np.ceil(length / height - 1e-6))) for height in heights(cell))
    return a, b, c


def spacegroup(atoms: Atoms, tolerance: float) -> str | None:
    """International symbol and number, such as ``Fm-3m (225)``, or None unless periodic in all three directions.

    Args:
        tolerance: distance in A within which symmetry is accepted.

    Raises:
        SetupError: spglib is not installed.
    """
    if not atoms.pbc.all():
        return None
    optional("spglib")
    from ase.spacegroup.symmetrize import spglib_get_symmetry_dataset

    try:
        found = spglib_get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=tolerance)
    except Exception:  # where spglib finds no symmetry it raises an error whose type differs between versions
        return None
    return f"{found.international} ({found.number})"


def optional(package: str) -> Any:
    """A package of the extra ``calculations``.

    Raises:
        SetupError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise SetupError(
            f"This calculation needs {package}, which is not installed.", "pip install 'forcegate[calculations]'."
        ) from None
