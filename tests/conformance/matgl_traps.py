"""``environments/matgl/bin/python -m tests.conformance.matgl_traps FOLDER``: what is easily got wrong with MatGL, as figures.

Prints JSON: megabytes, eV/A, eV/A^3, and counts.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Prints all figures."""
    folder = Path(sys.argv[1])
    home = folder / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    # Only now, since it is the import that would write into the home directory.
    figures = line_graphs() | all_electrons(folder) | leftovers(folder) | other_types(folder)
    print(json.dumps(figures | {"files at home": len(list(home.rglob("*")))}))  # noqa: T201


def line_graphs() -> dict[str, float]:
    """MatGL's own line graph against the linear one: of random graphs, and the memory that 40 000 bonds take."""
    import torch

    from forcefields.matgl.adapter import directed_line_graph

    # After the adapter, which sees to it that the package does not write at home.
    from matgl.graph._compute import create_directed_line_graph  # isort: skip

    generator = torch.Generator().manual_seed(1)
    different = 0
    for atoms, bonds in ((1, 12), (2, 40), (9, 300), (40, 700), (3, 0)):
        edges = torch.randint(atoms, (2, bonds), generator=generator)
        edges = edges[:, torch.argsort(edges[0], stable=True)]
        images = torch.randint(-1, 2, (bonds, 3), generator=generator).float()
        vectors = torch.randn((bonds, 3), generator=generator)
        arguments = edges, images, vectors, 4.0 * torch.rand(bonds, generator=generator), 3.0
        for ours, theirs in zip(directed_line_graph(*arguments), create_directed_line_graph(*arguments), strict=True):
            different += not torch.equal(ours, theirs.to(ours.dtype))
    bonds = 40_000
    first = torch.arange(bonds) // 12
    edges = torch.stack([first, (first + torch.arange(bonds)) % int(first[-1] + 1)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    directed_line_graph(edges, torch.zeros(bonds, 3), torch.randn(bonds, 3), torch.ones(bonds), 3.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"different line graphs": different, "megabytes for 40 000 bonds": (peak - before) / 1024}


def all_electrons(folder: Path) -> dict[str, float]:
    """The gate's forces where isolated atoms have the energies of all their electrons, as in ANI-1x; and with stress switched on.

    -20.8 Z^(7/3) eV is the statistical atom's, L. H. Thomas, Proc. Camb. Phil. Soc. 23, 542 (1927).
    """
    import torch
    from ase.data import atomic_numbers

    from forcefields import catalogue
    from forcefields.matgl.adapter import MatGL, load_model
    from forcefields.runtime.engine import Engine
    from forcefields.runtime.gate import Gate
    from tests.conformance.tiny import engine

    tiny, path = engine(catalogue.load().resolve("tiny-matgl-m3gnet"), folder)
    potential = load_model(path)
    numbers = torch.tensor([float(atomic_numbers[symbol]) for symbol in potential.model.element_types])
    stressless = type(potential)(potential.model, 0.0, potential.data_std, -20.8 * numbers ** (7 / 3), calc_stresses=False)
    stressless.save(folder / "electrons")
    heavy = Engine(MatGL.load(folder / "electrons", tiny.variant, "cpu"), tiny.variant, tiny.limits)
    gate = Gate(heavy, None)
    return {"forces with all electrons": gate._forces()[0], "stress that was not asked for": gate._stress()[0]}


def leftovers(folder: Path) -> dict[str, float]:
    """Tensors that stay behind in the model after an evaluation."""
    from forcefields import catalogue
    from forcegate.structure import from_atoms
    from tests.conformance import cases
    from tests.conformance.tiny import engine

    tiny, _ = engine(catalogue.load().resolve("tiny-matgl-tensornet"), folder)
    tiny.evaluate([from_atoms(cases.salt())])
    left = tiny.force_field._potential.model.feature_dict  # type: ignore[attr-defined]
    energies = [job.result.energy for job in tiny.evaluate([from_atoms(cases.salt())], outputs=frozenset({"energy"})) if job.result]
    again = [job.result.energy for job in tiny.evaluate([from_atoms(cases.salt())]) if job.result]
    return {"features left": len(left), "energy alone": float(np.abs(np.subtract(energies, again)).max())}


def other_types(folder: Path) -> dict[str, float]:
    """Tensors of a graph whose type is not that of the package's own converter."""
    from matgl.ext.ase import Atoms2Graph

    from forcefields import catalogue
    from forcefields.runtime.physics import normalise
    from forcegate.structure import from_atoms
    from tests.conformance import cases
    from tests.conformance.tiny import engine

    force_field: Any = engine(catalogue.load().resolve("tiny-matgl-tensornet"), folder)[0].force_field
    ours = force_field.graph(normalise(from_atoms(cases.salt()), force_field.cutoff), "").payload
    theirs, *_ = Atoms2Graph(force_field._potential.model.element_types, force_field.cutoff).get_graph(cases.salt())
    names = ("edge_index", "pbc_offset", "node_type", "frac_coords")
    return {"other types": sum(ours[name].dtype != theirs[name].dtype for name in names)}


if __name__ == "__main__":
    main()
