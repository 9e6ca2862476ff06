"""Checks before, normalisation for, and checks after an evaluation: the same for every family.

Each package alone is wrong on some of a slab, a molecule, a left-handed or a flat cell. Here every structure becomes a fully
periodic, right-handed one with its atoms inside the cell before any package sees it, and what the package says of that
structure is true of the one that was sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols

from forcefields.base import Normalised, Result
from forcefields.catalogue import Variant
from forcefields.cells import MIN_HEIGHT, is_flat, volume
from forcefields.neighbours import Neighbours, closest_pair
from forcegate.errors import (
    ChargeNotSupported,
    CoincidentAtoms,
    EmptyStructure,
    InvalidCell,
    InvalidStructure,
    NonFiniteInput,
    NonFiniteResult,
    SpinNotSupported,
    StructureTooLarge,
    UnknownHead,
    UnsupportedElement,
)
from forcegate.structure import Structure

MIN_DISTANCE = 0.1
"""A. Nearer atoms are a mistake in the file: no force field means anything there, and several answer NaN."""

VACUUM_MARGIN = 1.0
"""A. What the vacuum is wider than the cutoff, so that rounding never makes an edge across it."""

MAX_COORDINATE = 1e6
"""A. Beyond it float64 no longer resolves a bond length well enough for forces."""

MAX_CHARGE, MAX_SPIN = 100, 100
"""e, and 2S+1. Models look both up in tables of this size; beyond it a GPU's process dies of the access."""


@dataclass(frozen=True)
class Limits:
    """The largest structure that the model takes on its device."""

    atoms: int
    edges: int


def validate(structure: Structure, head: str, variant: Variant, limits: Limits) -> str:
    """Checks one structure by itself, before any graph is built.

    Returns:
        The head to evaluate with: the given one, or the variant's default.

    Raises:
        ForcegateError: the typed reason why this structure cannot be evaluated.
    """
    head = _head(head, variant)
    if len(structure) > limits.atoms:
        raise StructureTooLarge(f"The structure has {len(structure)} atoms; at most {limits.atoms} are taken.")
    _finite(structure)
    _elements(structure, variant)
    _charge_and_spin(structure, head, variant)
    _cell(structure)
    if not variant.partly_periodic and structure.pbc.any() and not structure.pbc.all():
        raise InvalidCell(
            f"{variant.name} takes molecules and crystals, no structure that is periodic in some directions alone.",
            "Its interactions have infinite range: make it periodic in all three directions, with a vacuum of your choice.",
        )
    return head


def check_geometry(structure: Structure) -> None:
    """What can be said of a structure without a model: ``validate`` and ``check_distances`` say the same, in the same words.

    Raises:
        EmptyStructure, NonFiniteInput, InvalidCell, CoincidentAtoms: it is refused by every model.
    """
    _finite(structure)
    _cell(structure)
    check_distances(normalise(structure, 2 * VACUUM_MARGIN))


def _head(head: str, variant: Variant) -> str:
    if not variant.heads:
        if head:
            raise UnknownHead(f"{variant.name} has a single head, so {head[:40]!r} cannot be chosen.", "Leave `head` out.")
        return ""
    if head and head not in variant.heads:
        by_case = {name.lower(): name for name in variant.heads}
        if head.lower() in by_case:
            return by_case[head.lower()]
        raise UnknownHead(f"{variant.name} has no head {head[:40]!r}.", f"Its heads are {', '.join(variant.heads)}.")
    return head or variant.default_head


def _finite(structure: Structure) -> None:
    if len(structure) == 0:
        raise EmptyStructure("The structure has no atoms.")
    for name, array in (("position", structure.positions), ("cell vector", structure.cell)):
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise NonFiniteInput(f"The {name} with index {int(np.argmax(bad))} is not finite.")
        if np.abs(array).max() > MAX_COORDINATE:
            raise InvalidCell(f"A {name} reaches beyond {MAX_COORDINATE:.0e} A.", "Positions and cell are in A.")
    if not math.isfinite(structure.charge):
        raise NonFiniteInput("The charge is not finite.")


