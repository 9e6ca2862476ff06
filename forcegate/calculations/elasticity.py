"""Elastic stiffness from stresses under small strains, the moduli of a polycrystal, and Born's criteria."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.units import GPa

from forcegate import errors
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, Point, evaluate_kept, forces_of, point, point_kept, side_by_side
from forcegate.calculations.optimization import OptimizationParameters, relax_kept, require_converged
from forcegate.calculations.parameters import Parameters, flag, integer, number
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.states import NOWHERE, States

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Row and column of each Voigt component: xx yy zz yz xz xy, ASE's order."""


@dataclass(frozen=True)
class ElasticityParameters(Parameters):
    """How to compute the stiffness.

    Attributes:
        strain: largest strain of one component (engineering strain, 2 e_ij, for shear).
        num_strains: magnitudes from strain/num_strains to strain, each with both signs; six components of each.
        relax_ions: relax the atoms under each strain. Without it the stiffness is that of clamped ions.
        relax_cell: relax the structure before, atoms and cell. At another pressure than zero the numbers below would mix stiffness
            and pressure, so a structure that is not relaxed has to be relaxed already: see ``max_stress``.
        fmax: eV/A, of the relaxations.
        max_steps: of each relaxation.
        max_stress: GPa; a structure with a larger component of stress is refused.
    """

    strain: float = 0.01
    num_strains: int = 2
    relax_ions: bool = True
    relax_cell: bool = True
    fmax: float = 0.001
    max_steps: int = 1000
    max_stress: float = 0.5

    def __post_init__(self) -> None:
        number("strain", self.strain, 0, 0.1, above=0)
        integer("num_strains", self.num_strains, 1, 20)
        flag("relax_ions", self.relax_ions)
        flag("relax_cell", self.relax_cell)
        number("fmax", self.fmax, above=0)
        integer("max_steps", self.max_steps, 0, 100_000)
        number("max_stress", self.max_stress, above=0)


@dataclass(frozen=True)
class ElasticityAnswer(Answer):
    """Stiffness and what follows from it. Everything in GPa unless it says otherwise.

    Attributes:
        stiffness: ``[6, 6]``, C_ij = d stress_i / d strain_j, symmetrised; Voigt xx yy zz yz xz xy, engineering shear strain.
        compliance: ``[6, 6]``, 1/GPa, its inverse.
        asymmetry: the largest |C_ij - C_ji| before it was symmetrised.
        residual: root mean square deviation of the stresses from straight lines.
        bulk_modulus_voigt, bulk_modulus_reuss, bulk_modulus_vrh: upper bound, lower bound, mean (Hill).
        shear_modulus_voigt, shear_modulus_reuss, shear_modulus_vrh: the same for shear.
        youngs_modulus: of the polycrystal, from the Hill means.
        poisson_ratio: no unit.
        universal_anisotropy: 5 G_V/G_R + B_V/B_R - 6, no unit; 0 is isotropic.
        eigenvalues: of the stiffness in Voigt form, ascending.
        is_stable: Born's criterion: every eigenvalue is above zero.
        initial_stress: ``[6]``, of the structure that was strained.
        strained_atoms: that structure.
        strains: number of strained structures.
    """

    stiffness: np.ndarray
    compliance: np.ndarray
    asymmetry: float
    residual: float
    bulk_modulus_voigt: float
    bulk_modulus_reuss: float
    bulk_modulus_vrh: float
    shear_modulus_voigt: float
    shear_modulus_reuss: float
    shear_modulus_vrh: float
    youngs_modulus: float
    poisson_ratio: float
    universal_anisotropy: float
    eigenvalues: np.ndarray
    is_stable: bool
    initial_stress: np.ndarray
    strained_atoms: Atoms
    strains: int


def elasticity(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: ElasticityParameters | None = None,
    progress: Progress = ignore,
    states: States = NOWHERE,
) -> ElasticityAnswer:
    """The stiffness of ``atoms``, which are not changed.

    Args:
        states: where the relaxations and the strained structures are kept, to go on from.

    Raises:
        InvalidRequest: the structure is not periodic in all three directions.
        NotRelaxed: a relaxation did not converge, or the structure is under stress.
        FitFailed: the stiffness is singular; the stresses are in the error.
    """
    parameters = parameters or ElasticityParameters()
    if not atoms.pbc.all():
        raise errors.InvalidRequest(
            f"Elastic constants need a structure that is periodic in all three directions; this one has pbc={atoms.pbc.tolist()}.",
            "",
        )
    forces = forces_of(source)
    if parameters.relax_cell:
        atoms = _relaxed(forces, atoms, parameters, progress, states)
    strains = strain_set(parameters.strain, parameters.num_strains)
    structures = [atoms, *(strained(atoms, strain) for strain in strains)]
    points = _points(forces, structures, parameters, progress, states)
    stresses = np.array([_stress(each) for each in points]) / GPa
    if (largest := float(np.abs(stresses[0]).max())) > parameters.max_stress:
        raise errors.NotRelaxed(
            f"The structure is under a stress of {largest:.3g} GPa; the limit is {parameters.max_stress:g} GPa.",
            "Relax its cell first (`relax_cell`), or raise `max_stress`.",
        )
    return _answer(atoms, strains, stresses)


def strain_set(largest: float, magnitudes: int) -> np.ndarray:
    """Strains ``[12 magnitudes, 6]``: each Voigt component alone, with both signs."""
    sizes = largest * np.arange(1, magnitudes + 1) / magnitudes
    return np.array([sign * size * np.eye(6)[component] for component in range(6) for size in sizes for sign in (-1, 1)])


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """A copy under ``strain`` ``[6]`` (Voigt, engineering shear): every vector x becomes (1 + e) x, with a symmetric e."""
    deformation = np.eye(3)
    for component, (row, column) in enumerate(VOIGT):
        share = strain[component] * (1.0 if row == column else 0.5)
        deformation[row, column] += share
        if row != column:
            deformation[column, row] += share
    copy = atoms.copy()
    copy.set_constraint()
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return copy


