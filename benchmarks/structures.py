"""What is evaluated: real crystals, each displaced and strained at random, so that no two structures of a run are equal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
"""Compounds with eight atoms in the cubic cell and two in the primitive one, and the cubic cell's edge in A."""

MEAN_ATOMS = 31.2
"""Of a structure of MPtrj, the relaxations of the Materials Project: 49,295,660 forces on atoms in 1,580,395 structures (Deng et
al., Nature Machine Intelligence 5, 1031 (2023))."""
MEDIAN_ATOMS = 20
"""An assumption: the paper gives no median. With the mean it fixes the width of the log-normal distribution."""
LARGEST = 444
"""Atoms in the largest structure of MPtrj."""


def crystals(variant: Variant, atoms: int, count: int, seed: int = 2) -> list[Atoms]:
    """``count`` different structures of ``atoms`` atoms each, of elements that ``variant`` knows.

    Args:
        atoms: an even number.
        seed: of the displacements (0.05 A along each axis) and strains (1 %).
    """
    kinds = known(variant)
    generator = np.random.default_rng([seed, atoms])
    return [displaced(cell(kinds[k % len(kinds)], atoms), generator) for k in range(count)]


def mixture(variant: Variant, sizes: Sequence[int], count: int, seed: int = 2) -> list[Atoms]:
    """``count`` structures whose numbers of atoms go round through ``sizes``."""
    each = {size: iter(crystals(variant, size, count, seed)) for size in sizes}
    return list(islice((next(each[size]) for _ in range(count) for size in sizes), count))


def materials_mix(variant: Variant, count: int, seed: int = 2) -> list[Atoms]:
    """``count`` structures whose numbers of atoms are distributed about as in the Materials Project."""
    kinds = known(variant)
    generator = np.random.default_rng([seed, 444])
    return [displaced(cell(kinds[k % len(kinds)], n), generator) for k, n in enumerate(materials_sizes(count, generator))]


def materials_sizes(count: int, generator: np.random.Generator) -> list[int]:
    """Even numbers of atoms, log-normal with the mean of MPtrj, between 2 and the largest there."""
    width = np.sqrt(2.0 * np.log(MEAN_ATOMS / MEDIAN_ATOMS))
    drawn = np.exp(generator.normal(np.log(MEDIAN_ATOMS), width, count))
    return [int(n) for n in 2 * np.rint(np.clip(drawn, 2, LARGEST) / 2)]


def known(variant: Variant) -> list[tuple[str, str, float]]:
    """The crystals of which ``variant`` knows the elements; argon for a model that knows no other."""
    found = [kind for kind in CRYSTALS if set(bulk(*kind[:2], a=kind[2]).numbers.tolist()) <= set(variant.elements)]
    return found or [("Ar", "fcc", 5.26)]


def cell(kind: tuple[str, str, float], atoms: int) -> Atoms:
    """A supercell of ``atoms`` atoms, as near to a cube as this number allows; of primitive cells where cubic ones do not fit.

    Raises:
        ValueError: the number is odd.
    """
    if atoms % 2:
        raise ValueError(f"{atoms} atoms: only even numbers can be made of cells of two atoms")
    name, lattice, edge = kind
    whole = 4 if lattice == "fcc" else 8
    cubic = atoms % whole == 0
    made = bulk(name, lattice, a=edge, cubic=True) if cubic else bulk(name, lattice, a=edge)
    return made * repeats(atoms // len(made))


@lru_cache
def repeats(cells: int) -> tuple[int, int, int]:
    """Three factors of ``cells``, as equal as they can be, in falling order."""
    best = (cells, 1, 1)
    for a in range(1, round(cells ** (1 / 3)) + 1):
        if cells % a == 0:
            rest = cells // a
            b = next(b for b in range(int(rest**0.5), 0, -1) if rest % b == 0)
            longest, middle, shortest = sorted((rest // b, b, a), reverse=True)
            best = min(best, (longest, middle, shortest))
    return best


def displaced(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    """Strained by 1 % and with every atom moved by 0.05 A along each axis, at random."""
    strain = np.eye(3) + generator.uniform(-0.01, 0.01, (3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.positions += generator.normal(0.0, 0.05, atoms.positions.shape)
    return atoms
