"""``environments/<family>/bin/python -m tests.conformance.reference VARIANT HEAD FILE CASE...``

Evaluates the package's own ASE calculator, as its documentation says to, on the cases, and writes ``<case>/<kind>/<quantity>``
arrays to an ``.npz`` file: energy in eV, forces in eV/A, stress in eV/A^3, magmoms in mu_B. Nothing of Forcegate is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from tests.conformance import cases

QUANTITIES = ("energy", "forces", "stress", "magmoms")
FAMILIES = {"lj": "lennard_jones", **dict.fromkeys(("uma", "esen", "allscaip"), "fairchem")}
"""Of variants whose name does not begin with their family's."""


def calculator(variant: str, head: str, checkpoint: Path | None = None) -> Any:
    """The package's calculator for its own model of that name, or around a tiny checkpoint."""
    if variant.startswith("tiny-"):
        return package(variant).calculator(variant, head, checkpoint)
    if variant == "lj-argon":
        from ase.calculators.lj import LennardJones

        return LennardJones(epsilon=0.0103, sigma=3.4, rc=8.5)
    family, _, name = variant.partition("-")
    if family == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator
        from chgnet.model.model import CHGNet

        return CHGNetCalculator(CHGNet.load(model_name=name, verbose=False), use_device="cpu", on_isolated_atoms="ignore")
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator({"0-22may2024": "7net-0_22may2024"}.get(name, f"7net-{name}"), device="cpu", modal=head or None)


def evaluate(calculator: Any, atoms: Atoms, quantities: Sequence[str] = QUANTITIES) -> dict[str, np.ndarray]:
    """What the calculator says, or the error that it raises."""
    try:
        calculator.calculate(atoms, ["energy", "forces", "stress"])
    except Exception as error:  # that it raises is a finding, and is kept
        return {"error": np.array(f"{type(error).__name__}: {error}")}
    return {name: np.array(calculator.results[name], dtype=float) for name in quantities if name in calculator.results}


def references(variant: str, head: str, names: list[str], checkpoint: Path | None = None) -> dict[str, np.ndarray]:
    """The package's answers for the cases as they are, and for their equivalents where the table asks for one."""
    family = family_of(variant)
    its_own = calculator(variant, head, checkpoint)
    further = getattr(package(variant), "FURTHER", ()) if variant.startswith("tiny-") else ()
    arrays = {}
    for case in names:
        row = cases.reference(family, case)
        for kind in {row.kind} if row.hopeless else {"package", row.kind}:
            for quantity, array in evaluate(its_own, cases.equivalent(family, case, kind), (*QUANTITIES, *further)).items():
                arrays[f"{case}/{kind}/{quantity}"] = array
    return arrays


def family_of(variant: str) -> str:
    """The family of a variant, without the catalogue."""
    name = variant.removeprefix("tiny-").partition("-")[0]
    return FAMILIES.get(name, name)


def package(variant: str) -> Any:
    """The module of ``tests.conformance.packages`` that knows the package of a tiny variant."""
    return importlib.import_module(f"tests.conformance.packages.{family_of(variant)}")


def main() -> None:
    """Writes the references of one variant and head."""
    variant, head, file, *names = sys.argv[1:]
    np.savez(file, **references(variant, head, names))  # type: ignore[arg-type] # numpy's stub takes allow_pickle for one of them


if __name__ == "__main__":
    main()
