"""``environments/peer-torch-sim/bin/python -m benchmarks.peers.torch_sim_mace MODEL``: torch-sim's batched MACE, in process.

0.3.0 is the last version of torch-sim for Python 3.11. One command in JSON on each line of standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout

import torch

with redirect_stdout(sys.stderr):
    import torch_sim
    from torch_sim.models.mace import MaceModel

from benchmarks import calculators, structures
from benchmarks.in_process import checkpoint_of
from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def run(model: MaceModel, variant: Variant, atoms: int, count: int, pack: int) -> float:
    """Seconds for ``count`` structures, ``pack`` in each forward pass; energy, forces and stress."""
    given = structures.crystals(variant, atoms, count)
    device, dtype = torch.device(calculators.device()), getattr(torch, variant.dtype)
    started = time.perf_counter()
    for first in range(0, count, pack):
        state = torch_sim.initialize_state(given[first : first + pack], device=device, dtype=dtype)
        model(state)["forces"].cpu()
    return time.perf_counter() - started


def main() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings = ModelSettings.from_environment()
    keep_out_of_home(settings.state)
    variant = catalogue.load().resolve(sys.argv[1])
    device = torch.device(calculators.device())
    # A pickle, whose hash the service has verified before.
    checkpoint = torch.load(checkpoint_of(variant, settings.state), map_location=device, weights_only=False)
    model = MaceModel(checkpoint, device=device, dtype=getattr(torch, variant.dtype))
    answers.write(json.dumps({"ready": variant.name}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps({"value": run(model, variant, **json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()
