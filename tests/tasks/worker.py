"""A worker with the kinds of tasks of the tests: real calculations on ASE's own force fields, which need no server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from forcegate import jsonlog
from forcegate.calculations.elasticity import ElasticityParameters, elasticity
from forcegate.calculations.optimization import OptimizationParameters, optimization
from forcegate.calculations.progress import Step
from forcegate.calculations.stability import StabilityParameters, stability
from forcegate.calculations.states import Within
from forcegate.errors import InvalidStructure, ServerUnavailable
from frontend import settings
from frontend.tasks import worker
from frontend.tasks.context import Context

ARGON = {"sigma": 3.4, "epsilon": 0.0104, "rc": 8.5, "smooth": True}


@dataclass(frozen=True)
class Calculation:
    """A kind of task from a function."""

    function: Callable[[dict[str, Any], Context], dict[str, Any]]

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        """Carries it out."""
        return self.function(parameters, context)


def relax(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """Relaxes rattled copper with EMT. ``pause`` s between steps stand for a dearer model."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.2, seed=parameters.get("seed", 1))

    def progress(step: Step) -> None:
        context.progress(step)
        time.sleep(parameters.get("pause", 0.0))

    answer = optimization(
        EMT(),
        atoms,
        OptimizationParameters(fmax=1e-4, optimizer=parameters.get("optimizer", "FIRE"), fix_cell=True),
        progress,
        checkpoint=context.checkpoint("relaxation"),
        resume=context.state("relaxation"),
    )
    return {"energy": answer.final_energy, "steps": answer.steps, "trajectory": len(answer.trajectory)}


def dynamics(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """NVE of solid argon."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)
    trajectory = context.folder / "trajectory.extxyz"

    def progress(step: Step) -> None:
        context.progress(step)
        time.sleep(parameters.get("pause", 0.0))

    answer = stability(
        LennardJones(**ARGON),
        atoms,
        StabilityParameters(**parameters["dynamics"]),
        progress,
        checkpoint=context.checkpoint("dynamics"),
        resume=context.state("dynamics"),
    )
    trajectory.write_text("written by the calculation\n")
    return answer.as_dict()


def count(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """Steps with a line each in a file that outlives the worker, so that a test sees who made which."""
    diary = Path(parameters["diary"]) if "diary" in parameters else None
    for number in range(parameters.get("steps", 1)):
        context.progress(Step("count", number, energy=float(number)))
        if diary is not None:
            with diary.open("a") as file:
                file.write(f"{os.getpid()} {number} {time.time()}\n")
        time.sleep(parameters.get("pause", 0.0))
    return {"steps": parameters.get("steps", 1)}


class Counted(EMT):
    """EMT that notes each evaluation in a file that outlives the worker; ``pause`` s stand for a dearer model."""

    def __init__(self, diary: Path, pause: float) -> None:
        super().__init__()
        self._diary, self._pause = diary, pause

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """One evaluation."""
        super().calculate(*arguments, **options)
        with self._diary.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self._pause)


def stiffness(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """Elastic constants of rattled copper: a relaxation, then one for each strain."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    calculator = Counted(Path(parameters["diary"]), parameters.get("pause", 0.0))
    answer = elasticity(calculator, atoms, ElasticityParameters(num_strains=1), context.progress, Within(context, "whole"))
    return {"bulk_modulus": answer.bulk_modulus_vrh}


def parts(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """Several parts, each with a line in a file when it is worked out rather than found."""
    diary = Path(parameters["diary"])
    for number in range(parameters["parts"]):
        if context.kept(f"part {number}") is None:
            time.sleep(parameters.get("pause", 0.0))
            context.progress(Step("parts", number))
            with diary.open("a") as file:
                file.write(f"{number}\n")
            context.keep(f"part {number}", {"number": number})
    return {"parts": [context.kept(f"part {number}") for number in range(parameters["parts"])]}


def fail(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """Fails with a typed error, or with one that nobody thought of, as long as ``gate`` does not exist."""
    context.log("about to fail")
    if (gate := parameters.get("gate")) and Path(gate).exists():
        return {"done": True}
    if parameters.get("how") == "absent":
        raise ServerUnavailable("Triton does not answer.")
    if parameters.get("how") == "unforeseen":
        raise ZeroDivisionError("a mistake in the calculation")
    raise InvalidStructure("There is an atom too many.")


def hang(parameters: dict[str, Any], context: Context) -> dict[str, Any]:
    """A force call that does not come back for long, and tells of no step."""
    context.progress(Step("hang", 0))
    time.sleep(parameters["seconds"])
    context.progress(Step("hang", 1))
    return {}


KINDS = {
    name: Calculation(function)
    for name, function in (
        ("relax", relax),
        ("dynamics", dynamics),
        ("count", count),
        ("parts", parts),
        ("stiffness", stiffness),
        ("fail", fail),
        ("hang", hang),
    )
}


def main() -> NoReturn:
    """The worker, until it is told to stop."""
    values = settings.load()
    jsonlog.configure(values.log_level, process="worker")
    worker.run(values, KINDS)
    os._exit(0)


def begin(variables: dict[str, str], log: Path) -> NoReturn:
    """The same in a process that was forked for it: with these environment variables alone, and its output in ``log``."""
    os.environ.clear()
    os.environ.update(variables)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    main()


if __name__ == "__main__":
    main()
