"""GRACE's own ASE calculator, and what of the tiny variants is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms

from tests.conformance import cases

# The largest first: the package pads all that follow to its length, and compiles once.
ALL = ("384 atoms", *(case for case in cases.STRUCTURES if case != "384 atoms"))
CASES = {"tiny-grace-1l": ALL, "tiny-grace-2l": ALL}
FURTHER = ("energies",)


def calculator(variant: str, head: str, checkpoint: Path) -> Any:  # noqa: ARG001
    """``TPCalculator`` around a tiny SavedModel."""
    from tensorpotential.calculator import TPCalculator

    class Calculator(TPCalculator):
        """Gets a copy: the package gives the caller's own atoms a cell, and periodicity in all directions."""

        def calculate(self, atoms: Atoms, *arguments: Any) -> None:
            super().calculate(atoms.copy(), *arguments)
            self.results["energies"] = self.results["atomic_energy"][: len(atoms), 0]

    return Calculator(
        str(checkpoint), enable_uq_if_available=False, extra_properties=["atomic_energy"], max_number_reduction_recompilation=0
    )
