"""What the tests of one family share: its tiny variants made, gated and compared with the package, in the family's environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance import cases
from tests.conformance.comparison import Tolerance, beyond, deviations
from tests.conformance.environments import run_in
from tests.conformance.reference import family_of, package
from tests.service import ROOT

Quantities = dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """The answers of one tiny variant by ``<case>/<kind>``, and the checks of its gate by name."""

    variant: str
    answers: dict[str, Quantities]
    checks: dict[str, dict[str, Any]]

    def expected(self, case: str) -> Quantities:
        """The package's answer for a case, or for what the table puts in its place."""
        family = family_of(self.variant)
        known = dict(self.answers[f"{case}/{cases.reference(family, case).kind}"])
        assert "error" not in known, f"the package cannot evaluate its reference: {known['error']}"
        if not cases.structure(family, case).pbc.all():
            known.pop("stress", None)
        return known

    def deviation(self, case: str) -> dict[str, float]:
        """How far the runtime's answer is from the package's."""
        known = self.expected(case)
        served = self.answers[f"{case}/served"]
        # The package's calculator may say more than Forcegate serves of this family, but not the other way round.
        return deviations(served, {name: value for name, value in known.items() if name in served or name in ("forces", "stress")})


def run(family: str, folder: Path) -> dict[str, Tiny]:
    """Makes, gates and evaluates the tiny variants of a family; the deviations go to ``var/conformance/<family>.json``."""
    names = list(package(f"tiny-{family}").CASES)
    run_in(family, "tiny", folder, *names)
    found = {name: Tiny(name, read(folder / f"{name}.npz"), read_checks(folder / f"{name}.json")) for name in names}
    table = ROOT / "var" / "conformance" / f"{family}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({name: rows(tiny) for name, tiny in found.items()}, indent=2) + "\n")
    return found


def rows(tiny: Tiny) -> dict[str, Any]:
    """The family's part of the table: deviations, and what they are deviations from."""
    family = family_of(tiny.variant)
    return {
        case: tiny.deviation(case) | {"reference": (row := cases.reference(family, case)).kind, "reason": row.reason}
        for case in package(tiny.variant).CASES[tiny.variant]
        if "error" not in tiny.answers[f"{case}/{cases.reference(family, case).kind}"]
    }


def read(file: Path) -> dict[str, Quantities]:
    """Quantities by ``<case>/<kind>``."""
    answers: dict[str, Quantities] = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            case, kind, quantity = name.rsplit("/", 2)
            answers.setdefault(f"{case}/{kind}", {})[quantity] = arrays[name]
    return answers


def read_checks(file: Path) -> dict[str, dict[str, Any]]:
    """The gate's checks by name."""
    return {check["name"]: check for check in json.loads(file.read_text())}


def chosen(family: str) -> list[tuple[str, str]]:
    """Every tiny variant with each of its cases."""
    return [(variant, case) for variant, names in package(f"tiny-{family}").CASES.items() for case in names]


def equal_to_the_package(tiny: Tiny, case: str, tolerance: Tolerance | None = None) -> None:
    """Asserts that a case is what the package says, and says as much as it does of stress."""
    assert beyond(tiny.deviation(case), tolerance or Tolerance()) == {}


def batched_equals_alone(tiny: Tiny, case: str, tolerance: Tolerance | None = None) -> None:
    """Asserts that a case that was evaluated with all the others is what it is by itself."""
    assert beyond(deviations(tiny.answers[f"{case}/served"], tiny.answers[f"{case}/alone"]), tolerance or Tolerance()) == {}
