"""What a structure is, at a glance: formula, cell, space group, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from math import gcd
from typing import Any, Final

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.neighborlist import natural_cutoffs, neighbor_list

from forcefields.runtime.physics import check_geometry
from forcegate.calculations.geometry import spacegroup
from forcegate.errors import CoincidentAtoms
from forcegate.structure import Structure

MOST_ATOMS: Final = 2000
"""Of structures with more, neither the space group nor contacts are looked for: it takes seconds from there on."""
TOLERANCE: Final = 0.01
"""Of the space group, A."""
CONTACT: Final = 0.6
"""Atoms nearer than this share of the sum of their covalent radii look wrong."""
DENSEST: Final = 30.0
"""g/cm^3; osmium has 22.6."""


def describe(structure: Structure) -> dict[str, Any]:
    """The preview of a structure, JSON; ``frontend.structure_schemas.Preview`` has its fields.

    Raises:
        EmptyStructure, NonFiniteInput, InvalidCell: it is nothing that could be looked at.
    """
    warnings: list[str] = []
    sound = True
    try:
        check_geometry(structure)
    except CoincidentAtoms as error:
        sound = False
        warnings.append(f"{error.detail} Every model refuses it.")
    atoms = structure.to_atoms()
    counts = Counter(chemical_symbols[number] for number in structure.numbers.tolist())
    small = len(atoms) <= MOST_ATOMS
    volume = float(abs(np.linalg.det(structure.cell)))
    periodic = bool(structure.pbc.all()) and volume > 0
    density = float(atoms.get_masses().sum() / units.kg * 1e3 / (volume * 1e-24)) if periodic else None
    if not structure.pbc.any():
        warnings.append("It has no periodic direction: there is no stress, and no calculation that needs a cell.")
    if density is not None and density > DENSEST:
        warnings.append(f"Its density is {density:.0f} g/cm^3: is the cell in A?")
    if not small:
        warnings.append(f"It has more than {MOST_ATOMS} atoms: space group and contacts were not looked for.")
    elif sound and (near := _contacts(atoms)):
        warnings.append(near)
    group = _space_group(atoms) if periodic and small and sound else None
    if periodic and small and sound and group is None:
        warnings.append("The space group was not found.")
    return {
        "formula": structure.formula,
        "reduced_formula": _reduced(counts),
        "natoms": len(structure),
        "elements": dict(sorted(counts.items())),
        "pbc": structure.pbc.tolist(),
        "charge": float(structure.charge),
        "spin": int(structure.spin),
        "cell": _cell(atoms, volume) if structure.cell.any() else None,
        "density": density,
        "spacegroup": group,
        "warnings": warnings,
    }


def _reduced(counts: Counter[str]) -> str:
    divisor = reduce(gcd, counts.values())
    return Formula.from_dict({symbol: count // divisor for symbol, count in counts.items()}).format("hill")


def _cell(atoms: Atoms, volume: float) -> dict[str, Any]:
    vectors = atoms.cell.array
    lengths = np.linalg.norm(vectors, axis=1)
    pairs = ((1, 2), (0, 2), (0, 1))
    # A vector that is missing has no direction: its angles are given as right ones. Rounding leads beyond 1 for parallel vectors.
    cosines = [vectors[i] @ vectors[j] / (lengths[i] * lengths[j]) if lengths[i] * lengths[j] else 0.0 for i, j in pairs]
    return {
        "vectors": vectors.tolist(),
        "lengths": lengths.tolist(),
        "angles": np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).tolist(),
        "volume": volume or None,
    }


def _space_group(atoms: Atoms) -> dict[str, Any] | None:
    found = spacegroup(atoms, TOLERANCE)
    if found is None:
        return None
    symbol, _, number = found.removesuffix(")").partition(" (")
    return {"number": int(number), "symbol": symbol, "tolerance": TOLERANCE}


def _contacts(atoms: Atoms) -> str:
    """What is to be said of atoms that are too near to each other, or nothing."""
    atoms = atoms.copy()
    # Vectors without meaning: they may be parallel to others, which the search cannot take.
    atoms.set_cell(np.where(atoms.pbc[:, None], atoms.cell.array, 0.0))
    first, second, distance = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=CONTACT))
    if not len(distance):
        return ""
    nearest = int(np.argmin(distance))
    i, j = int(first[nearest]), int(second[nearest])
    return (
        f"{len(distance) // 2 or 1} pairs of atoms are very near to each other; the nearest are {atoms.symbols[i]} {i} and "
        f"{atoms.symbols[j]} {j}, {distance[nearest]:.2f} A apart (indices from 0)."
    )
