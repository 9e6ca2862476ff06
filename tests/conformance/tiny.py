"""``environments/<family>/bin/python -m tests.conformance.tiny FOLDER VARIANT...``: tiny variants, made and asked.

For each variant ``FOLDER/<variant>.json`` gets the checks of its gate, and ``FOLDER/<variant>.npz`` the answers to the cases
that ``packages/<family>.py`` lists: the runtime's, all in one batch (``<case>/served/<quantity>``) and one by one (``alone``),
and the package's own (``<case>/<kind>/<quantity>``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.runtime import gate, loading
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.verification import sha256
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.reference import family_of, package, references


def engine(variant: Variant, folder: Path) -> tuple[Engine, Path]:
    """The runtime around a checkpoint that is made in ``folder``."""
    families = catalogue.load()
    path = folder / variant.name / variant.checkpoint.file
    if not path.exists():
        path.parent.mkdir(parents=True)
        loading.module_of(families.family_of(variant), "tiny").make(variant.checkpoint.path, path)
    variant = replace(variant, checkpoint=replace(variant.checkpoint, sha256=sha256(path)))
    return Engine(loading.load(families, variant, path, "cpu"), variant, loading.limits(variant, 50_000, 0)), path


def answers(jobs: Sequence[Job], names: Sequence[str], kind: str) -> dict[str, np.ndarray]:
    """Arrays by ``<case>/<kind>/<quantity>``; without stress where there is none."""
    arrays = {}
    for case, job in zip(names, jobs, strict=True):
        if job.result is None:
            raise RuntimeError(f"{case}: {job.error}")
        quantities = {"energy": job.result.energy, "forces": job.result.forces, "stress": job.result.stress, **job.result.extra}
        for quantity, value in quantities.items():
            if value is not None and not np.isnan(value).all():
                arrays[f"{case}/{kind}/{quantity}"] = np.asarray(value)
    return arrays


def main() -> None:
    """Writes gate and answers of each variant."""
    folder, *names = sys.argv[1:]
    for name in names:
        served, path = engine(catalogue.load().resolve(name), Path(folder))
        report = gate.Gate(served, None).run(full=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps([asdict(check) for check in report.checks]))
        family = package(name)
        chosen = family.CASES[name]
        structures = [from_atoms(cases.structure(family_of(name), case)) for case in chosen]
        outputs = DEFAULT_OUTPUTS | {*served.variant.extra_outputs}
        arrays = answers(served.evaluate(structures, outputs=outputs), chosen, "served")
        for case, structure in zip(chosen, structures, strict=True):
            arrays |= answers(served.evaluate([structure], outputs=outputs), [case], "alone")
        arrays |= references(name, "", list(chosen), path)
        np.savez(Path(folder) / f"{name}.npz", **arrays)  # type: ignore[arg-type] # numpy's stub takes allow_pickle for one of them


if __name__ == "__main__":
    main()
