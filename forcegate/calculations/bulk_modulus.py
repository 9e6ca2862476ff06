"""Bulk modulus from energies at several volumes: an equation of state, fitted to what is fit to be fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.eos import birchmurnaghan, murnaghan, pouriertarantola, vinet
from ase.units import GPa

from forcegate import errors
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, Point, evaluate_kept, forces_of
from forcegate.calculations.optimization import OptimizationParameters, relax_all, relax_kept, require_converged
from forcegate.calculations.parameters import Parameters, flag, integer, number, one_of
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.states import NOWHERE, States

EQUATIONS: dict[str, Callable[..., np.ndarray]] = {
    "birch_murnaghan": birchmurnaghan,
    "vinet": vinet,
    "murnaghan": murnaghan,
    "poirier_tarantola": pouriertarantola,
}
"""Third-order equations E(V; E0, B0, B0', V0)."""

POINTS_NEEDED = 5
"""Four parameters are fitted; with one point more there is something to judge the fit by."""


@dataclass(frozen=True)
class BulkModulusParameters(Parameters):
    """How to compute the bulk modulus.

    Attributes:
        strain_range: volumetric: volumes go from (1 - strain_range) to (1 + strain_range) times that of the structure.
        num_points: volumes, evenly spaced.
        relax_ions: relax the atoms at each volume; the shape of the cell is kept.
        relax_cell: relax the structure before, atoms and cell.
        eos: ``birch_murnaghan``, ``vinet``, ``murnaghan`` or ``poirier_tarantola``.
        fmax: eV/A, of the relaxations.
        max_steps: of each relaxation.
        min_r2: a fit with a lower coefficient of determination is refused.
    """

    strain_range: float = 0.06
    num_points: int = 7
    relax_ions: bool = True
    relax_cell: bool = True
    eos: str = "birch_murnaghan"
    fmax: float = 0.01
    max_steps: int = 500
    min_r2: float = 0.99

    def __post_init__(self) -> None:
        number("strain_range", self.strain_range, 0, 0.5, above=0)
        integer("num_points", self.num_points, POINTS_NEEDED, 1000)
        flag("relax_ions", self.relax_ions)
        flag("relax_cell", self.relax_cell)
        one_of("eos", self.eos, tuple(EQUATIONS))
        number("fmax", self.fmax, above=0)
        integer("max_steps", self.max_steps, 0, 100_000)
        number("min_r2", self.min_r2, 0, 1)


@dataclass(frozen=True)
class BulkModulusAnswer(Answer):
    """The fit and its points.

    Attributes:
        bulk_modulus, bulk_modulus_error: GPa, at zero pressure; errors are half widths of the 95 % confidence interval of the fit.
        bulk_modulus_derivative, bulk_modulus_derivative_error: dB/dP, no unit.
        equilibrium_volume, equilibrium_volume_error: A^3, of the structure's cell.
        equilibrium_energy: eV.
        fitting_r2: coefficient of determination; ``r_squared`` in JSON as well.
        residual: root mean square deviation of the energies from the fit, eV.
        eos: the equation.
        volumes: A^3.
        energies: eV.
        fitted_energies: eV, of the fit at the volumes.
        relaxed: whether atoms were relaxed at each volume.
        atoms_per_cell: number of atoms that volume and energy belong to.
    """

    bulk_modulus: float
    bulk_modulus_error: float
    bulk_modulus_derivative: float
    bulk_modulus_derivative_error: float
    equilibrium_volume: float
    equilibrium_volume_error: float
    equilibrium_energy: float
    fitting_r2: float
    residual: float
    eos: str
    volumes: np.ndarray
    energies: np.ndarray
    fitted_energies: np.ndarray
    relaxed: bool
    atoms_per_cell: int

    def as_dict(self) -> dict[str, object]:
        """As JSON has it; ``r_squared`` is a second name of ``fitting_r2``."""
        return super().as_dict() | {"r_squared": self.fitting_r2}


@dataclass(frozen=True)
class Fit:
    """An equation of state through points: eV, A^3, eV/A^3. Errors are half widths of 95 % intervals, by E0, B0, B0', V0."""

    energy: float
    modulus: float
    derivative: float
    volume: float
    errors: np.ndarray
    r2: float
    fitted: np.ndarray


def bulk_modulus(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: BulkModulusParameters | None = None,
    progress: Progress = ignore,
    states: States = NOWHERE,
) -> BulkModulusAnswer:
    """Energies at volumes around that of ``atoms``, which are not changed, and the equation of state through them.

    Args:
        states: where the relaxations and the volumes are kept, to go on from.

    Raises:
        InvalidRequest: the structure is not periodic in all three directions.
        NotRelaxed: a relaxation did not converge.
        FitFailed: the points do not carry a fit; they are in the error.
    """
    parameters = parameters or BulkModulusParameters()
    if not atoms.pbc.all():
        raise errors.InvalidRequest(
            f"A bulk modulus needs a structure that is periodic in all three directions; this one has pbc={atoms.pbc.tolist()}.", ""
        )
    forces = forces_of(source)
    if parameters.relax_cell:
        atoms = _relaxed(forces, atoms, parameters, progress, states)
    structures = at_volumes(atoms, parameters.strain_range, parameters.num_points)
    energies = _energies(forces, structures, parameters, progress, states)
    volumes = np.array([structure.get_volume() for structure in structures])
    fit = fit_equation_of_state(volumes, energies, parameters.eos, parameters.min_r2)
    return BulkModulusAnswer(
        bulk_modulus=fit.modulus / GPa,
        bulk_modulus_error=float(fit.errors[1]) / GPa,
        bulk_modulus_derivative=fit.derivative,
        bulk_modulus_derivative_error=float(fit.errors[2]),
        equilibrium_volume=fit.volume,
        equilibrium_volume_error=float(fit.errors[3]),
        equilibrium_energy=fit.energy,
        fitting_r2=fit.r2,
        residual=float(np.sqrt(((energies - fit.fitted) ** 2).mean())),
        eos=parameters.eos,
        volumes=volumes,
        energies=energies,
        fitted_energies=fit.fitted,
        relaxed=parameters.relax_ions,
        atoms_per_cell=len(atoms),
    )


def at_volumes(atoms: Atoms, strain_range: float, points: int) -> list[Atoms]:
    """Copies at ``points`` volumes, 1 - ``strain_range`` to 1 + ``strain_range`` times that of ``atoms``, of the same shape."""
    structures = []
    for strain in np.linspace(-strain_range, strain_range, points):
        copy = atoms.copy()
        # The volume is what is strained: a length changes by the cube root.
        copy.set_cell(atoms.cell.array * (1 + strain) ** (1 / 3), scale_atoms=True)
        structures.append(copy)
    return structures


def fit_equation_of_state(volumes: np.ndarray, energies: np.ndarray, eos: str, min_r2: float) -> Fit:
    """Least squares through the points; volumes in A^3, energies in eV.

    Raises:
        FitFailed: fewer than ``POINTS_NEEDED`` finite points; a minimum at an end of the range or outside of it; no minimum; or
            an r2 below ``min_r2``.
    """
    from scipy.stats import t as student

    points = {"volumes": volumes.tolist(), "energies": energies.tolist()}

    def refuse(reason: str, hint: str) -> errors.FitFailed:
        return errors.FitFailed(f"No equation of state was fitted: {reason}", hint, points)

    finite = np.isfinite(volumes) & np.isfinite(energies)
    volumes, energies = volumes[finite], energies[finite]
    if len(np.unique(volumes)) < POINTS_NEEDED:
        raise refuse(f"there are {len(np.unique(volumes))} points, {POINTS_NEEDED} are needed.", "Ask for more points.")
    order = np.argsort(volumes)
    if energies[order].argmin() in (0, len(order) - 1):
        raise refuse("the lowest energy is at an end of the range of volumes.", "Relax the cell first, or widen `strain_range`.")
    best, covariance = _least_squares(EQUATIONS[eos], volumes, energies)
    fitted = EQUATIONS[eos](volumes, *best)
    r2 = float(1 - ((energies - fitted) ** 2).sum() / ((energies - energies.mean()) ** 2).sum())
    if not np.isfinite([*best, *np.diag(covariance), r2]).all() or best[1] <= 0 or not volumes.min() < best[3] < volumes.max():
        raise refuse(
            f"it has no minimum inside the range (V0 = {best[3]:.4g} A^3).", "Relax the cell first, or widen `strain_range`."
        )
    if r2 < min_r2:
        raise refuse(f"r2 is {r2:.5f}, below {min_r2}.", "Look at the points: a jump is another phase, scatter a poor relaxation.")
    width = np.sqrt(np.diag(covariance)) * student.ppf(0.975, len(volumes) - 4)
    return Fit(float(best[0]), float(best[1]), float(best[2]), float(best[3]), width, r2, fitted)


def _least_squares(equation: Callable[..., np.ndarray], volumes: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E0, B0, B0', V0 with their covariance ``[4, 4]``; NaN where there is no fit. Works in units of the points' own size."""
    from scipy.optimize import least_squares

    volume, energy = volumes.mean(), np.ptp(energies)
    v, e = volumes / volume, (energies - energies.min()) / energy
    start = (0.0, max(2 * np.polyfit(v, e, 2)[0], 1e-3), 4.0, v[e.argmin()])
    units = np.array([energy, energy / volume, 1.0, volume])
    try:
        with np.errstate(all="ignore"):
            found = least_squares(lambda x: equation(v, *x) - e, start, method="lm", xtol=1e-12, ftol=1e-12)
            covariance = np.linalg.inv(found.jac.T @ found.jac) * 2 * found.cost / (len(v) - 4)
    except (ValueError, np.linalg.LinAlgError):  # the residuals were not finite, or a parameter has no effect
        return np.full(4, np.nan), np.full((4, 4), np.nan)
    best = found.x * units
    best[0] += energies.min()
    return best, covariance * np.outer(units, units)


def _relaxed(forces: Forces, atoms: Atoms, parameters: BulkModulusParameters, progress: Progress, states: States) -> Atoms:
    how = OptimizationParameters(fmax=parameters.fmax, smax=1.0, max_steps=parameters.max_steps, cell_filter="frechet")
    answer = relax_kept(forces, atoms, how, progress, states, "relaxation")
    require_converged(answer, how, "the structure")
    return answer.optimized_atoms


def _energies(
    forces: Forces, structures: list[Atoms], parameters: BulkModulusParameters, progress: Progress, states: States
) -> np.ndarray:
    """Energies in eV, of all volumes at once."""
    if parameters.relax_ions:
        how = OptimizationParameters(fmax=parameters.fmax, max_steps=parameters.max_steps, cell_filter="none")
        return np.array([answer.final_energy for answer in relax_all(forces, structures, how, progress, "volumes", states)])

    def told(index: int, point: Point) -> None:
        volume = structures[index].get_volume()
        progress(Step("volumes", index + 1, len(structures), index, energy=point.energy, volume=volume))

    return np.array([point.energy for point in evaluate_kept(forces, structures, told, states, "volumes", energies_alone=True)])
