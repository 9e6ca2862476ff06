"""``environments/chgnet/bin/python -m tests.conformance.first_chgnet CHECKPOINT``: the trap in batches of chgnet-0.2.0.

Prints, as JSON, by how much the energy (eV/atom) and forces (eV/A) of argon change when it is evaluated with a crystal: through
the adapter, and in one forward pass as the package would do it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ase import Atoms

from forcefields.base import Result
from forcefields.runtime.engine import DEFAULT_OUTPUTS
from forcefields.runtime.physics import normalise
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.in_process import engine


def main() -> None:
    """Compares the two."""
    force_field = engine("chgnet-0.2.0", Path(sys.argv[1])).force_field
    argon = Atoms("Ar3", positions=[(0, 0, 0), (3.8, 0, 0), (1.9, 3.3, 0)])
    graphs = [force_field.graph(normalise(from_atoms(atoms), force_field.cutoff), "") for atoms in (argon, cases.perovskite())]
    (alone,) = force_field.evaluate(graphs[:1], DEFAULT_OUTPUTS)
    apart = force_field.evaluate(graphs, DEFAULT_OUTPUTS)[0]
    mixed = force_field._evaluate(graphs, DEFAULT_OUTPUTS)[0]  # type: ignore[attr-defined]
    print(json.dumps({"kept apart": difference(alone, apart), "mixed": difference(alone, mixed)}))  # noqa: T201


def difference(one: Result, other: Result) -> float:
    """The larger of the deviations in energy per atom and in forces."""
    assert one.forces is not None
    assert other.forces is not None
    return max(abs(one.energy - other.energy) / len(one.forces), float(np.abs(one.forces - other.forces).max()))


if __name__ == "__main__":
    main()
