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
    # Molecules and crystals. In the cell that the package puts around fragments 25 A apart, it would make millions of waves.
    "tiny-mace-polar": (
        *("Cu", "Cu primitive", "SrTiO3", "water", "one atom in a box", "left-handed cell", "unwrapped", "triclinic"),
        *cases.CHARGED,
    ),
}
PRECISE = ("tiny-mace-omat", "tiny-mace-multihead", "tiny-mace-omol", "tiny-mace-polar")
"""Compared with the package in float64: omol and polar are served so; the repulsion of the others, which the service evaluates in
float64 always, leaves noise of 0.001 eV/A in the package's float32 forces where two atoms are as far apart as the sum of their
covalent radii."""
FURTHER = ("energies", "charges")
"""What its calculator says besides energy, forces and stress."""


def calculator(variant: str, head: str, checkpoint: Path) -> Any:
    """``MACECalculator`` around a tiny checkpoint."""
    from mace.calculators import MACECalculator

    class Lowest(MACECalculator):
        """Takes radicals for the doublets that they are, where the package's default is a singlet whatever the electrons."""

        def calculate(self, atoms: Any, *arguments: Any, **options: Any) -> None:
            electrons = atoms.numbers.sum() - atoms.info.get("charge", 0)
            atoms = atoms.copy()
            atoms.info = {"spin": 2 if electrons % 2 else 1} | atoms.info
            super().calculate(atoms, *arguments, **options)

    class Polar(Lowest):
        """Without its stress, which leaves out how the Coulomb energy of a crystal changes with the lattice."""

        def calculate(self, atoms: Any, *arguments: Any, **options: Any) -> None:
            super().calculate(atoms, *arguments, **options)
            self.results.pop("stress")

    if variant == "tiny-mace-polar":
        return Polar(model_paths=str(checkpoint), device="cpu", default_dtype="float64", model_type="PolarMACE")
    chosen = {"head": head or "omat_pbe"} if variant == "tiny-mace-multihead" else {}
    dtype = "float64" if variant in PRECISE else "float32"
    return Lowest(model_paths=str(checkpoint), device="cpu", default_dtype=dtype, **chosen)
