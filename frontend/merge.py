"""What several models say of one structure, set side by side.

Total energies of different models have different zeros (pseudopotentials, reference energies, corrections), so their difference
means nothing. Forces and stress have no such zero and are compared as they are. For energies, each model's own isolated atoms are
taken off: what is left, the atomization energy, has the same zero for all. Where a model was never shown isolated atoms, as those
trained on crystals alone, that zero is an extrapolation of the model, and the answer says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from ase.data import chemical_symbols

GPA_PER_EV_A3 = 160.21766208
"""1 eV/A^3 in GPa (CODATA 2014 elementary charge, the value that ASE uses)."""
SMALLEST_FORCE = 1e-6
"""eV/A; the direction of a force field weaker than this (norm over all atoms) is rounding, and its cosine is not given."""

ENERGY_NOTE = (
    "Total energies of different models have different zeros and must not be compared. `atomization_energy_per_atom` is the total "
    "energy less that of each atom alone, evaluated with the same model and head, per atom. For models trained on crystals alone "
    "isolated atoms are an extrapolation: differences of some tenths of eV per atom can come from that zero. Differences between "
    "structures of the same composition do not depend on it."
)


@dataclass(frozen=True)
class Outcome:
    """What one model said.

    Attributes:
        model: the name in the request, which may be an alias.
        functional: that the model or its head was trained on.
        energy: eV, total.
        forces: ``[N, 3]`` in eV/A, or None when not asked for.
        stress: ``[6]`` in eV/A^3, or None when not asked for or not periodic in all three directions.
        isolated: energy of an isolated atom in eV by atomic number; an element is missing where it could not be evaluated.
    """

    model: str
    functional: str
    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    isolated: Mapping[int, float] = field(default_factory=dict)


def compare(numbers: np.ndarray, outcomes: Sequence[Outcome], outside: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The comparison of all models that answered.

    Args:
        numbers: ``[N]`` atomic numbers of the structure.
        outcomes: of the models that answered, in the order of the request.
        outside: atomic numbers in the structure that a model was not trained on, by model; of all models asked.
    """
    return {
        "models": [outcome.model for outcome in outcomes],
        "energy": _energy(numbers, outcomes),
        "forces": _forces([o for o in outcomes if o.forces is not None]),
        "stress": _stress([o for o in outcomes if o.stress is not None]),
        "elements_outside": {model: [chemical_symbols[z] for z in elements] for model, elements in outside.items()},
    }


def atomization_energy_per_atom(numbers: np.ndarray, energy: float, isolated: Mapping[int, float]) -> float | None:
    """(E - sum of the isolated atoms) / N in eV, negative for a bound structure; None where an isolated atom is missing."""
    counts = Counter(numbers.tolist())
    if not counts or any(number not in isolated for number in counts):
        return None
    return float((energy - sum(count * isolated[number] for number, count in counts.items())) / len(numbers))


def _energy(numbers: np.ndarray, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    aligned = {o.model: atomization_energy_per_atom(numbers, o.energy, o.isolated) for o in outcomes}
    return {
        "unit": "eV",
        "note": ENERGY_NOTE,
        "reference": "isolated atoms, each evaluated with the same model",
        "functional": {o.model: o.functional for o in outcomes},
        "isolated_atom_energy": {o.model: {chemical_symbols[z]: o.isolated[z] for z in sorted(o.isolated)} for o in outcomes},
        "atomization_energy_per_atom": aligned,
        "pairs": [
            {"models": [a, b], "difference_per_atom": aligned[b] - aligned[a]}  # type: ignore[operator]
            for a, b in combinations(aligned, 2)
            if aligned[a] is not None and aligned[b] is not None
        ],
    }


def _forces(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    if len(outcomes) < 2:
        return None
    forces = np.stack([np.asarray(o.forces) for o in outcomes])
    pairs = []
    for i, j in combinations(range(len(outcomes)), 2):
        norms = np.linalg.norm(forces[i] - forces[j], axis=1)
        pairs.append(
            {
                "models": [outcomes[i].model, outcomes[j].model],
                "rmse": float(np.sqrt(np.mean((forces[i] - forces[j]) ** 2))),
                "max": float(norms.max()),
                "max_atom": int(norms.argmax()),
                "cosine": _cosine(forces[i], forces[j]),
            }
        )
    # Root mean square distance of the models' force vectors from their mean, atom by atom.
    spread = np.sqrt(np.mean(np.sum((forces - forces.mean(axis=0)) ** 2, axis=2), axis=0))
    return {
        "unit": "eV/A",
        "pairs": pairs,
        "spread_per_atom": spread,
        "spread_mean": float(spread.mean()),
        "spread_max": float(spread.max()),
        "spread_max_atom": int(spread.argmax()),
    }


def _stress(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    if len(outcomes) < 2:
        return None
    pairs = []
    for a, b in combinations(outcomes, 2):
        difference = np.asarray(b.stress) - np.asarray(a.stress)
        pairs.append(
            {
                "models": [a.model, b.model],
                "rmse": float(np.sqrt(np.mean(difference**2))),
                "max": float(np.abs(difference).max()),
                "rmse_gpa": float(np.sqrt(np.mean(difference**2)) * GPA_PER_EV_A3),
                "max_gpa": float(np.abs(difference).max() * GPA_PER_EV_A3),
                "pressure_difference_gpa": float(-difference[:3].mean() * GPA_PER_EV_A3),
            }
        )
    return {"unit": "eV/A^3", "pairs": pairs}


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if min(norms) < SMALLEST_FORCE:
        return None
    return float(np.clip(np.sum(a * b) / (norms[0] * norms[1]), -1.0, 1.0))
