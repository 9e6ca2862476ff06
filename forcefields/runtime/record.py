"""``<environment>/bin/python -m forcefields.runtime.record VARIANT...``: records the golden energies of variants.

Run on a machine whose answers have been compared with the package's own calculator (tests/conformance); the file is checked in.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forcefields import catalogue
from forcefields.runtime import gate, golden, loading
from forcefields.runtime.engine import Engine
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def main() -> None:
    """Evaluates the golden structures of each variant, runs the whole gate, and records the energies when it passed."""
    keep_out_of_home(ModelSettings.from_environment().state)
    families = catalogue.load()
    for name in sys.argv[1:]:
        variant = families.resolve(name)
        family = families.family_of(variant)
        checkpoint = Path("model_repository") / variant.name / "1" / variant.checkpoint.file
        engine = Engine(loading.load(families, variant, checkpoint, "cpu"), variant, loading.limits(variant, 50_000, 0))
        report = gate.Gate(engine, None).run(full=True)
        for check in report.checks:
            deviation = "  skipped" if check.deviation is None else f"{check.deviation:9.2e}"
            measured = f"{deviation} <= {check.tolerance:7.1e} {check.unit}"
            print(f"{variant.name:22} {check.name:17} {measured:32} {check.seconds:6.2f} s")  # noqa: T201
        if not report.passed:
            sys.exit(f"{variant.name} did not pass, nothing was recorded")
        structures = golden.structures(variant)
        jobs = engine.evaluate(list(structures.values()))
        golden.record(
            family.golden, variant, {key: job.result.energy for key, job in zip(structures, jobs, strict=True) if job.result}
        )


if __name__ == "__main__":
    main()
