"""Bad parameters are refused with a sentence, before anything is computed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forcegate import errors
from forcegate.calculations.bulk_modulus import BulkModulusParameters
from forcegate.calculations.elasticity import ElasticityParameters
from forcegate.calculations.forces import OneByOne, forces_of, side_by_side
from forcegate.calculations.heat_capacity import HeatCapacityParameters
from forcegate.calculations.interaction_energy import InteractionEnergyParameters
from forcegate.calculations.optimization import OptimizationParameters, optimization
from forcegate.calculations.parameters import Parameters
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.stability import StabilityParameters
from tests.unit.calculations.potentials import fcc, lennard_jones


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (OptimizationParameters, {"fmax": 0}),
        (OptimizationParameters, {"fmax": "0.05"}),
        (OptimizationParameters, {"fmax": float("nan")}),
        (OptimizationParameters, {"max_steps": 1.5}),
        (OptimizationParameters, {"max_steps": True}),
        (OptimizationParameters, {"optimizer": "bfgs2"}),
        (OptimizationParameters, {"fix_cell": 1}),
        (OptimizationParameters, {"fmaks": 0.1}),
        (StabilityParameters, {"temperature": 0}),
        (StabilityParameters, {"ensemble": "npT"}),
        (StabilityParameters, {"pressure": 1.0, "ensemble": "nve"}),
        (BulkModulusParameters, {"num_points": 4}),
        (BulkModulusParameters, {"eos": "cubic"}),
        (ElasticityParameters, {"strain": 0.5}),
        (HeatCapacityParameters, {"temperatures": []}),
        (HeatCapacityParameters, {"temperatures": [-1]}),
        (HeatCapacityParameters, {"supercell": [2, 2]}),
        (HeatCapacityParameters, {"supercell": [2, 2, 0]}),
        (InteractionEnergyParameters, {"guest": "SF6"}),
        (InteractionEnergyParameters, {"positions": [[0, 0, 0]]}),
        (InteractionEnergyParameters, {"positions": [[0, 0]], "placement": "given"}),
        (InteractionEnergyParameters, {"relax_host": True}),
    ],
)
def test_bad_parameters(kind: type[Parameters], values: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        kind.from_mapping(values)
    assert next(iter(values)) in str(caught.value) or caught.value.hint


def test_lists_of_a_request_are_taken() -> None:
    assert HeatCapacityParameters.from_mapping({"temperatures": [1.0], "supercell": [1, 2, 3]}).supercell == (1, 2, 3)


def test_answers_are_json() -> None:
    answer = optimization(lennard_jones(), fcc(5.3)).as_dict()
    again = json.loads(json.dumps(answer, allow_nan=False))
    assert again["final_atoms"] == again["optimized_atoms"]
    assert again["final_atoms"]["symbols"] == ["Ar"] * 4
    assert {"converged", "steps", "initial_energy", "final_energy", "energy_change", "final_forces_max", "trajectory"} <= set(again)


def test_something_that_is_no_calculator_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="no source of forces"):
        forces_of("lj-argon")  # type: ignore[arg-type]


class Side(OneByOne):
    parallel = 4

    def calculator(self):  # type: ignore[no-untyped-def]
        return lennard_jones()


def test_relaxations_side_by_side_end_together_when_one_is_cancelled() -> None:
    class Cancelled(Exception):
        pass

    started: set[int] = set()

    def cancel(step: Step) -> None:
        started.add(step.part or 0)
        if len(started) == 4:
            raise Cancelled

    def relax(calculator: Any, job: int, part: int, progress: Progress) -> Any:
        start = fcc(5.3, repeat=2)
        start.rattle(0.1, seed=job)
        return optimization(calculator, start, OptimizationParameters(fmax=1e-9, max_steps=100_000), progress, part=part)

    with pytest.raises(Cancelled):
        side_by_side(Side(lennard_jones()), range(4), relax, cancel)


def test_relaxations_side_by_side_answer_in_order() -> None:
    def relax(calculator: Any, a: float, part: int, progress: Progress) -> float:
        return optimization(calculator, fcc(a), OptimizationParameters(fix_cell=True), progress, part=part).final_volume or 0

    lengths = [5.0, 5.1, 5.2, 5.3, 5.4]
    assert side_by_side(Side(lennard_jones()), lengths, relax, ignore) == pytest.approx([a**3 for a in lengths])
