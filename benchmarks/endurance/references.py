"""What is asked, and what has to come of it: answers of the undisturbed service, one structure at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms

from benchmarks import structures
from benchmarks.endurance.seen import Wrong
from benchmarks.plan import ANALYTIC, variant_of
from benchmarks.sections.relaxations import FMAX, STEPS, rattled
from forcegate.client import Client
from forcegate.evaluation import evaluate

POOL = 24
"""Structures of each model, no two of one energy, so that an answer which belongs to another request shows."""
SIZES = (2, 8, 16, 32)
ENERGY, FORCES = 2e-5, 2e-3
"""eV/atom and eV/A. An answer depends on what shares its batch by float32's rounding; structures of a pool differ by far more."""
MINIMUM = 1e-4
"""eV/atom between two relaxations of one structure, which end within the same fmax."""
RELAXATIONS, RUNS = 6, 3
"""Different tasks of each kind."""
DYNAMICS = {
    "ensemble": "nve",
    "temperature": 30.0,
    "timestep": 2.0,
    "equilibration_steps": 50,
    "production_steps": 350,
    "sample_interval": 10,
}
PATIENCE_SECONDS = 900.0
"""For one task; kills set it back time and again."""


@dataclass(frozen=True)
class Single:
    """A structure with its energy in eV and its forces in eV/A."""

    model: str
    atoms: Atoms
    energy: float
    forces: np.ndarray

    def check(self, answer: Mapping[str, Any]) -> None:
        """Raises ``Wrong`` where ``energy`` or ``forces`` are others."""
        if not abs(float(answer["energy"]) - self.energy) <= ENERGY * len(self.atoms):
            raise Wrong(f"{self.model} {self.atoms.symbols}: energy {answer['energy']} in place of {self.energy}")
        forces = np.asarray(answer["forces"], dtype=float)
        if forces.shape != self.forces.shape:
            raise Wrong(f"{self.model} {self.atoms.symbols}: forces of shape {forces.shape}")
        if not (worst := float(np.abs(forces - self.forces).max())) <= FORCES:
            raise Wrong(f"{self.model} {self.atoms.symbols}: forces are off by {worst} eV/A")


@dataclass(frozen=True)
class Task:
    """A calculation of the queue with the numbers of its result that do not depend on how often it was interrupted."""

    kind: str
    model: str
    atoms: Atoms
    parameters: dict[str, Any]
    expected: dict[str, float]
    tolerances: dict[str, float]

    def check(self, result: Mapping[str, Any]) -> None:
        """Raises ``Wrong`` where the result is another."""
        for name, value in self.expected.items():
            if not abs(float(result[name]) - value) <= self.tolerances[name]:
                raise Wrong(f"{self.kind} {self.model}: {name} {result[name]} in place of {value}")


def singles(model: str, address: str) -> list[Single]:
    """The pool of a model."""
    variant = variant_of(model)
    made = structures.mixture(variant, SIZES, POOL)
    found = [evaluate([atoms], model, address=address)[0] for atoms in made]
    return [Single(model, atoms, float(each.energy or 0.0), np.array(each.forces)) for atoms, each in zip(made, found, strict=True)]


def tasks(models: Sequence[str], client: Client) -> tuple[list[Task], list[Task]]:
    """Relaxations of crystals, and NVE runs of argon, which come to the same numbers however often they go on from a state."""
    chosen = [model for model in models if model != ANALYTIC] or list(models)
    parameters = {"fmax": FMAX, "max_steps": STEPS, "optimizer": "FIRE"}
    relaxations = [
        _submitted(client, "optimization", model, atoms, parameters, {"final_energy": MINIMUM * len(atoms)})
        for model in chosen
        for atoms in rattled(model, RELAXATIONS)
    ]
    runs = [
        _submitted(
            client, "stability", ANALYTIC, _argon(), DYNAMICS | {"seed": seed}, {"mean_energy": 1e-5, "mean_temperature": 1e-3}
        )
        for seed in range(RUNS)
    ]
    return [_completed(client, *each) for each in relaxations], [_completed(client, *each) for each in runs]


def _argon() -> Atoms:
    return structures.cell(("Ar", "fcc", 5.26), 32)


def _submitted(
    client: Client, kind: str, model: str, atoms: Atoms, parameters: dict[str, Any], tolerances: dict[str, float]
) -> tuple[str, Task]:
    accepted = client.submit(kind, atoms, model, **parameters)
    return accepted["task_id"], Task(kind, model, atoms, parameters, {}, tolerances)


def _completed(client: Client, identifier: str, task: Task) -> Task:
    result = client.wait(identifier, PATIENCE_SECONDS)
    return replace(task, expected={name: float(result[name]) for name in task.tolerances})
