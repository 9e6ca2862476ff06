"""The structures on which Forcegate is compared with the packages, and what each is compared with.

Importable in every execution environment: numpy and ASE alone. Random displacements have fixed seeds, and everything is displaced,
so that no force and no component of the stress is zero by symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, make_supercell, molecule
from ase.neighborlist import neighbor_list

VACUUM = 12.0
"""A. Another width than the 6 to 10 A that the service itself puts around atoms, so that the two cannot share a mistake. Not much
wider: CHGNet keeps fractional coordinates in float32, whose rounding errors grow with the box."""


FAR = np.array([8000.0, 4000.0, 2000.0])
"""A. How much farther the fragments are apart in ``far_fragments``."""


def rattled(atoms: Atoms, seed: int, amplitude: float = 0.08, strain: float = 0.02) -> Atoms:
    """A copy with every position and every component of the cell displaced at random."""
    generator = np.random.default_rng(seed)
    atoms = atoms.copy()
    deformation = np.eye(3) + generator.uniform(-strain, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += generator.uniform(-amplitude, amplitude, atoms.positions.shape)
    return atoms


def copper() -> Atoms:
    """Bulk Cu, four atoms."""
    return rattled(bulk("Cu", "fcc", a=3.61, cubic=True), 1)


def copper_primitive() -> Atoms:
    """One atom, many of whose neighbours are its own images."""
    return rattled(bulk("Cu", "fcc", a=3.61), 2, strain=0.05)


def salt() -> Atoms:
    """NaCl, 2x2x2 conventional cells."""
    return rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2), 3)


def perovskite() -> Atoms:
    """SrTiO3."""
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return rattled(Atoms("SrTiO3", scaled_positions=sites, cell=[3.905] * 3, pbc=True), 4)


def water() -> Atoms:
    """A molecule without any cell."""
    return rattled(molecule("H2O"), 5)


def slab() -> Atoms:
    """Oxygen on Pd(111), periodic in two directions, with a cell of its own in the third."""
    return _oxygen_on("Pd")


def stiff_slab() -> Atoms:
    """The same on Al(111), where CHGNet multiplies the rounding errors of float32 like on no other metal that was tried."""
    return _oxygen_on("Al")


def _oxygen_on(metal: str) -> Atoms:
    atoms = fcc111(metal, (2, 2, 3), vacuum=7.0)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.pbc = (True, True, False)
    return rattled(atoms, 6)


def flat_slab() -> Atoms:
    """The same slab with a third cell vector of zero length, as ASE's builders give it."""
    atoms = slab()
    cell = atoms.cell.array.copy()
    cell[:2, 2] = 0.0
    cell[2] = 0.0
    atoms.set_cell(cell)
    return atoms


def turned_slab() -> Atoms:
    """A slab whose plane is x and z, so that the vacuum is along y, and whose third vector is the one that is periodic."""
    atoms = slab()
    atoms.set_cell(atoms.cell.array[[0, 2, 1]])
    atoms.set_pbc((True, False, True))
    turn = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    atoms.set_cell(atoms.cell.array @ turn)
    atoms.positions = atoms.positions @ turn
    return atoms


def plane_slab() -> Atoms:
    """The plane of the slab is x and z, and the vector that is not periodic is the third, along y."""
    atoms = slab()
    turn = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    atoms.set_cell(atoms.cell.array @ turn)
    atoms.positions = atoms.positions @ turn
    return atoms


def wire() -> Atoms:
    """A zigzag chain of carbon atoms, periodic along y alone."""
    atoms = Atoms("C2H4", [(0, 0, 0), (0.6, 1.3, 0), (-0.6, 0, 0.9), (-0.6, 0, -0.9), (1.2, 1.3, 0.9), (1.2, 1.3, -0.9)])
    atoms.set_cell([8.0, 2.6, 8.0])
    atoms.pbc = (False, True, False)
    return rattled(atoms, 7)


def one_atom() -> Atoms:
    """One atom in a periodic box that is wider than every cutoff."""
    return Atoms("Fe", positions=[(1.0, 2.0, 3.0)], cell=[14.0, 15.0, 16.0], pbc=True)


def two_atoms() -> Atoms:
    """Two atoms without a cell that do not feel each other."""
    return Atoms("OC", positions=[(0.0, 0.0, 0.0), (11.0, 23.0, 17.0)])


def near_fragments() -> Atoms:
    """The same two molecules, just out of each other's reach."""
    first, second = rattled(molecule("H2O"), 8), rattled(molecule("SO2"), 9)
    second.positions += np.array([25.0, 0.0, 0.0])
    return first + second


def far_fragments() -> Atoms:
    """The same two molecules, 9000 A apart."""
    atoms = near_fragments()
    atoms.positions[3:] += FAR
    return atoms