def _elements(structure: Structure, variant: Variant) -> None:
    unknown = variant.elements_outside(structure.numbers.tolist())
    if unknown:
        names = [chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"number {z}" for z in unknown]
        raise UnsupportedElement(f"{variant.name} was not trained on {', '.join(names[:8])}.")


def _charge_and_spin(structure: Structure, head: str, variant: Variant) -> None:
    """What the head would ignore is refused; what it uses has to be a number that it can know."""
    name = f"{variant.name} with its head {head}" if head else variant.name
    hint = f"Its heads that know them: {', '.join(variant.charge_heads)}." if variant.charge_heads else None
    if structure.charge != 0 and not variant.knows_charge(head):
        raise ChargeNotSupported(f"{name} does not know charges, and the structure has {structure.charge:g} e.", hint)
    if structure.spin > 1 and not variant.knows_spin(head):
        raise SpinNotSupported(f"{name} does not know spin, and the structure has multiplicity {structure.spin}.", hint)
    if structure.charge != round(structure.charge) or abs(structure.charge) > MAX_CHARGE:
        raise InvalidStructure(
            f"The total charge is {structure.charge:g} e.", f"Give a whole number between -{MAX_CHARGE} and {MAX_CHARGE}."
        )
    if not 0 <= structure.spin <= MAX_SPIN:
        raise InvalidStructure(
            f"The spin multiplicity 2S+1 is {structure.spin}.", f"Give 1, 2, 3 ... {MAX_SPIN}, or 0 for the model's default."
        )


def _cell(structure: Structure) -> None:
    vectors = structure.cell[structure.pbc]
    if len(vectors) == 0:
        return
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if lengths.min() < MIN_HEIGHT:
        axis = np.flatnonzero(structure.pbc)[int(np.argmin(lengths))]
        raise InvalidCell(f"The structure is periodic along lattice vector {axis + 1}, which is {lengths.min():g} A long.")
    if is_flat(vectors.tolist()):
        raise InvalidCell("The periodic lattice vectors are not independent: they lie in one plane or on one line.")


def normalise(structure: Structure, cutoff: float) -> Normalised:
    """An equivalent structure that every package evaluates rightly.

    Periodic along three right-handed vectors, atoms inside the cell; a direction that was not periodic gets an orthogonal
    vector with vacuum wider than ``cutoff``. Atoms keep their order, and energy and forces are those of ``structure``; so is
    the stress where all three directions were periodic.
    """
    cell, positions, origin = structure.cell, structure.positions, np.zeros(3)
    if not structure.pbc.all():
        cell, positions, origin = _completed_cell(structure, cutoff)
    inverse = np.linalg.inv(cell)
    if volume(cell.tolist()) < 0:
        # The same lattice: every vector is replaced by its opposite.
        cell, inverse = -cell, -inverse
    fractional = (positions - origin) @ inverse
    fractional -= np.floor(fractional)
    # A coordinate just below 0 comes out of floor as exactly 1.
    fractional[fractional >= 1.0] = 0.0
    numbers = np.ascontiguousarray(structure.numbers)
    pbc = np.ones(3, dtype=bool)
    return Normalised(numbers, fractional @ cell, cell, pbc, structure.charge, structure.spin, original=structure)


