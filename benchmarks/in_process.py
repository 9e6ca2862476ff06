"""What the service is compared with: the same structures, evaluated in a family's environment without any server.

``<environment>/bin/python -m benchmarks.in_process MODEL`` reads one command in JSON from each line of standard input and
answers it in JSON on standard output. It is started with the variables that model processes are started with (threads, memory
allocator), and lives through all rounds, so that served and in-process runs can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import calculators, structures
from forcefields import catalogue
from forcefields.runtime import loading, physics
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.settings import ModelSettings, keep_out_of_home
from forcegate.errors import ForcegateError
from forcegate.structure import Structure, from_atoms

CALL = 32
"""Structures in one call of the engine: what 32 clients have in flight."""


class Worker:
    """One loaded model."""

    def __init__(self, name: str) -> None:
        settings = ModelSettings.from_environment()
        keep_out_of_home(settings.state)
        families = catalogue.load()
        self._variant = families.resolve(name)
        self._checkpoint = checkpoint_of(self._variant, settings.state)
        device = "cuda:0" if calculators.device() == "cuda" else "cpu"
        loaded = loading.load(families, self._variant, self._checkpoint, device)
        limits = loading.limits(self._variant, settings.max_atoms, settings.memory_gb)
        self._engine = Engine(loaded, self._variant, limits)
        self._calculator: Any = None

    def engine(self, atoms: int, count: int) -> float:
        """Seconds for ``count`` structures through the runtime, ``CALL`` at a time: checks, graphs, packing, evaluation."""
        given = self._structures(atoms, count)
        started = time.perf_counter()
        for first in range(0, count, CALL):
            for job in self._engine.evaluate(given[first : first + CALL]):
                if job.error is not None:
                    raise job.error
        return time.perf_counter() - started

    def bare(self, atoms: int, count: int, pack: int) -> float:
        """Seconds for the same through the adapter alone, ``pack`` structures in each forward pass: graphs and evaluation."""
        force_field = self._engine.force_field
        head = self._variant.default_head
        given = [physics.normalise(structure, force_field.cutoff) for structure in self._structures(atoms, count)]
        started = time.perf_counter()
        for first in range(0, count, pack):
            graphs = [force_field.graph(structure, head) for structure in given[first : first + pack]]
            force_field.evaluate(graphs, DEFAULT_OUTPUTS)
        return time.perf_counter() - started

    def calculator(self, atoms: int, count: int) -> float:
        """Seconds for the same through the package's own ASE calculator, one by one, each in new ``Atoms``."""
        if self._calculator is None:
            self._calculator = calculators.calculator(self._variant, self._checkpoint)
        given = structures.crystals(self._variant, atoms, count)
        started = time.perf_counter()
        for each in given:
            each.calc = self._calculator
            each.get_potential_energy()
            each.get_forces()
            if calculators.gives_stress(self._variant):
                each.get_stress()
        return time.perf_counter() - started

    def single(self, atoms: int, calls: int) -> list[float]:
        """Seconds of each of ``calls`` evaluations of one structure through the runtime."""
        [given] = self._structures(atoms, 1)
        latencies = []
        for _ in range(calls):
            started = time.perf_counter()
            [job] = self._engine.evaluate([given])
            latencies.append(time.perf_counter() - started)
            if job.error is not None:
                raise job.error
        return latencies

    def evaluate(self, structures: list[dict[str, Any]]) -> dict[str, Any]:
        """Seconds for structures that are given, all in one call of the runtime, and the answer to each."""
        given = [
            Structure(np.array(each["numbers"], np.int32), *(np.array(each[name]) for name in ("positions", "cell", "pbc")))
            for each in structures
        ]
        started = time.perf_counter()
        jobs = self._engine.evaluate(given)
        seconds = time.perf_counter() - started
        answers = []
        for job in jobs:
            if job.error is not None:
                raise job.error
            result = job.result
            assert result is not None
            assert result.forces is not None
            stress = None if result.stress is None else result.stress.tolist()
            answers.append({"energy": float(result.energy), "forces": result.forces.tolist(), "stress": stress})
        return {"seconds": seconds, "answers": answers}

    def _structures(self, atoms: int, count: int) -> list[Structure]:
        return [from_atoms(each) for each in structures.crystals(self._variant, atoms, count)]


def checkpoint_of(variant: catalogue.Variant, state: Path) -> Path:
    """Where the service has the checkpoint: in the repository, or in the state folder where its hash was recorded there."""
    places = [
        folder / variant.name / "1" / variant.checkpoint.file for folder in (Path("model_repository"), state / "model_repository")
    ]
    return next((path for path in places if path.exists()), places[0])


def main() -> None:
    """Answers commands until standard input ends."""
    # Packages print to standard output, which carries the answers here.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(sys.argv[1])
    commands: dict[str, Callable[..., Any]] = {
        "engine": worker.engine,
        "bare": worker.bare,
        "calculator": worker.calculator,
        "single": worker.single,
        "evaluate": worker.evaluate,
    }
    answers.write(json.dumps({"ready": sys.argv[1]}) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"value": commands[command.pop("do")](**command)}
        except ForcegateError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
