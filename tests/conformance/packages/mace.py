"""MACE's own ASE calculator, and what of the tiny variants is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conformance import cases

CASES = {
    "tiny-mace": tuple(cases.STRUCTURES),
    "tiny-mace-omat": tuple(cases.STRUCTURES),
    "tiny-mace-multihead": cases.FEW,
    "tiny-mace-omol": (*cases.FEW, *cases.CHARGED),
}
PRECISE = ("tiny-mace-omat", "tiny-mace-multihead", "tiny-mace-omol")
"""Compared with the package in float64: omol is served so; the repulsion of the others, which the service evaluates in float64
always, leaves noise of 0.001 eV/A in the package's float32 forces where two atoms are at the sum of their covalent radii."""
FURTHER = ("energies",)
"""What its calculator says besides energy, forces and stress."""


def calculator(variant: str, head: str, checkpoint: Path) -> Any:
    """``MACECalculator`` around a tiny checkpoint."""
    from mace.calculators import MACECalculator

    chosen = {"head": head or "omat_pbe"} if variant == "tiny-mace-multihead" else {}
    dtype = "float64" if variant in PRECISE else "float32"
    return MACECalculator(model_paths=str(checkpoint), device="cpu", default_dtype=dtype, **chosen)
