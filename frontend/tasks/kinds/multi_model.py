"""``multi-model``: one calculation for one structure with several models; one that fails leaves the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from pydantic import Field

from forcegate.calculations.answers import plain
from forcegate.calculations.forces import Forces
from forcegate.calculations.progress import Step
from forcegate.errors import ForcegateError
from frontend import merge
from frontend.tasks.kinds.calculations import CALCULATIONS
from frontend.tasks.kinds.job import Job, Level
from frontend.tasks.kinds.kind import Calculation, Kind, TaskParameters, atoms_of

if TYPE_CHECKING:
    from frontend.tasks.context import Context

_PER_MODEL = "initial_energy", "final_energy", "mean_energy", "equilibrium_energy", "energy_total", "energy_host", "energy_guest"
TOTAL_ENERGIES = frozenset(("energy", "energy_per_atom", "seed", *_PER_MODEL))
"""Fields that are not compared: each model has a zero of its own, or they are no property of the structure."""


class MultiModel(TaskParameters):
    """Which calculation, and its parameters."""

    task: str = Field("single_point", max_length=40, description="The calculation, such as `optimization` or `bulk_modulus`.")
    task_params: dict[str, Any] | None = Field(
        None,
        description="Its parameters; `heads` names a head by model; `align` (true) evaluates isolated atoms for single points.",
    )


class MultiModelKind(Kind):
    """Carries out comparisons."""

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        kind = CALCULATIONS[parameters["task"]]
        atoms = atoms_of(parameters["atoms"])
        asked = kind.parameters.model_validate(parameters["parameters"])
        models: list[dict[str, Any]] = parameters["models"]
        with ThreadPoolExecutor(len(models), thread_name_prefix="model") as threads:
            outcomes = list(threads.map(lambda entry: _of_model(kind, context, atoms, asked, *entry), enumerate(models)))
        answered = [(entry, outcome) for entry, outcome in zip(models, outcomes, strict=True) if outcome["status"] == "success"]
        if kind.name == "single-point":
            comparison = _single_points(context, atoms, answered, parameters)
        else:
            comparison = {
                "models": [entry["name"] for entry, _ in answered],
                "quantities": quantities({entry["name"]: outcome["result"] for entry, outcome in answered}),
                "elements_outside": parameters["elements_outside"],
            }
        return {
            "task": parameters["task"].replace("-", "_"),
            "models_count": len(models),
            "results": outcomes,
            "comparison": plain(comparison),
        }


def _of_model(
    kind: Calculation, context: Context, atoms: Atoms, asked: TaskParameters, number: int, entry: dict[str, Any]
) -> dict[str, Any]:
    """What one model has to say, its error included."""
    part = f"model-{entry['name']}".replace("/", "_")
    if (kept := context.kept(part)) is not None:
        return kept
    if entry["error"] is not None:
        return _failed(entry, entry["error"])
    job = Job(context, Level(entry["model"], entry["head"], entry["dispersion"]), atoms, asked, part, number)
    try:
        result = kind.carry_out(replace(job, source=job.forces))
    except ForcegateError as error:
        if not error.retryable:
            context.keep(part, _failed(entry, error.as_dict()))
        return _failed(entry, error.as_dict())
    outcome = {"model": entry["name"], "status": "success", "result": result, "error": None}
    context.keep(part, outcome)
    return outcome


def _failed(entry: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": entry["name"], "status": "error", "result": None, "error": dict(error)}


def quantities(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each number that all models answer: its value by model, and the largest less the smallest."""
    shared: dict[str, Any] = {}
    first = next(iter(results.values()), {})
    for name in first:
        values = {model: result.get(name) for model, result in results.items()}
        numbers = [value for value in values.values() if isinstance(value, int | float) and not isinstance(value, bool)]
        if name not in TOTAL_ENERGIES and len(numbers) == len(values):
            shared[name] = {"values": values, "spread": max(numbers) - min(numbers)}
    return shared


def _single_points(
    context: Context, atoms: Atoms, answered: Sequence[tuple[dict[str, Any], dict[str, Any]]], parameters: dict[str, Any]
) -> dict[str, Any]:
    """The comparison that POST /multi_model makes of single points."""
    outcomes = []
    for entry, outcome in answered:
        result = outcome["result"]
        # The correction of an atom alone is zero, so these need none.
        isolated = _isolated_atoms(context.forces(entry["model"], entry["head"], "none"), atoms) if parameters["align"] else {}
        functional = result["provenance"].get("functional") or ""
        outcomes.append(
            merge.Outcome(entry["name"], functional, result["energy"], _array(result["forces"]), _array(result["stress"]), isolated)
        )
    context.progress(Step("comparison", len(outcomes), len(outcomes)))
    outside = {model: [int(number) for number in numbers] for model, numbers in parameters["outside"].items()}
    return merge.compare(atoms.numbers, outcomes, outside)


def _isolated_atoms(forces: Forces, atoms: Atoms) -> dict[int, float]:
    """Energy in eV of each element's atom alone, by atomic number; without those that the model cannot evaluate."""
    energies = {}
    for number in np.unique(atoms.numbers):
        try:
            energies[int(number)] = forces.evaluate([Atoms(numbers=[number])])[0].energy
        except ForcegateError as error:
            if error.retryable:
                raise
    return energies


def _array(values: Any) -> np.ndarray | None:
    return None if values is None else np.array(values)


KIND = MultiModelKind("multi-model", "One calculation with several models, side by side.", MultiModel)
