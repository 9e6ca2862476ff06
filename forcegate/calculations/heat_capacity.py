"""Phonons of a relaxed crystal by finite displacements, and the harmonic heat capacity, free energy and entropy.

phonopy does the lattice dynamics (Togo and Tanaka, Scr. Mater. 108, 1 (2015)); this module gives it forces and judges the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.units import kJ, mol

from forcegate import errors
from forcegate.calculations import geometry
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, Point, evaluate_kept, forces_of
from forcegate.calculations.optimization import OptimizationParameters, relax_kept, require_converged
from forcegate.calculations.parameters import Parameters, flag, integer, number
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.states import NOWHERE, States

BAND_POINTS = 40
"""q-points on each segment of the band structure."""


@dataclass(frozen=True)
class HeatCapacityParameters(Parameters):
    """How to compute phonons.

    Attributes:
        temperatures: K.
        supercell: multiples of the lattice vectors; None for the smallest ones with opposite faces ``supercell_length`` apart.
        supercell_length: A.
        displacement: A.
        relax: relax the structure before, atoms and cell, with its symmetry kept. Harmonic phonons belong to a minimum; a structure
            that is not relaxed here has to be at one, see ``max_force``.
        fmax: eV/A, of that relaxation.
        max_steps: of that relaxation.
        max_force: eV/A; a structure with a larger force is refused.
        mesh_length: A; the mesh of q-points has as many along each reciprocal vector as this length has vectors' lengths.
        imaginary_threshold: THz; a frequency below minus this is imaginary. What is nearer to zero is the noise of acoustic modes.
        symmetry_tolerance: A.
    """

    temperatures: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0)
    supercell: tuple[int, int, int] | None = None
    supercell_length: float = 12.0
    displacement: float = 0.01
    relax: bool = True
    fmax: float = 0.001
    max_steps: int = 1000
    max_force: float = 0.05
    mesh_length: float = 100.0
    imaginary_threshold: float = 0.1
    symmetry_tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.temperatures, tuple) or not 1 <= len(self.temperatures) <= 10_000:
            raise errors.InvalidRequest("`temperatures` has to be a list of one to 10000 numbers.", "")
        for temperature in self.temperatures:
            number("temperatures", temperature, 0, 100_000)
        if self.supercell is not None:
            if not isinstance(self.supercell, tuple) or len(self.supercell) != 3:
                raise errors.InvalidRequest("`supercell` has to be three whole numbers.", "")
            for multiple in self.supercell:
                integer("supercell", multiple, 1, 50)
        number("supercell_length", self.supercell_length, 1, 200)
        number("displacement", self.displacement, 1e-4, 0.5)
        flag("relax", self.relax)
        number("fmax", self.fmax, above=0)
        integer("max_steps", self.max_steps, 0, 100_000)
        number("max_force", self.max_force, above=0)
        number("mesh_length", self.mesh_length, 5, 1000)
        number("imaginary_threshold", self.imaginary_threshold, 0, 100)
        number("symmetry_tolerance", self.symmetry_tolerance, above=0)


@dataclass(frozen=True)
class Bands:
    """Phonon bands along the lattice's path (Setyawan and Curtarolo, Comput. Mater. Sci. 49, 299 (2010)).

    Attributes:
        distances: one array for each segment, 1/A (without 2 pi).
        frequencies: ``[q, bands]`` for each segment, THz; negative ones are imaginary.
        qpoints: ``[q, 3]`` for each segment, in reciprocal vectors of the primitive cell.
        labels: names of both ends of each segment.
    """

    distances: tuple[np.ndarray, ...]
    frequencies: tuple[np.ndarray, ...]
    qpoints: tuple[np.ndarray, ...]
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HeatCapacityAnswer(Answer):
    """Thermal properties at constant volume, for one mole of the cell that was given (``_per_atom``: of its atoms).

    Attributes:
        temperatures: K.
        heat_capacities, heat_capacities_per_atom: J/mol/K.
        free_energies, free_energies_per_atom: eV, of the vibrations, zero-point energy included; not per mole.
        entropies, entropies_per_atom: J/mol/K.
        zero_point_energy: eV, of the cell.
        has_imaginary_modes: a frequency lies below minus the threshold. The numbers above leave these modes out and are then not
            those of the structure, which is no minimum.
        imaginary_fraction: share of all modes.
        lowest_frequency: THz, on mesh and bands; negative is imaginary. ``lowest_qpoint`` is where.
        lowest_qpoint: ``[3]``, in reciprocal vectors of the primitive cell.
        max_frequency: THz, on mesh and bands.
        warnings: what has to be known of the numbers.
        frequencies: ``[q, bands]`` of the mesh, THz. ``weights`` are the shares of its q-points.
        dos_frequencies, dos: THz; modes per THz and primitive cell.
        bands: the band structure.
        supercell: multiples.
        displacements: number of displaced supercells.
        atoms_per_cell: of the cell that was given; ``atoms_per_primitive_cell`` of the one that bands belong to.
        residual_force: largest force in the structure that was displaced, eV/A.
        relaxed_atoms: that structure.
    """

    temperatures: np.ndarray
    heat_capacities: np.ndarray
    heat_capacities_per_atom: np.ndarray
    free_energies: np.ndarray
    free_energies_per_atom: np.ndarray
    entropies: np.ndarray
    entropies_per_atom: np.ndarray
    zero_point_energy: float
    has_imaginary_modes: bool
    imaginary_fraction: float
    lowest_frequency: float
    lowest_qpoint: np.ndarray
    max_frequency: float
    warnings: tuple[str, ...]
    frequencies: np.ndarray
    weights: np.ndarray
    dos_frequencies: np.ndarray
    dos: np.ndarray
    bands: Bands
    supercell: tuple[int, int, int]
    displacements: int
    atoms_per_cell: int
    atoms_per_primitive_cell: int
    residual_force: float
    relaxed_atoms: Atoms = field(repr=False)


def heat_capacity(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: HeatCapacityParameters | None = None,
    progress: Progress = ignore,
    states: States = NOWHERE,
) -> HeatCapacityAnswer:
    """Phonons of ``atoms``, which are not changed: displaced supercells are evaluated together.

    Args:
        states: where the relaxation and the displaced supercells are kept, to go on from.

    Raises:
        InvalidRequest: the structure is not periodic in all three directions.
        NotRelaxed: the relaxation did not converge, or the structure that was to be used as it is has forces.
        SetupError: phonopy is not installed.
    """
    parameters = parameters or HeatCapacityParameters()
    if not atoms.pbc.all():
        raise errors.InvalidRequest(
            f"Phonons need a structure that is periodic in all three directions; this one has pbc={atoms.pbc.tolist()}.", ""
        )
    geometry.optional("phonopy")
    forces = forces_of(source)
    if parameters.relax:
        atoms = _relaxed(forces, atoms, parameters, progress, states)
    phonons, residual = _force_constants(forces, atoms, parameters, progress, states)
    return _answer(phonons, atoms, parameters, residual)


def _relaxed(forces: Forces, atoms: Atoms, parameters: HeatCapacityParameters, progress: Progress, states: States) -> Atoms:
    how = OptimizationParameters(
        fmax=parameters.fmax, smax=0.05, max_steps=parameters.max_steps, cell_filter="frechet", keep_symmetry=True
    )
    free = atoms.copy()
    free.set_constraint()  # a displaced atom has to be free to move
    answer = relax_kept(forces, free, how, progress, states, "relaxation")
    require_converged(answer, how, "the structure")
    return answer.optimized_atoms


def _force_constants(
    forces: Forces, atoms: Atoms, parameters: HeatCapacityParameters, progress: Progress, states: States
) -> tuple[Any, float]:
    """phonopy's object with force constants, and the largest force of the structure at rest in eV/A."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )
    multiples = parameters.supercell or geometry.supercell_for(atoms.cell.array, parameters.supercell_length)
    phonons = _quietly(
        Phonopy, cell, np.diag(multiples), primitive_matrix="auto", symprec=parameters.symmetry_tolerance, is_symmetry=True
    )
    phonons.generate_displacements(distance=parameters.displacement)
    displaced = [_atoms(each, atoms) for each in phonons.supercells_with_displacements]
    # The structure at rest goes along: its forces, zero but for the rest of the relaxation, are taken off all others.
    structures = [_atoms(phonons.supercell, atoms), *displaced]

    def told(index: int, point: Point) -> None:
        progress(Step("displacements", index + 1, len(structures), index, energy=point.energy))

    points = evaluate_kept(forces, structures, told, states, "displacements")
    rest = points[0].forces
    residual = geometry.largest_norm(rest)
    if residual > parameters.max_force:
        raise errors.NotRelaxed(
            f"The structure is not at a minimum: a force is {residual:.3g} eV/A, the limit {parameters.max_force:g} eV/A.",
            "Relax it first (`relax`).",
        )
    phonons.forces = [point.forces - rest for point in points[1:]]
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants(show_drift=False)
    return phonons, residual


