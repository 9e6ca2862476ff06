"""ASE's integrators, with their state as plain arrays. The one place that knows their attributes (ASE 3.29).

- ``nve``: velocity Verlet.
- ``nvt``: Langevin (Vanden-Eijnden and Ciccotti, Chem. Phys. Lett. 429, 310 (2006)), the centre of mass included.
- ``npt``: Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), with the volume or the whole cell as a variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from ase.units import bar, fs

ENSEMBLES = ("nve", "nvt", "npt")

_OWN = ("_q", "_p", "_eps", "_p_eps", "_cell0", "_volume0", "_h", "_p_g")
_THERMOSTAT = ("_eta", "_p_eta")
_BAROSTAT = ("_xi", "_p_xi")


@dataclass(frozen=True)
class Bath:
    """Temperature in K, timestep and damping times in fs, friction in 1/fs, pressure in bar."""

    temperature: float
    timestep: float
    friction: float
    pressure: float
    thermostat_time: float
    barostat_time: float
    flexible_cell: bool


def integrator_of(ensemble: str, atoms: Atoms, bath: Bath, rng: np.random.Generator) -> MolecularDynamics:
    """A new integrator for ``atoms``, which have momenta."""
    if ensemble == "nve":
        return VelocityVerlet(atoms, bath.timestep * fs)
    if ensemble == "nvt":
        # With fixcm ASE samples another distribution in small cells; drift is taken off where displacements are measured.
        return Langevin(
            atoms, bath.timestep * fs, temperature_K=bath.temperature, friction=bath.friction / fs, fixcm=False, rng=rng
        )
    kind = MTKNPT if bath.flexible_cell else IsotropicMTKNPT
    return kind(
        atoms,
        bath.timestep * fs,
        temperature_K=bath.temperature,
        pressure_au=bath.pressure * bar,
        tdamp=bath.thermostat_time * fs,
        pdamp=bath.barostat_time * fs,
    )


def conserved_energy(dynamics: MolecularDynamics) -> float | None:
    """What the equations of motion conserve, eV: total energy (NVE), extended energy (MTK), or None (Langevin)."""
    atoms = dynamics.atoms
    total = float(atoms.get_potential_energy() + atoms.get_kinetic_energy())
    if isinstance(dynamics, VelocityVerlet):
        return total
    if isinstance(dynamics, IsotropicMTKNPT):
        cell = dynamics._p_eps**2 / (2 * dynamics._barostat.W)
    elif isinstance(dynamics, MTKNPT):
        cell = dynamics._get_cell_kinetic_energy()
    else:
        return None
    baths = dynamics._thermostat.get_thermostat_energy() + dynamics._barostat.get_barostat_energy()
    return float(total + baths + cell + dynamics._pressure_au * dynamics._get_volume())


def captured(dynamics: MolecularDynamics) -> dict[str, np.ndarray]:
    """What the integrator knows beyond the atoms: thermostat, barostat and their momenta."""
    return {name: np.array(getattr(owner, attribute)) for name, owner, attribute in _attributes(dynamics)}


def restored(dynamics: MolecularDynamics, arrays: dict[str, np.ndarray]) -> None:
    """Gives a new integrator what ``captured`` took from another one of the same ensemble."""
    for name, owner, attribute in _attributes(dynamics):
        value = arrays[name]
        setattr(owner, attribute, float(value) if value.ndim == 0 else value.copy())


def random_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of the random numbers as JSON has it."""
    return dict(rng.bit_generator.state)


def random_numbers(state: dict[str, Any]) -> np.random.Generator:
    """Random numbers that go on from ``state``."""
    rng = np.random.default_rng(0)
    rng.bit_generator.state = state
    return rng


def _attributes(dynamics: MolecularDynamics) -> list[tuple[str, Any, str]]:
    if not isinstance(dynamics, IsotropicMTKNPT | MTKNPT):
        return []
    owners = ((dynamics, _OWN), (dynamics._thermostat, _THERMOSTAT), (dynamics._barostat, _BAROSTAT))
    return [(f"bath{name}", owner, name) for owner, names in owners for name in names if hasattr(owner, name)]
