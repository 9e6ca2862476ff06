"""Running modules of these tests where the packages are: in the execution environments of the families."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from forcefields import catalogue
from tests.service import ROOT


def run_in(family: str, module: str, *arguments: object) -> str:
    """Runs a module of these tests in a family's environment, and returns what it printed."""
    command = [str(ROOT / "environments" / family / "bin" / "python"), "-W", "ignore", "-m", f"tests.conformance.{module}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def checkpoint_of(variant: str) -> Path:
    """A variant's checkpoint where its package, or its family, has it; whoever loads it verifies its bytes."""
    families = catalogue.load()
    found = families.resolve(variant)
    if found.checkpoint.source == "family":
        return families.family_of(found).folder / found.checkpoint.path
    packages = ROOT / "environments" / families.family_of(found).environment
    return next(packages.glob(f"lib/python3*/site-packages/{found.checkpoint.module}")) / found.checkpoint.path
