"""MatGL's own ASE calculator, and what of the tiny variants is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from ase import Atoms

from tests.conformance import cases

CASES = {
    "tiny-matgl-m3gnet": tuple(cases.STRUCTURES),
    "tiny-matgl-tensornet": tuple(cases.STRUCTURES),
    "tiny-matgl-chgnet": tuple(cases.STRUCTURES),
}


def calculator(variant: str, head: str, checkpoint: Path) -> Any:  # noqa: ARG001
    """``PESCalculator`` as its documentation sets it up for ASE, around a tiny potential."""
    from matgl import load_model
    from matgl.ext.ase import PESCalculator
    from matgl.graph._compute import create_directed_line_graph
    from matgl.models import _chgnet

    class Calculator(PESCalculator):
        """With the package's own line graph, which Forcegate replaces, and magnetic moments as ASE wants them."""

        def calculate(self, atoms: Atoms, *arguments: Any) -> None:
            with patch.object(_chgnet, "create_directed_line_graph", create_directed_line_graph):
                super().calculate(atoms, *arguments)
            if "magmoms" in self.results:
                self.results["magmoms"] = self.results["magmoms"].reshape(-1)

    return Calculator(load_model(checkpoint).eval(), stress_unit="eV/A3", use_voigt=True)
