"""``environments/mattersim/bin/python -m tests.conformance.mattersim_traps FOLDER``: where MatterSim's own code would go wrong.

Prints, as JSON, one number for each trap; FOLDER has the tiny checkpoint that ``tests.conformance.tiny`` made.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from forcefields import catalogue
from forcefields.runtime import loading
from forcefields.runtime.engine import Engine
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.tiny import engine

NOWHERE = "/proc/forcegate"
"""A home in which nobody, root neither, can make a folder."""


def main() -> None:
    """Springs every trap."""
    os.environ["HOME"] = NOWHERE
    folder = Path(sys.argv[1])
    served, path = engine(catalogue.load().resolve("tiny-mattersim"), folder)
    served.evaluate([from_atoms(cases.copper())])
    # What would have been made by now is made under another home for the package's own calculator.
    os.environ["HOME"] = str(folder)
    print(json.dumps({"without a home": 1.0} | at_the_cutoff(served, path) | incomplete(path, folder)))  # noqa: T201


def at_the_cutoff(served: Engine, path: Path) -> dict[str, float]:
    """Neighbours at exactly the cutoffs of pairs, 5 A, and of triples, 4 A; eV/atom or eV/A."""
    from tests.conformance.packages.mattersim import calculator

    # The package's logger prints to standard output, this module's one line is all that may be there.
    sys.stdout, out = sys.stderr, sys.stdout
    its_own = calculator("tiny-mattersim", "", path)
    sys.stdout = out
    found = 0.0
    for edge in (4.0, 5.0, 4.0 * np.sqrt(2.0)):
        atoms = Atoms("PoCl", [(0, 0, 0), (edge / 2, 0.03, 0)], cell=[edge] * 3, pbc=True)
        (job,) = served.evaluate([from_atoms(atoms)])
        assert job.result is not None
        assert job.result.forces is not None
        its_own.calculate(atoms)
        energy = abs(job.result.energy - float(its_own.results["energy"])) / 2
        found = max(found, energy, float(np.abs(job.result.forces - its_own.results["forces"]).max()))
    return {"neighbours at the cutoff": found}


def incomplete(path: Path, folder: Path) -> dict[str, float]:
    """A checkpoint without one of its parameters."""
    import torch

    saved = torch.load(path, weights_only=True)
    del saved["model"][next(name for name in saved["model"] if name.startswith("graph_conv"))]
    spoilt = folder / "incomplete.pth"
    torch.save(saved, spoilt)
    families = catalogue.load()
    variant = replace(families.resolve("tiny-mattersim"), name="incomplete")
    try:
        loading.adapter(families.family_of(variant)).load(spoilt, variant, "cpu")
    except ValueError:
        return {"an incomplete checkpoint is refused": 1.0}
    return {"an incomplete checkpoint is refused": 0.0}


if __name__ == "__main__":
    main()