def left_handed() -> Atoms:
    """The perovskite with two cell vectors swapped: the same crystal, a cell of negative determinant."""
    atoms = perovskite()
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array[[1, 0, 2]], pbc=True)


def unwrapped() -> Atoms:
    """The perovskite after a long molecular dynamics run: atoms many cells away."""
    atoms = perovskite()
    atoms.positions += np.random.default_rng(10).integers(-6, 7, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def triclinic() -> Atoms:
    """MgO in a strongly skewed cell."""
    return rattled(make_supercell(bulk("MgO", "rocksalt", a=4.21), [[1, 0, 0], [1, 2, 0], [2, 1, 2]]), 11, strain=0.04)


def hundred() -> Atoms:
    """Cu3Au, 108 atoms."""
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True)
    atoms.numbers[0] = 79
    return rattled(atoms.repeat(3), 12)


def four_hundred() -> Atoms:
    """(Na,K)Cl, 384 atoms."""
    atoms = bulk("NaCl", "rocksalt", a=5.8, cubic=True).repeat((4, 4, 3))
    sodium = np.flatnonzero(atoms.numbers == 11)
    atoms.numbers[np.random.default_rng(13).choice(sodium, len(sodium) // 4, replace=False)] = 19
    return rattled(atoms, 14)


STRUCTURES: dict[str, Callable[[], Atoms]] = {
    "Cu": copper,
    "Cu primitive": copper_primitive,
    "NaCl 2x2x2": salt,
    "SrTiO3": perovskite,
    "water": water,
    "slab TTF": slab,
    "slab TTF, c = 0": flat_slab,
    "slab TFT": turned_slab,
    "slab TTF in xz": plane_slab,
    "slab of Al": stiff_slab,
    "wire FTF": wire,
    "one atom in a box": one_atom,
    "two isolated atoms": two_atoms,
    "near fragments": near_fragments,
    "far fragments": far_fragments,
    "left-handed cell": left_handed,
    "unwrapped": unwrapped,
    "triclinic": triclinic,
    "108 atoms": hundred,
    "384 atoms": four_hundred,
}


def charged(name: str, charge: float, spin: int) -> Atoms:
    """A molecule with a charge in e and a multiplicity 2S+1."""
    atoms = rattled(molecule(name), 15)
    atoms.info |= {"charge": charge, "spin": spin}
    return atoms


CHARGED: dict[str, Callable[[], Atoms]] = {
    "hydroxide": lambda: charged("OH", -1, 1),
    "hydroxyl radical": lambda: charged("OH", 0, 2),
    "water cation": lambda: charged("H2O", 1, 2),
    "triplet oxygen": lambda: charged("O2", 0, 3),
    "singlet oxygen": lambda: charged("O2", 0, 1),
}
"""For models that use charge and spin."""

SYMMETRIC: dict[str, Callable[[], Atoms]] = {
    "perfect Cu": lambda: bulk("Cu", "fcc", a=3.61, cubic=True),
    "perfect diamond": lambda: bulk("C", "diamond", a=3.567).repeat(2),
    "perfect NaCl": lambda: bulk("NaCl", "rocksalt", a=5.64),
}
"""Crystals as ASE builds them, in which many neighbours are equally near: for models that hear the nearest alone."""

FEW = ("Cu", "SrTiO3", "water", "slab TTF", "left-handed cell", "triclinic")
"""The cases for variants that differ from another one in their weights alone."""


def in_vacuum(atoms: Atoms) -> Atoms:
    """The same atoms, fully periodic, with ``VACUUM`` A of nothing along every direction that was not periodic.

    Written apart from the service's own normalisation, and with another vacuum: energy and forces have to be the same.
    """
    if atoms.pbc.all():
        return atoms
    vectors = [atoms.cell.array[k] if atoms.pbc[k] else None for k in range(3)]
    known = [vector for vector in vectors if vector is not None]
    free = [k for k in range(3) if vectors[k] is None]
    if len(known) == 2:
        normals = [np.cross(known[0], known[1])]
    elif len(known) == 1:
        first = np.cross(known[0], np.eye(3)[np.argmin(np.abs(known[0]))])
        normals = [first, np.cross(known[0], first)]
    else:
        normals = list(np.eye(3))
    cell = atoms.cell.array.copy()
    for k, normal in zip(free, normals, strict=True):
        unit = normal / np.linalg.norm(normal)
        cell[k] = unit * (np.ptp(atoms.positions @ unit) + VACUUM)
    if np.linalg.det(cell) < 0:
        cell[free[0]] *= -1
    return Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(axis=0), cell=cell, pbc=True, info=atoms.info)


def right_handed(atoms: Atoms) -> Atoms:
    """The same crystal in a right-handed cell, without a turn: two vectors are swapped."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array[[1, 0, 2]], pbc=True)


def structure(family: str, case: str) -> Atoms:
    """A case, for the family Lennard-Jones made of argon."""
    if family != "lennard_jones":
        return (STRUCTURES | CHARGED | SYMMETRIC)[case]()
    atoms = argon(near_fragments() if case == "far fragments" else STRUCTURES[case]())
    if case == "far fragments":
        atoms.positions[3:] += FAR
    return atoms


def equivalent(family: str, case: str, kind: str) -> Atoms:
    """What the package's own calculator is given, by the word of the table below: same energy, forces and, if any, stress."""
    if kind == "vacuum":
        return in_vacuum(structure(family, "near fragments" if case == "far fragments" else case))
    return right_handed(structure(family, case)) if kind == "right-handed" else structure(family, case)


@dataclass(frozen=True)
class Reference:
    """What a case is compared with, and why it is not simply the package's own answer for the structure as it is.

    ``kind`` is ``package`` (as it is), ``vacuum`` (``in_vacuum``) or ``right-handed``; ``forces`` widens the tolerance, in eV/A.
    ``hopeless`` marks what the package must not even be asked.
    """

    kind: str
    reason: str
    forces: float | None = None
    hopeless: bool = False


AS_IT_IS = Reference("package", "the package is right")
_CLUSTER = Reference("vacuum", "the package takes what is not periodic in all three directions for a cluster")
_PARTLY = Reference("vacuum", "the package refuses what is periodic in some directions alone")
_SINGULAR = Reference("vacuum", "the package raises: it divides by a cell vector of zero length")

REFERENCES: dict[str, dict[str, Reference]] = {
    "chgnet": {
        "water": _SINGULAR,
        "two isolated atoms": _SINGULAR,
        "near fragments": _SINGULAR,
        "slab TTF, c = 0": _SINGULAR,
        "far fragments": Reference("vacuum", "the package's neighbour search would take 27 GB", hopeless=True),
        "left-handed cell": Reference("right-handed", "the package's stress has the wrong sign: it divides by the determinant"),
        "slab of Al": Reference(
            "package", "float32: the package is 1.4e-4 eV/A from itself in float64, and 2e-4 after a translation", forces=3e-4
        ),
    },
    "mace": {
        "far fragments": Reference("vacuum", "the package's neighbour search takes 8 GB", hopeless=True),
        "left-handed cell": Reference("right-handed", "POLAR's Coulomb energy is wrong: it is divided by the determinant"),
    },
    "mattersim": {
        "slab TTF, c = 0": _SINGULAR,
        "wire FTF": Reference("vacuum", "the package wraps atoms along directions that are not periodic, which tears the wire"),
        "far fragments": Reference("vacuum", "the package's float32 positions resolve 5e-4 A there"),
        "left-handed cell": Reference("right-handed", "the package's stress has the wrong sign: it divides by the determinant"),
    },
    "fairchem": {
        "slab TTF, c = 0": Reference("vacuum", "the package refuses a cell without volume"),
        "far fragments": Reference("vacuum", "the package's float32 positions resolve 5e-4 A there"),
    },
    "orb": {
        **dict.fromkeys(("slab TTF", "slab TTF, c = 0", "slab TFT", "slab TTF in xz", "slab of Al", "wire FTF"), _PARTLY),
        "far fragments": Reference("vacuum", "the package's float32 positions resolve 5e-4 A there"),
        "left-handed cell": Reference("right-handed", "the stress of the direct pair repulsion has the wrong sign"),
    },
    "grace": {
        "slab TTF, c = 0": Reference("vacuum", "the package raises: it inverts a singular cell"),
    },
    "matgl": {
        **dict.fromkeys(("slab TTF", "slab TTF, c = 0", "slab TFT", "slab TTF in xz", "slab of Al", "wire FTF"), _CLUSTER),
        "far fragments": Reference("vacuum", "the package's float32 positions resolve 5e-4 A there"),
    },
    "sevennet": {
        "far fragments": Reference("vacuum", "the package's neighbour search takes 35 s and 8 GB", hopeless=True),
    },
}


def reference(family: str, case: str) -> Reference:
    """The row of the table; the package's own answer where there is none."""
    return REFERENCES.get(family, {}).get(case, AS_IT_IS)


def argon(atoms: Atoms) -> Atoms:
    """The same arrangement made of argon, at argon's distances: the cases for Lennard-Jones."""
    atoms = atoms.copy()
    atoms.numbers[:] = 18
    distances = neighbor_list("d", in_vacuum(atoms), 6.0)
    if len(distances):
        scale = 3.6 / distances.min()
        atoms.set_cell(atoms.cell.array * scale)
        atoms.positions *= scale
    return atoms
