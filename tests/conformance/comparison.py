"""How two sets of results are compared, in one place, so that the negative controls test what the tests use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forcegate.contract import voigt_from_matrix


@dataclass(frozen=True)
class Tolerance:
    """Largest deviations: energy in eV per atom, forces in eV/A, stress in eV/A^3, magmoms in mu_B, and of
    single atoms energies in eV and charges in e.

    The defaults are what float32 leaves: relative rounding of 6e-8, some hundred operations deep.
    """

    energy: float = 1e-5
    forces: float = 1e-4
    stress: float = 1e-5
    magmoms: float = 1e-4
    energies: float = 1e-5
    charges: float = 1e-5


ANALYTIC = Tolerance(energy=1e-10, forces=1e-10, stress=1e-10)
"""Lennard-Jones in float64: rounding alone."""


def deviations(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, float]:
    """The largest deviation of every quantity that either holds; infinite where only one of them does, or a value is NaN."""
    found = {}
    for name in sorted(set(one) | set(other)):
        first, second = one.get(name), other.get(name)
        if first is None and second is None:
            continue
        if first is None or second is None:
            found[name] = np.inf
            continue
        a, b = _array(name, first), _array(name, second)
        deviation = np.inf if a.shape != b.shape else float(np.max(np.abs(a - b), initial=0.0))
        found[name] = np.inf if np.isnan(deviation) else deviation
    if "energy" in found and (forces := one.get("forces")) is not None:
        found["energy"] /= len(np.asarray(forces))
    return found


def beyond(found: Mapping[str, float], tolerance: Tolerance) -> dict[str, float]:
    """The deviations that are larger than their tolerance."""
    return {name: value for name, value in found.items() if value > getattr(tolerance, name)}


def _array(name: str, value: object) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    return voigt_from_matrix(array) if name == "stress" and array.shape == (3, 3) else array