def _answer(phonons: Any, atoms: Atoms, parameters: HeatCapacityParameters, residual: float) -> HeatCapacityAnswer:
    mesh = phonons.run_mesh(parameters.mesh_length, is_gamma_center=True)
    thermal = phonons.run_thermal_properties(temperatures=np.array(parameters.temperatures), exclude_gamma_acoustic=True)
    dos = phonons.run_total_dos(use_tetrahedron_method=True)
    bands = _bands(phonons)
    cells = len(atoms) / len(phonons.primitive)  # phonopy counts by the primitive cell
    weights = mesh.weights / mesh.weights.sum()
    imaginary = mesh.frequencies < -parameters.imaginary_threshold
    lowest, where = _lowest(mesh, bands)
    found = lowest < -parameters.imaginary_threshold
    fraction = float((imaginary * weights[:, None]).sum() / mesh.frequencies.shape[1])
    warnings = (_imaginary(lowest, where, fraction),) if found else ()
    capacities = np.array(thermal.heat_capacity) * cells
    free_energies = np.array(thermal.free_energy) * cells * kJ / mol  # phonopy's are in kJ/mol
    entropies = np.array(thermal.entropy) * cells
    count = len(atoms)
    return HeatCapacityAnswer(
        temperatures=np.array(parameters.temperatures, dtype=float),
        heat_capacities=capacities,
        heat_capacities_per_atom=capacities / count,
        free_energies=free_energies,
        free_energies_per_atom=free_energies / count,
        entropies=entropies,
        entropies_per_atom=entropies / count,
        zero_point_energy=float(thermal.zero_point_energy * cells * kJ / mol),
        has_imaginary_modes=bool(found),
        imaginary_fraction=fraction,
        lowest_frequency=lowest,
        lowest_qpoint=where,
        max_frequency=float(max(mesh.frequencies.max(), *(each.max() for each in bands.frequencies))),
        warnings=warnings,
        frequencies=np.array(mesh.frequencies),
        weights=weights,
        dos_frequencies=np.array(dos.frequency_points),
        dos=np.array(dos.dos),
        bands=bands,
        supercell=tuple(int(x) for x in np.diag(phonons.supercell_matrix)),  # type: ignore[arg-type]
        displacements=len(phonons.supercells_with_displacements),
        atoms_per_cell=count,
        atoms_per_primitive_cell=len(phonons.primitive),
        residual_force=residual,
        relaxed_atoms=atoms,
    )


