"""``batch``: one calculation for many structures; one that fails, fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ase.calculators.calculator import BaseCalculator
from pydantic import Field

from forcegate.calculations.forces import Forces, side_by_side
from forcegate.calculations.progress import Progress
from forcegate.errors import ForcegateError
from frontend.tasks.kinds import in_step
from frontend.tasks.kinds.calculations import CALCULATIONS
from frontend.tasks.kinds.job import Job, Level, provenance
from frontend.tasks.kinds.kind import Calculation, Kind, atoms_of
from frontend.tasks.kinds.optimization import Optimization
from frontend.tasks.kinds.single_point import SinglePoint

if TYPE_CHECKING:
    from frontend.tasks.context import Context


class Batch(SinglePoint):
    """Which calculation, and its parameters. Those of `single_point` may stand beside `task`, as in a batch of them."""

    task: str = Field("single_point", max_length=40, description="The calculation, such as `optimization` or `bulk_modulus`.")
    task_params: dict[str, Any] | None = Field(None, description="Its parameters, as in a request for one structure.")


class BatchKind(Kind):
    """Carries out batches."""

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        kind = CALCULATIONS[parameters["task"]]
        level = Level(parameters["model"], parameters["head"], parameters["dispersion"])
        asked = kind.parameters.model_validate(parameters["parameters"])
        forces = context.forces(level.model, level.head, level.dispersion)
        entries: list[dict[str, Any]] = parameters["structures"]
        outcomes: dict[int | None, dict[str, Any]] = {
            index: {"error": entry["error"]} for index, entry in enumerate(entries) if "error" in entry
        }
        jobs = [
            Job(context, level, atoms_of(entry["atoms"]), asked, f"structure-{index}", index, source=forces)
            for index, entry in enumerate(entries)
            if "error" not in entry
        ]
        outcomes |= _kept(jobs)
        left = [job for job in jobs if job.number not in outcomes]
        if isinstance(asked, Optimization) and in_step.possible(asked):
            outcomes |= in_step.relax(forces, left)
        else:
            outcomes |= _side_by_side(kind, forces, left)
        results = [{"index": index, **outcomes[index]} for index in range(len(entries))]
        # `error` of an energy against a reference is a number, or null.
        failed = sum(isinstance(result.get("error"), Mapping) for result in results)
        return {
            "task": parameters["task"].replace("-", "_"),
            "count": len(results),
            "succeeded": len(results) - failed,
            "failed": failed,
            "results": results,
            "model_name": level.model,
            "provenance": provenance(forces),
        }


def _kept(jobs: Sequence[Job]) -> dict[int | None, dict[str, Any]]:
    """What former attempts have finished, by number."""
    return {job.number: kept for job in jobs if (kept := job.context.kept(job.part)) is not None}


def _side_by_side(kind: Calculation, forces: Forces, jobs: Sequence[Job]) -> dict[int | None, dict[str, Any]]:
    """Each job in a thread; their evaluations meet in the model's batches."""

    def work(_calculator: BaseCalculator, job: Job, _number: int, report: Progress) -> dict[str, Any]:
        try:
            outcome = without_origin(kind.carry_out(replace(job, report=report)))
        except ForcegateError as error:
            outcome = {"error": error.as_dict()}
            if error.retryable:  # another attempt at the task may have more luck
                return outcome
        job.context.keep(job.part, outcome)
        return outcome

    outcomes = side_by_side(forces, jobs, work, lambda step: jobs[0].context.progress(step)) if jobs else []
    return {job.number: outcome for job, outcome in zip(jobs, outcomes, strict=True)}


def without_origin(result: Mapping[str, Any]) -> dict[str, Any]:
    """``result`` without what is said once for the whole batch."""
    return {name: value for name, value in result.items() if name not in ("model_name", "provenance")}


KIND = BatchKind("batch", "One calculation for many structures.", Batch)
