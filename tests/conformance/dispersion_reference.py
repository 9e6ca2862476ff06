"""Run by ``environments/dftd3/bin/python``: the library called directly on structures as they are, as JSON.

With the library's own damping parameters and its own treatment of molecules and slabs: the adapter takes the parameters from its
files, and sees every structure periodic.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from ase import Atoms
from ase.units import Bohr, Hartree
from dftd3.interface import DispersionModel, RationalDampingParam


def main() -> None:
    """Reads ``{"functional", "structures"}`` from standard input and writes one result for each structure."""
    task = json.load(sys.stdin)
    damping = RationalDampingParam(method=task["functional"], atm=False)
    json.dump([evaluate(Atoms(**structure), damping) for structure in task["structures"]], sys.stdout)


def evaluate(atoms: Atoms, damping: RationalDampingParam) -> dict[str, object]:
    """Energy in eV, forces in eV/A and, where periodic, stress in eV/A^3 as a 3x3 matrix."""
    periodic = atoms.pbc.any()
    cell, pbc = (atoms.cell.array / Bohr, np.array(atoms.pbc)) if periodic else (None, None)
    answer = DispersionModel(atoms.numbers, atoms.positions / Bohr, cell, pbc).get_dispersion(damping, grad=True)
    stress = answer["virial"] * Hartree / atoms.get_volume() if atoms.pbc.all() else None
    return {
        "energy": float(answer["energy"]) * Hartree,
        "forces": (answer["gradient"] * -Hartree / Bohr).tolist(),
        "stress": None if stress is None else stress.tolist(),
    }


if __name__ == "__main__":
    main()
