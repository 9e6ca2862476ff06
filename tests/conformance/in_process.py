"""``environments/<family>/bin/python -m tests.conformance.in_process VARIANT CHECKPOINT FILE CASE...``

For variants that the test service does not load: writes the answers of Forcegate's runtime (``<case>/served/<quantity>``) beside
those of the package's own calculator (``<case>/<kind>/<quantity>``) to an ``.npz`` file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from forcefields import catalogue
from forcefields.runtime import loading
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.reference import family_of, references


def engine(name: str, checkpoint: Path) -> Engine:
    """The runtime around one checkpoint, without Triton."""
    families = catalogue.load()
    variant = families.resolve(name)
    return Engine(loading.load(families, variant, checkpoint, "cpu"), variant, loading.limits(variant, 50_000, 0))


def main() -> None:
    """Writes answers and references of one variant."""
    name, checkpoint, file, *names = sys.argv[1:]
    served = engine(name, Path(checkpoint))
    structures = [from_atoms(cases.structure(family_of(name), case)) for case in names]
    arrays: dict[str, np.ndarray] = {}
    outputs = DEFAULT_OUTPUTS | {*served.variant.extra_outputs}
    for case, job in zip(names, served.evaluate(structures, outputs=outputs), strict=True):
        if job.result is None:
            raise RuntimeError(f"{case}: {job.error}")
        quantities = {"energy": job.result.energy, "forces": job.result.forces, "stress": job.result.stress, **job.result.extra}
        arrays |= {f"{case}/served/{quantity}": np.asarray(value) for quantity, value in quantities.items()}
    arrays |= references(name, "", names)
    np.savez(file, **arrays)  # type: ignore[arg-type] # numpy's stub takes allow_pickle for one of them


if __name__ == "__main__":
    main()
