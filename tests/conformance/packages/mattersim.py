"""MatterSim's own ASE calculator, and what of the tiny variant is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conformance import cases

CASES = {"tiny-mattersim": tuple(cases.STRUCTURES)}


def calculator(variant: str, head: str, checkpoint: Path) -> Any:  # noqa: ARG001
    """``MatterSimCalculator`` around the tiny checkpoint."""
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator.from_checkpoint(str(checkpoint), device="cpu", load_training_state=False)
