"""MatterSim checkpoints of the real architecture, a tiny one and one in real size, with random weights from a fixed seed."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

import torch

with redirect_stdout(stderr):
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
    from mattersim.forcefield.potential import Potential


SIZES = {"m3gnet": {"num_blocks": 2, "units": 16}, "m3gnet-1m": {"num_blocks": 3, "units": 128}}
"""Of a tiny model, and of MatterSim-v1.0.0-1M: 890,034 parameters, where the paper counts 880 thousand."""


def make(kind: str, path: Path) -> None:
    """Saves a checkpoint of one of ``SIZES`` through the package's own ``Potential.save``."""
    torch.manual_seed(20240101)
    model = M3Gnet(**SIZES[kind], max_l=4, max_n=4, cutoff=5.0, threebody_cutoff=4.0, device="cpu")
    generator = torch.Generator().manual_seed(7)
    # Otherwise forces are about 0.01 eV/A and energies about 0 for every element: no test would see anything.
    model.normalizer.scale.fill_(50.0)
    model.normalizer.shift.copy_(-6.0 * torch.rand(model.max_z + 1, generator=generator))
    # By a name without folders, the package would make the folder "".
    Potential(model, device="cpu").save(str(path.resolve()))
