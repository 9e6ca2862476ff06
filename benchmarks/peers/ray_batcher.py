"""``environments/peer-ray/bin/python -m benchmarks.peers.ray_batcher MODEL WAIT CLIENTS``: fairchem's InferenceBatcher on Ray.

Its clients are threads that run ASE calculators over the served predict unit, as the package's own examples do. One command in JSON
on each line of standard input, one answer on each line of output.

``WAIT`` is the time in seconds that the batcher waits for a batch, or ``default``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from ase import Atoms
from fairchem.core import FAIRChemCalculator
from fairchem.core.calculate._batch import InferenceBatcher
from fairchem.core.units.mlip_unit import load_predict_unit

from benchmarks import calculators, structures
from benchmarks.in_process import checkpoint_of
from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def run(batcher: InferenceBatcher, variant: Variant, atoms: int, count: int) -> dict[str, Any]:
    """Seconds for ``count`` structures, all of them submitted to the batcher's own threads at once, and of each."""
    task = variant.default_head or "omol"
    stress = calculators.gives_stress(variant)

    def one(structure: Atoms) -> float:
        began = time.perf_counter()
        structure.calc = FAIRChemCalculator(batcher.batch_predict_unit, task_name=task)
        structure.get_potential_energy()
        structure.get_forces()
        if stress:
            structure.get_stress()
        return time.perf_counter() - began

    given = structures.crystals(variant, atoms, count)
    started = time.perf_counter()
    latencies = list(batcher.executor.map(one, given))
    return {"seconds": time.perf_counter() - started, "latencies": latencies}


def main() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = ModelSettings.from_environment()
    keep_out_of_home(settings.state)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    model, wait, clients = sys.argv[1:]
    variant = catalogue.load().resolve(model)
    unit = load_predict_unit(checkpoint_of(variant, settings.state), inference_settings="batch", device=calculators.device())
    chosen = {} if wait == "default" else {"batch_wait_timeout_s": float(wait)}
    # One core for the evaluation, as Forcegate's model process has in these benchmarks.
    options = {"ray_actor_options": {"num_cpus": 1}, "concurrency_backend_options": {"max_workers": int(clients)}}
    with InferenceBatcher(unit, **options, **chosen) as batcher:
        answers.write(json.dumps({"ready": model}) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps({"value": run(batcher, variant, **json.loads(line))}) + "\n")
        batcher.shutdown(shutdown_ray=True)


if __name__ == "__main__":
    main()
