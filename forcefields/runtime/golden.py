"""The structures on which a model's readiness is judged, and the energies recorded for them when it was exported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, molecule
from ase.data import chemical_symbols

from forcefields.catalogue import Variant
from forcegate.structure import Structure, from_atoms


def structures(variant: Variant) -> dict[str, Structure]:
    """Small structures of the elements that ``variant`` knows: crystals first, then a molecule and a slab.

    Displaced at random with a fixed seed, so that no force and no component of the stress is zero by symmetry.
    """
    perovskite = Atoms(
        "SrTiO3",
        scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
        cell=[3.905] * 3,
        pbc=True,
    )
    candidates = {
        "Cu fcc": bulk("Cu", "fcc", a=3.61, cubic=True),
        "NaCl rocksalt": bulk("NaCl", "rocksalt", a=5.64),
        "SrTiO3 perovskite": perovskite,
        "Ar fcc": bulk("Ar", "fcc", a=5.26, cubic=True),
        "H2O molecule": molecule("H2O"),
        "Ar3 cluster": Atoms("Ar3", positions=[(0, 0, 0), (3.8, 0, 0), (1.9, 3.3, 0)]),
        "Al slab": fcc100("Al", (1, 1, 3), vacuum=0.0, periodic=False),
        "Ar slab": fcc100("Ar", (1, 1, 3), a=5.26, vacuum=0.0, periodic=False),
    }
    chosen = {}
    for name, atoms in candidates.items():
        if set(atoms.numbers.tolist()) <= set(variant.elements) and (variant.partly_periodic or len(set(atoms.pbc.tolist())) == 1):
            chosen[name] = from_atoms(displaced(atoms))
    if not any(structure.pbc.all() for structure in chosen.values()):
        chosen |= {name: from_atoms(displaced(atoms)) for name, atoms in _of_one_element(variant).items()}
    return chosen


def _of_one_element(variant: Variant) -> dict[str, Atoms]:
    """A crystal and a cluster for a variant that knows none of the elements above, such as one tuned for a single element."""
    for number in variant.elements:
        symbol = chemical_symbols[number]
        try:
            crystal = bulk(symbol)
        except (KeyError, ValueError, RuntimeError):  # its crystal is of molecules, or ASE knows none
            continue
        crystal = crystal.repeat([2, 2, 2]) if len(crystal) == 1 else crystal
        near = sorted(crystal.get_all_distances(mic=True)[0])[1]
        cluster = Atoms([symbol] * 3, positions=[(0, 0, 0), (near, 0, 0), (near / 2, 0.9 * near, 0)])
        return {f"{symbol} crystal": crystal, f"{symbol}3 cluster": cluster}
    return {}


def displaced(atoms: Atoms, amplitude: float = 0.08, strain: float = 0.02) -> Atoms:
    """A copy with positions and cell displaced at random, the same each time."""
    generator = np.random.default_rng(20240711)
    atoms = atoms.copy()
    deformation = np.eye(3) + generator.uniform(-strain, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += generator.uniform(-amplitude, amplitude, atoms.positions.shape)
    return atoms


def of_state(state: Path, variant: Variant) -> Path:
    """The file in the state folder for a checkpoint whose energies are not checked in: they are recorded when it is exported."""
    return state / "golden" / f"{variant.name}.json"


def _key(variant: Variant) -> str:
    # Energies in float32 and in float64 differ by more than the gate allows.
    return f"{variant.name}:{variant.dtype}"


def recorded(golden: Path, variant: Variant, state: Path) -> dict[str, float] | None:
    """The recorded energies in eV by structure, or None when this checkpoint has none in this dtype.

    Args:
        golden: the family's checked-in file, which comes before what was recorded in the folder ``state``.
    """
    for path in (golden, of_state(state, variant)):
        entry = json.loads(path.read_text()).get(_key(variant)) if path.is_file() else None
        if entry is not None and entry["checkpoint_sha256"] == variant.checkpoint.sha256:
            return dict(entry["energies"])
    return None


def record(golden: Path, variant: Variant, energies: dict[str, float]) -> None:
    """Writes the energies of one variant among those that the file holds."""
    golden.parent.mkdir(parents=True, exist_ok=True)
    data = json.loads(golden.read_text()) if golden.is_file() else {}
    data[_key(variant)] = {"checkpoint_sha256": variant.checkpoint.sha256, "unit": "eV", "energies": energies}
    partial = golden.with_name(f".{os.getpid()}.{golden.name}")
    partial.write_text(json.dumps(dict(sorted(data.items())), indent=2) + "\n")
    os.replace(partial, golden)
