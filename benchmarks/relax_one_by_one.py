"""``<environment>/bin/python -m benchmarks.relax_one_by_one MODEL``: ASE's FIRE over the package's calculator, without a server."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE

from benchmarks import calculators
from benchmarks.in_process import checkpoint_of
from forcefields import catalogue
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def relax(calculator: Any, file: str, fmax: float, steps: int) -> dict[str, Any]:
    """Relaxes every structure of a file, with its cell; seconds in all, and of each the energy in eV and the steps taken."""
    given = read(file, ":")
    energies, taken = [], []
    started = time.perf_counter()
    for atoms in given:
        atoms.calc = calculator
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        optimizer.run(fmax=fmax, steps=steps)
        energies.append(float(atoms.get_potential_energy()))
        taken.append(optimizer.nsteps)
    return {"seconds": time.perf_counter() - started, "energies": energies, "steps": taken}


def main() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = ModelSettings.from_environment()
    keep_out_of_home(settings.state)
    variant = catalogue.load().resolve(sys.argv[1])
    calculator = calculators.calculator(variant, checkpoint_of(variant, settings.state))
    answers.write(json.dumps({"ready": variant.name}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps({"value": relax(calculator, **json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()
