"""FAIRChem's own ASE calculator, and what of the tiny variants is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import all_changes

from tests.conformance import cases

MOLECULES = ("near fragments", *cases.CHARGED)

CASES = {
    "tiny-uma": tuple(cases.STRUCTURES),
    "tiny-esen": (*cases.FEW, *MOLECULES),
    "tiny-esen-direct": (*cases.FEW, *MOLECULES, *cases.SYMMETRIC),
    "tiny-allscaip": (*cases.FEW, *MOLECULES),
}


def calculator(variant: str, head: str, checkpoint: Path) -> Any:
    """``FAIRChemCalculator`` around a tiny checkpoint, with the graphs that the package makes itself."""
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit

    class Calculator(FAIRChemCalculator):
        """Can be called without a list of changes, as ASE's own can."""

        def calculate(self, atoms: Atoms, properties: list[str], system_changes: list[str] = all_changes) -> None:
            super().calculate(atoms.copy(), properties, system_changes)

    unit = load_predict_unit(checkpoint, inference_settings="batch", device="cpu")
    return Calculator(unit, task_name=(head or "omat") if variant == "tiny-uma" else "omol")