def _imaginary(lowest: float, where: np.ndarray, fraction: float) -> str:
    place = np.round(where, 3).tolist()
    return (
        f"There are imaginary modes, down to {abs(lowest):.2f}i THz at q = {place}: the structure is no minimum. The thermal "
        f"properties leave {100 * fraction:.2g} % of the modes of the mesh out, and are not those of this structure."
    )


def _lowest(mesh: Any, bands: Bands) -> tuple[float, np.ndarray]:
    """The lowest frequency of mesh and bands in THz, and its q-point."""
    qpoints = np.concatenate([mesh.qpoints, *bands.qpoints])
    lowest = np.concatenate([mesh.frequencies.min(axis=1), *(each.min(axis=1) for each in bands.frequencies)])
    return float(lowest.min()), qpoints[lowest.argmin()]


def _bands(phonons: Any) -> Bands:
    """The band structure along ASE's path for the lattice of the primitive cell."""
    from ase.cell import Cell

    path = Cell(phonons.primitive.cell).bandpath(npoints=0)
    segments, labels = [], []
    for group in path.path.split(","):
        names = _special_points(group)
        for start, end in pairwise(names):
            ends = path.special_points[start], path.special_points[end]
            segments.append(np.linspace(*ends, BAND_POINTS))
            labels.append((start, end))
    found = phonons.run_band_structure(segments)
    return Bands(
        tuple(np.array(each) for each in found.distances),
        tuple(np.array(each) for each in found.frequencies),
        tuple(np.array(each) for each in found.qpoints),
        tuple(labels),
    )


def _special_points(group: str) -> list[str]:
    """Names in a path such as ``GX1K``: a letter with the digits behind it."""
    import re

    return re.findall(r"[A-Z][0-9]*", group)


def _atoms(cell: Any, like: Atoms) -> Atoms:
    made = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
    made.info |= {name: like.info[name] for name in ("spin",) if name in like.info}
    return made


def _quietly(make: Any, *arguments: Any, **options: Any) -> Any:
    """phonopy warns where its primitive cell is not the cell that was given; here that is meant."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(*arguments, **options)