def stiffness_from(strains: np.ndarray, stresses: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes ``[6, 6]`` of stress against each strain, and the root mean square deviation from the lines.

    Strains come with both signs, so that the quadratic terms drop out of the slopes.
    """
    matrix, residuals = np.empty((6, 6)), []
    for component in range(6):
        chosen = strains[:, component] != 0
        design = np.stack([strains[chosen, component], np.ones(chosen.sum())], axis=1)
        solution = np.linalg.lstsq(design, stresses[chosen], rcond=None)[0]
        matrix[:, component] = solution[0]
        residuals.append(stresses[chosen] - design @ solution)
    return matrix, float(np.sqrt((np.concatenate(residuals) ** 2).mean()))


def _relaxed(forces: Forces, atoms: Atoms, parameters: ElasticityParameters, progress: Progress, states: States) -> Atoms:
    how = OptimizationParameters(
        fmax=parameters.fmax, smax=min(0.05, parameters.max_stress), max_steps=parameters.max_steps, cell_filter="frechet"
    )
    answer = relax_kept(forces, atoms, how, progress, states, "relaxation")
    require_converged(answer, how, "the structure")
    return answer.optimized_atoms


def _points(
    forces: Forces, structures: list[Atoms], parameters: ElasticityParameters, progress: Progress, states: States
) -> list[Point]:
    """All strained structures at once, relaxed where that is asked for."""

    def told(index: int, each: Point) -> None:
        progress(Step("strains", index + 1, len(structures), index, energy=each.energy))

    if not parameters.relax_ions:
        return evaluate_kept(forces, structures, told, states, "strains")
    how = OptimizationParameters(fmax=parameters.fmax, max_steps=parameters.max_steps, cell_filter="none")

    def relaxed_point(calculator: BaseCalculator, structure: Atoms, part: int, report: Progress) -> Point:
        def work() -> Point:
            answer = relax_kept(calculator, structure, how, report, states, f"strains-{part}", phase="strains", part=part)
            require_converged(answer, how, f"strained structure {part} of {len(structures)}")
            return point(answer.optimized_atoms, calculator)

        return point_kept(work, len(structure), states, f"strained-{part}")

    return side_by_side(forces, structures, relaxed_point, progress)


def _stress(each: Point) -> np.ndarray:
    if each.stress is None or not np.isfinite(each.stress).all():
        raise errors.NonFiniteResult("The calculator answered no finite stress.")
    return each.stress


def _answer(atoms: Atoms, strains: np.ndarray, stresses: np.ndarray) -> ElasticityAnswer:
    """Voigt, Reuss and Hill: R. Hill, Proc. Phys. Soc. A 65, 349 (1952). Anisotropy: Ranganathan and Ostoja-Starzewski, Phys. Rev.
    Lett. 101, 055504 (2008). Stability: Mouhat and Coudert, Phys. Rev. B 90, 224104 (2014)."""
    raw, residual = stiffness_from(strains, stresses[1:])
    c = (raw + raw.T) / 2
    if not np.isfinite(c).all() or abs(np.linalg.det(c / max(1e-12, np.abs(c).max()))) < 1e-14:
        raise errors.FitFailed(
            "The stiffness is singular: at least one strain meets no resistance.",
            "A gas, a molecule in a box or layers far apart have no stiffness.",
            {"strains": strains.max(axis=1).tolist(), "stresses": np.abs(stresses[1:]).max(axis=1).tolist()},
        )
    s = np.linalg.inv(c)
    bulk_voigt, shear_voigt = _voigt(c)
    bulk_reuss = 1 / (s[:3, :3].sum())
    shear_reuss = 15 / (4 * np.trace(s[:3, :3]) - 4 * (s[0, 1] + s[0, 2] + s[1, 2]) + 3 * (s[3, 3] + s[4, 4] + s[5, 5]))
    bulk, shear = (bulk_voigt + bulk_reuss) / 2, (shear_voigt + shear_reuss) / 2
    eigenvalues = np.linalg.eigvalsh(c)
    return ElasticityAnswer(
        stiffness=c,
        compliance=s,
        asymmetry=float(np.abs(raw - raw.T).max()),
        residual=residual,
        bulk_modulus_voigt=float(bulk_voigt),
        bulk_modulus_reuss=float(bulk_reuss),
        bulk_modulus_vrh=float(bulk),
        shear_modulus_voigt=float(shear_voigt),
        shear_modulus_reuss=float(shear_reuss),
        shear_modulus_vrh=float(shear),
        youngs_modulus=float(9 * bulk * shear / (3 * bulk + shear)),
        poisson_ratio=float((3 * bulk - 2 * shear) / (2 * (3 * bulk + shear))),
        universal_anisotropy=float(5 * shear_voigt / shear_reuss + bulk_voigt / bulk_reuss - 6),
        eigenvalues=eigenvalues,
        is_stable=bool(eigenvalues[0] > 0),
        initial_stress=stresses[0],
        strained_atoms=atoms,
        strains=len(strains),
    )


def _voigt(c: np.ndarray) -> tuple[float, float]:
    diagonal, coupling = np.trace(c[:3, :3]), c[0, 1] + c[0, 2] + c[1, 2]
    return (diagonal + 2 * coupling) / 9, (diagonal - coupling + 3 * (c[3, 3] + c[4, 4] + c[5, 5])) / 15
