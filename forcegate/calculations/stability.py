"""Does a structure hold together at a temperature and a pressure? Molecular dynamics with criteria that are spelled out."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.units import kB

from forcegate import errors
from forcegate.calculations import geometry
from forcegate.calculations.answers import Answer
from forcegate.calculations.dynamics import (
    ENSEMBLES,
    Bath,
    captured,
    conserved_energy,
    integrator_of,
    random_numbers,
    random_state,
    restored,
)
from forcegate.calculations.forces import Forces, calculator_of
from forcegate.calculations.parameters import Parameters, flag, integer, number, one_of
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.sampling import Criterion, Samples, criteria
from forcegate.calculations.states import Checkpoint, State

KIND = "stability"

FASTEST = 0.5
"""A in one step: an atom that moves further flies, whatever the temperature."""

BLOW_UPS = (errors.NonFiniteResult, errors.CoincidentAtoms, errors.NonFiniteInput, errors.InvalidCell, FloatingPointError)
"""What a model or the arithmetic says of atoms that have flown apart or into each other."""


@dataclass(frozen=True)
class StabilityParameters(Parameters):
    """How to run and what to call stable.

    Attributes:
        temperature: K.
        pressure: bar. Where it is given the production is NPT; where it is not, ``ensemble`` decides, and NPT is at 0 bar.
        ensemble: ``nvt``, ``npt`` or ``nve`` for the production; None for ``npt`` with a pressure and ``nvt`` without.
        timestep: fs.
        equilibration_steps: Langevin at constant volume.
        production_steps: steps after that.
        sample_interval: steps between samples (frames).
        friction: of Langevin, 1/fs.
        thermostat_time, barostat_time: damping times of NPT in fs; None for 100 and 1000 timesteps.
        flexible_cell: NPT with the shape of the cell as a variable, not only the volume.
        discard: share of the production at its start that is left out of averages: the volume settles in it.
        seed: of the random numbers; None draws one, which the answer states.
        max_rmsd: A, over which the structure is not called stable.
        max_coordination_change: share of the mean coordination number.
        max_volume_change: per cent, in NPT.
        max_energy_drift: meV/atom/ps, of what NVE and NPT conserve.
    """

    temperature: float = 300.0
    pressure: float | None = None
    ensemble: str | None = None
    timestep: float = 1.0
    equilibration_steps: int = 1000
    production_steps: int = 5000
    sample_interval: int = 10
    friction: float = 0.01
    thermostat_time: float | None = None
    barostat_time: float | None = None
    flexible_cell: bool = False
    discard: float = 0.2
    seed: int | None = None
    max_rmsd: float = 1.0
    max_coordination_change: float = 0.1
    max_volume_change: float = 10.0
    max_energy_drift: float = 10.0

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 0, 100_000, above=0)
        if self.pressure is not None:
            number("pressure", self.pressure, -1e7, 1e7)
        one_of("ensemble", self.ensemble, (None, *ENSEMBLES))
        if self.pressure is not None and self.ensemble not in (None, "npt"):
            raise errors.InvalidRequest(
                f"A pressure of {self.pressure} bar would have no effect in {self.ensemble}: its volume is constant.",
                'Leave the pressure out, or ask for "npt".',
            )
        number("timestep", self.timestep, 0, 20, above=0)
        integer("equilibration_steps", self.equilibration_steps, 0, 10**8)
        integer("production_steps", self.production_steps, 1, 10**8)
        integer("sample_interval", self.sample_interval, 1, 10**6)
        number("friction", self.friction, 0, 1, above=0)
        for name in ("thermostat_time", "barostat_time"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        flag("flexible_cell", self.flexible_cell)
        number("discard", self.discard, 0, 0.9)
        if self.seed is not None:
            integer("seed", self.seed, 0, 2**63)
        for name in ("max_rmsd", "max_coordination_change", "max_volume_change", "max_energy_drift"):
            number(name, getattr(self, name), above=0)

    @property
    def production_ensemble(self) -> str:
        """``nve``, ``nvt`` or ``npt``."""
        return self.ensemble or ("nvt" if self.pressure is None else "npt")

    @property
    def bath(self) -> Bath:
        """What the integrators need."""
        return Bath(
            temperature=self.temperature,
            timestep=self.timestep,
            friction=self.friction,
            pressure=self.pressure or 0.0,
            thermostat_time=self.thermostat_time or 100 * self.timestep,
            barostat_time=self.barostat_time or 1000 * self.timestep,
            flexible_cell=self.flexible_cell,
        )


@dataclass(frozen=True)
class StabilityAnswer(Answer):
    """What the dynamics showed. Averages are over the production without its first share ``discard``.

    Attributes:
        is_stable: every criterion holds.
        criteria: name, value, limit, unit and outcome of each.
        blow_up: why the run was ended early, or None.
        ensemble: of the production.
        mean_energy, energy_std: potential energy, eV.
        mean_temperature, temperature_error: K; errors are standard errors of the mean by blocks.
        mean_pressure, pressure_error: bar, with the kinetic part; ``mean_pressure_GPa`` is the same in GPa. None unless periodic in
            all three directions.
        mean_volume: A^3, or None.
        volume_change_percent: of the mean volume from that of the start.
        rmsd: A, mean over the samples, from the start, without drift and strain; ``final_rmsd`` that of the last sample.
        max_displacement: A, of any atom in any sample of the production, atoms never wrapped.
        coordination_start, coordination_mean: mean number of neighbours.
        coordination_change: mean change of an atom's number of neighbours, as a share of ``coordination_start``.
        energy_drift: meV/atom/ps, slope of ``drift_of`` against time; ``energy_drift_error`` is its standard error.
        drift_of: ``total energy`` (NVE), ``extended energy`` (NPT), ``potential energy`` (NVT, which conserves nothing).
        equilibration_steps, production_steps: that were made.
        discarded_steps: of the production, that are in no average.
        time_ps: of the production.
        trajectory_length: samples of the production.
        seed: of the random numbers.
        final_atoms: structure with momenta at the end.
        series: the samples of the production by name: time (ps), energy (eV), temperature (K), pressure (bar), volume (A^3),
            rmsd (A), max_displacement (A), coordination, conserved (eV).
    """

    is_stable: bool
    criteria: tuple[Criterion, ...]
    blow_up: str | None
    ensemble: str
    mean_energy: float
    energy_std: float
    mean_temperature: float
    temperature_error: float
    mean_pressure: float | None
    pressure_error: float | None
    mean_pressure_GPa: float | None
    mean_volume: float | None
    volume_change_percent: float | None
    rmsd: float
    final_rmsd: float
    max_displacement: float
    coordination_start: float
    coordination_mean: float
    coordination_change: float
    energy_drift: float
    energy_drift_error: float
    drift_of: str
    equilibration_steps: int
    production_steps: int
    discarded_steps: int
    time_ps: float
    trajectory_length: int
    seed: int
    final_atoms: Atoms
    series: dict[str, np.ndarray]


def stability(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: StabilityParameters | None = None,
    progress: Progress = ignore,
    *,
    checkpoint: Checkpoint | None = None,
    resume: State | None = None,
) -> StabilityAnswer:
    """Runs dynamics from ``atoms``, which are not changed: equilibration at constant volume, then the production.

    A run that blows up is ended at once; that is an answer (``blow_up``), not an error.

    Args:
        checkpoint: called at every step; see ``states.Checkpoint``.
        resume: a state that this function handed out for the same ``atoms`` and parameters.

    Raises:
        InvalidRequest: the parameters do not fit the structure.
    """
    parameters = parameters or StabilityParameters()
    _check(atoms, parameters)
    run = _Run(calculator_of(source), atoms, parameters, progress)
    if resume is not None:
        run.restore(resume)
    run.begin()
    while run.blow_up is None and run.step < run.steps:
        if checkpoint is not None:
            checkpoint(run.state)
        run.advance()
    return run.answer()


def _check(atoms: Atoms, parameters: StabilityParameters) -> None:
    if len(atoms) == 0:
        raise errors.EmptyStructure("The structure has no atoms.")
    if parameters.production_ensemble != "npt":
        return
    if not atoms.pbc.all():
        raise errors.InvalidRequest(
            f"NPT needs a structure that is periodic in all three directions; this one has pbc={atoms.pbc.tolist()}.",
            'Ask for "nvt", without a pressure.',
        )
    if atoms.constraints:
        raise errors.InvalidRequest("NPT cannot keep constraints.", 'Remove them, or ask for "nvt".')


class _Run:
    """One run of dynamics at work: ``step`` counts from the start of the equilibration."""

    def __init__(self, calculator: BaseCalculator, start: Atoms, parameters: StabilityParameters, progress: Progress) -> None:
        self.start, self.parameters, self.progress = start, parameters, progress
        self.atoms = start.copy()
        self.atoms.calc = calculator
        self.seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self.rng = np.random.default_rng(self.seed)
        self.step = 0
        self.steps = parameters.equilibration_steps + parameters.production_steps
        self.blow_up: str | None = None
        self.samples = Samples(start)
        self.hottest = max(10 * parameters.temperature, parameters.temperature + 3000)
        # Maxwell and Boltzmann: each component of a momentum has the variance m kB T.
        widths = np.sqrt(self.atoms.get_masses() * kB * parameters.temperature)
        self.atoms.set_momenta(widths[:, None] * self.rng.standard_normal((len(start), 3)))
        self.dynamics = integrator_of(self.ensemble, self.atoms, parameters.bath, self.rng)

    @property
    def producing(self) -> bool:
        """Whether the equilibration is over."""
        return self.step >= self.parameters.equilibration_steps

    @property
    def ensemble(self) -> str:
        """That of the step to come."""
        return self.parameters.production_ensemble if self.producing else "nvt"

    def begin(self) -> None:
        """Looks at the structure before the first step; here an error of the model is the caller's own."""
        if self.step == 0 or not len(self.samples):
            self.atoms.get_forces()
            self._observe()

    def advance(self) -> None:
        """One step, and a look at what came of it."""
        before = self.atoms.positions.copy()
        try:
            with np.errstate(over="raise", invalid="raise"):
                self.dynamics.step()  # type: ignore[attr-defined]
            self.step += 1
            self.blow_up = self._flown(before)
            if self.blow_up is None:
                if self.step == self.parameters.equilibration_steps and self.ensemble != "nvt":
                    self.dynamics = integrator_of(self.ensemble, self.atoms, self.parameters.bath, self.rng)
                self._observe()
        except BLOW_UPS as error:
            self.blow_up = f"At step {self.step}: {error}"

    def state(self) -> State:
        """Where the run is."""
        arrays = captured(self.dynamics) | {f"sample_{name}": values for name, values in self.samples.arrays().items()}
        arrays |= {
            "positions": self.atoms.positions.copy(),
            "momenta": self.atoms.get_momenta(),
            "cell": self.atoms.cell.array.copy(),
        }
        return State(KIND, self.step, arrays, {"random": random_state(self.rng), "seed": self.seed})

    def restore(self, state: State) -> None:
        """Goes on from ``state``."""
        state.belongs(KIND, len(self.atoms))
        self.step, self.seed = state.step, state.values["seed"]
        self.rng = random_numbers(state.values["random"])
        self.atoms.set_cell(state.arrays["cell"], scale_atoms=False)
        self.atoms.set_positions(state.arrays["positions"], apply_constraint=False)
        self.atoms.set_momenta(state.arrays["momenta"], apply_constraint=False)
        self.dynamics = integrator_of(self.ensemble, self.atoms, self.parameters.bath, self.rng)
        restored(self.dynamics, dict(state.arrays))
        self.samples.restore({name[7:]: values for name, values in state.arrays.items() if name.startswith("sample_")})

    def _flown(self, before: np.ndarray) -> str | None:
        moved = geometry.largest_norm(self.atoms.positions - before)
        temperature = float(self.atoms.get_temperature())
        if not (np.isfinite(moved) and np.isfinite(temperature)):
            return f"At step {self.step} positions or momenta were not finite."
        if moved > FASTEST:
            return f"At step {self.step} an atom moved {moved:.2f} A at once."
        if temperature > self.hottest:
            return f"At step {self.step} the temperature was {temperature:.0f} K."
        if self.atoms.pbc.all():
            ratio = self.atoms.get_volume() / self.start.get_volume()
            if not 1 / 3 < ratio < 3:
                return f"At step {self.step} the volume was {ratio:.2f} times that of the start."
        return None

    def _observe(self) -> None:
        atoms, offset = self.atoms, self.parameters.equilibration_steps
        energy = float(atoms.get_potential_energy())
        fmax = geometry.largest_norm(atoms.get_forces())
        if not (np.isfinite(energy) and np.isfinite(fmax)):
            raise errors.NonFiniteResult("The calculator answered NaN or infinity.")
        sampled = self.producing and (self.step - offset) % self.parameters.sample_interval == 0
        if sampled:
            self.samples.add(atoms, (self.step - offset) * self.parameters.timestep / 1000, conserved_energy(self.dynamics))
        pressure = self.samples.last_pressure if sampled else None
        # Step 0 of the production is the last one of the equilibration.
        producing = self.step > offset or offset == 0
        self.progress(
            Step(
                "production" if producing else "equilibration",
                self.step - offset if producing else self.step,
                self.parameters.production_steps if producing else offset,
                energy=energy,
                fmax=fmax,
                temperature=float(atoms.get_temperature()),
                volume=float(atoms.get_volume()) if atoms.pbc.all() else None,
                pressure=None if pressure is None else pressure / 10_000,
                atoms=atoms,
            )
        )

    def answer(self) -> StabilityAnswer:
        """What the run showed."""
        parameters, ensemble = self.parameters, self.parameters.production_ensemble
        made = max(0, self.step - parameters.equilibration_steps)
        summary: dict[str, Any] = self.samples.summary(parameters.discard, ensemble)
        judged = criteria(summary, parameters, ensemble, self.blow_up)
        pressure = summary["mean_pressure"]
        return StabilityAnswer(
            is_stable=all(criterion.passed for criterion in judged),
            criteria=judged,
            blow_up=self.blow_up,
            ensemble=ensemble,
            mean_pressure_GPa=None if pressure is None else pressure / 10_000,
            equilibration_steps=min(self.step, parameters.equilibration_steps),
            production_steps=made,
            discarded_steps=int(parameters.discard * made),
            time_ps=made * parameters.timestep / 1000,
            trajectory_length=len(self.samples),
            seed=self.seed,
            final_atoms=_without_calculator(self.atoms),
            series=self.samples.arrays(),
            **summary,
        )


def _without_calculator(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = None
    return copy
