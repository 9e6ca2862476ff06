"""What is evaluated: real crystals, each displaced and strained at random, so that no two structures of a run are equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from ase import Atoms
from ase.build import bulk

from forcefields.catalogue import Variant

CRYSTALS: tuple[tuple[str, str, float], ...] = (
    ("NaCl", "rocksalt", 5.64),
    ("Si", "diamond", 5.43),
    ("MgO", "rocksalt", 4.21),
    ("GaAs", "zincblende", 5.65),
    ("AlAs", "zincblende", 5.66),
    ("ZnS", "zincblende", 5.41),
    ("CaO", "rocksalt", 4.81),
    ("Ge", "diamond", 5.66),
)
"""Compounds with eight atoms in the cubic cell, and its edge in A."""

REPEATS: dict[int, tuple[int, int, int]] = {
    8: (1, 1, 1),
    16: (2, 1, 1),
    32: (2, 2, 1),
    64: (2, 2, 2),
    216: (3, 3, 3),
    512: (4, 4, 4),
    1000: (5, 5, 5),
}
"""Cells of eight atoms along each axis, by the number of atoms."""


def crystals(variant: Variant, atoms: int, count: int, seed: int = 2) -> list[Atoms]:
    """``count`` different structures of ``atoms`` atoms each, of elements that ``variant`` knows.

    Args:
        atoms: a key of ``REPEATS``.
        seed: of the displacements (0.05 A along each axis) and strains (1 %).
    """
    cells = [bulk(name, kind, a=edge, cubic=True) for name, kind, edge in CRYSTALS]
    cells = [cell for cell in cells if set(cell.numbers.tolist()) <= set(variant.elements)]
    if not cells:  # argon alone
        cells = [bulk("Ar", "fcc", a=5.26, cubic=True) * (2, 1, 1)]
    generator = np.random.default_rng([seed, atoms])
    return [_displaced(cells[k % len(cells)] * REPEATS[atoms], generator) for k in range(count)]


def mixture(variant: Variant, sizes: Sequence[int], count: int, seed: int = 2) -> list[Atoms]:
    """``count`` structures whose numbers of atoms go round through ``sizes``."""
    each = {size: iter(crystals(variant, size, count, seed)) for size in sizes}
    return list(islice((next(each[size]) for _ in range(count) for size in sizes), count))


def _displaced(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    strain = np.eye(3) + generator.uniform(-0.01, 0.01, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += generator.normal(0.0, 0.05, atoms.positions.shape)
    return atoms
