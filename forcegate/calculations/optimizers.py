"""ASE's optimizers, with their state as plain arrays. The one place that knows their attributes (ASE 3.29)."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase._4.optimize.bfgs import BFGSMethod
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"BFGS": BFGS, "LBFGS": LBFGS, "FIRE": FIRE}
FILTERS = {"frechet": FrechetCellFilter, "unit_cell": UnitCellFilter}


def optimizer_of(name: str, atoms: Atoms, cell_filter: str, pressure: float) -> tuple[Optimizer, Any]:
    """A new optimizer for ``atoms`` and, where the cell is variable, its filter.

    Args:
        pressure: eV/A^3.
    """
    target = atoms if cell_filter == "none" else FILTERS[cell_filter](atoms, scalar_pressure=pressure)
    return OPTIMIZERS[name](target, logfile=None), None if target is atoms else target


def captured(optimizer: Optimizer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the optimizer remembers of its way: arrays and plain values."""
    if isinstance(optimizer, BFGS):
        hessian = None if optimizer.state is None else optimizer.state.hessian
        return _present(hessian=hessian, pos0=optimizer.pos0, forces0=optimizer.forces0), {}
    if isinstance(optimizer, LBFGS):
        memory = optimizer.state
        arrays = _present(
            s=np.array(memory.s) if memory.s else None,
            y=np.array(memory.y) if memory.y else None,
            rho=np.array(memory.rho) if memory.rho else None,
            r0=optimizer.r0,
            f0=optimizer.f0,
        )
        return arrays, {"iteration": memory.iteration}
    assert isinstance(optimizer, FIRE)
    return _present(vel=optimizer.vel), {"dt": optimizer.dt, "a": optimizer.a, "Nsteps": optimizer.Nsteps}


def restored(optimizer: Optimizer, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    """Gives a new optimizer what ``captured`` took from another one."""
    if isinstance(optimizer, BFGS):
        if "hessian" in arrays:
            optimizer.state = BFGSMethod(arrays["hessian"].copy())  # type: ignore[assignment]
            optimizer.pos0, optimizer.forces0 = arrays["pos0"].copy(), arrays["forces0"].copy()
    elif isinstance(optimizer, LBFGS):
        memory = optimizer.state
        memory.iteration = values["iteration"]
        for name in ("s", "y", "rho"):
            setattr(memory, name, list(arrays[name]) if name in arrays else [])
        optimizer.r0, optimizer.f0 = arrays.get("r0"), arrays.get("f0")
    else:
        assert isinstance(optimizer, FIRE)
        optimizer.vel = arrays["vel"].copy() if "vel" in arrays else None
        optimizer.dt, optimizer.a, optimizer.Nsteps = values["dt"], values["a"], values["Nsteps"]


def _present(**arrays: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in arrays.items() if array is not None}
