"""``environments/mace/bin/python -m tests.conformance.mace_double CHECKPOINT``: the package's energy of the perovskite, eV."""

from __future__ import annotations

import sys

from tests.conformance import cases


def main() -> None:
    """Prints the energy as the last line; the package greets before it."""
    from mace.calculators import MACECalculator

    calculator = MACECalculator(model_paths=sys.argv[1], device="cpu", default_dtype="float64")
    calculator.calculate(cases.perovskite(), ["energy"])
    print(repr(float(calculator.results["energy"])))  # noqa: T201


if __name__ == "__main__":
    main()