def _completed_cell(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell with vacuum in place of the vectors that are not periodic, the atoms, and the origin that centres them in it."""
    free = np.flatnonzero(~structure.pbc)
    periodic = structure.cell[structure.pbc]
    # Orthonormal directions that are orthogonal to all periodic vectors.
    normals = np.linalg.svd(periodic)[2][len(periodic) :] if len(periodic) else np.eye(3)
    along = structure.positions @ normals.T
    vacuum = cutoff + VACUUM_MARGIN
    excess = np.stack([_excess_gaps(coordinates, vacuum) for coordinates in along.T], axis=1)
    along = along - excess
    low, high = along.min(axis=0), along.max(axis=0)
    lengths = high - low + vacuum
    cell = np.array(structure.cell)
    cell[free] = normals * lengths[:, None]
    origin = ((low + high - lengths) / 2) @ normals
    return cell, structure.positions - excess @ normals, origin


def _excess_gaps(coordinates: np.ndarray, vacuum: float) -> np.ndarray:
    """By how much each atom has to move down so that no gap along this direction is wider than ``vacuum``.

    A model of finite range cannot tell, and its float32 coordinates would lose a molecule's bond lengths in a box of 1000 A.
    """
    order = np.argsort(coordinates, kind="stable")
    excess = np.zeros_like(coordinates)
    excess[order[1:]] = np.cumsum(np.maximum(np.diff(coordinates[order]) - vacuum, 0.0))
    return excess


def check_distances(normalised: Structure, found: Neighbours | None = None) -> None:
    """Refuses two atoms, or an atom and a periodic image, nearer than ``MIN_DISTANCE``.

    Args:
        found: the structure's neighbour list, where it has been made.

    Raises:
        CoincidentAtoms: names the pair.
    """
    pair = closest_pair(normalised, MIN_DISTANCE, found)
    if pair is not None:
        i, j, distance = pair
        partner = f"atom {j}" if i != j else "its own periodic image"
        raise CoincidentAtoms(f"Atom {i} and {partner} are {distance:.3f} A apart (indices count from 0).")


def check_size(normalised: Structure, cutoff: float, limits: Limits) -> None:
    """Refuses a structure whose neighbour pairs, estimated from its density, do not fit into memory.

    The density is taken in boxes at least as wide as the cutoff: the mean over the cell says nothing of a cluster in vacuum.

    Raises:
        StructureTooLarge: names the largest number of atoms that fits at this density.
    """
    if _most_pairs(normalised, cutoff) <= limits.edges:
        return
    inverse = np.linalg.inv(normalised.cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    boxes = np.maximum(1.0, np.floor(heights / cutoff)).astype(np.int64)
    place = np.minimum((normalised.positions @ inverse * boxes).astype(np.int64), boxes - 1)
    _, counts = np.unique((place[:, 0] * boxes[1] + place[:, 1]) * boxes[2] + place[:, 2], return_counts=True)
    box = abs(np.linalg.det(normalised.cell)) / float(np.prod(boxes.astype(float)))
    pairs = float(np.sum(counts.astype(float) ** 2)) / box * 4 / 3 * math.pi * cutoff**3
    # A margin of two, since this is an estimate: the true count is checked again.
    check_edges(len(normalised), int(pairs / 2), limits)


def _most_pairs(structure: Structure, cutoff: float) -> float:
    """More directed pairs than the structure can have: every atom within reach of every cell that touches its sphere.

    Where even that fits there is no need to look where the atoms are, and so it is for nearly all.
    """
    diagonal = float(np.sqrt(np.einsum("ij,ij->i", structure.cell, structure.cell)).sum())
    space = abs(volume(structure.cell.tolist()))
    return len(structure) ** 2 * 4 / 3 * math.pi * (cutoff + diagonal) ** 3 / space if space > 0 else math.inf


def check_edges(atoms: int, edges: int, limits: Limits) -> None:
    """Refuses more directed neighbour pairs than fit into the device's memory.

    Raises:
        StructureTooLarge: names the largest number of atoms that fits at this density.
    """
    if edges > limits.edges:
        raise StructureTooLarge(
            f"The structure has about {edges} neighbour pairs; {limits.edges} fit into this device's memory, "
            f"which is about {int(atoms * limits.edges / edges)} atoms at this density."
        )


def finish(result: Result, structure: Structure) -> Result:
    """What is true of the structure that was sent: stress only where it is periodic in all three directions.

    Raises:
        NonFiniteResult: energy, forces or stress is NaN or infinite.
    """
    if not math.isfinite(result.energy):
        raise NonFiniteResult("The model's energy for this structure is not a finite number.")
    if result.forces is not None and not np.isfinite(result.forces).all():
        raise NonFiniteResult("The model's forces for this structure are not finite.")
    if not structure.pbc.all():
        return replace(result, stress=None if result.stress is None else np.full(6, np.nan))
    if result.stress is not None and not np.isfinite(result.stress).all():
        raise NonFiniteResult("The model's stress for this structure is not finite.")
    return result
