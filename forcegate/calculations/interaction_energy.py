"""Interaction energy of a guest with a host: three energies from one model at one level, over many placements.

A force field has no basis set, so there is no superposition error to correct for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from ase.units import kJ, mol

from forcegate import errors
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, Point, evaluate_kept, forces_of
from forcegate.calculations.optimization import OptimizationParameters, relax_all, relax_kept, require_converged
from forcegate.calculations.parameters import Parameters, flag, integer, number, one_of
from forcegate.calculations.placements import (
    GUESTS,
    Placement,
    clearance,
    grid,
    guest_of,
    orientations,
    placed,
    random_centres,
)
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.states import NOWHERE, States

PLACEMENTS = ("grid", "random", "given")


@dataclass(frozen=True)
class InteractionEnergyParameters(Parameters):
    """Which guest, where, and how.

    Attributes:
        guest: one of H2, CO2, CH4, N2, H2O, CO, NH3, or the guest's ``Atoms``.
        placement: ``grid`` over the cell, ``random``, or ``given``.
        positions: ``given`` alone: centres of mass in A. Without any, the guest's own coordinates are its one place.
        spacing: A, of the grid.
        count: random places.
        orientations: of the guest at each place: as it is given, and random ones. A given place has the given one alone unless
            this is more than 1.
        min_distance: A; placements with an atom of the guest nearer to the host are left out.
        relax: relax the guest in the host, from the ``relax_best`` lowest placements, and the guest alone.
        relax_host: the host's atoms move as well, and the host is relaxed alone for its own energy. The cell is kept.
        relax_best: placements that are relaxed.
        fmax: eV/A, of the relaxations.
        max_steps: of each relaxation.
        seed: of the random numbers.
    """

    guest: str | Atoms = "CO2"
    placement: str = "grid"
    positions: tuple[Sequence[float], ...] | None = None
    spacing: float = 1.5
    count: int = 50
    orientations: int = 3
    min_distance: float = 1.8
    relax: bool = False
    relax_host: bool = False
    relax_best: int = 3
    fmax: float = 0.02
    max_steps: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.guest, Atoms):
            one_of("guest", self.guest, GUESTS)
        one_of("placement", self.placement, PLACEMENTS)
        if self.positions is not None:
            _positions(self.positions)
            if self.placement != "given":
                raise errors.InvalidRequest("`positions` belong to placements that are given.", 'Set `placement` to "given".')
        number("spacing", self.spacing, 0.1, 20)
        integer("count", self.count, 1, 100_000)
        integer("orientations", self.orientations, 1, 1000)
        number("min_distance", self.min_distance, 0, 10)
        flag("relax", self.relax)
        flag("relax_host", self.relax_host)
        if self.relax_host and not self.relax:
            raise errors.InvalidRequest("`relax_host` has no effect without `relax`.", "Set both, or neither.")
        integer("relax_best", self.relax_best, 1, 1000)
        number("fmax", self.fmax, above=0)
        integer("max_steps", self.max_steps, 0, 100_000)
        integer("seed", self.seed, 0, 2**63)


@dataclass(frozen=True)
class Site:
    """One evaluated placement: centre of mass of the guest in A, interaction energy in eV, distance to the nearest atom in A."""

    centre: np.ndarray
    interaction_energy: float
    distance: float


@dataclass(frozen=True)
class InteractionEnergyAnswer(Answer):
    """interaction_energy = energy_total - energy_host - energy_guest; below zero it is attraction.

    Attributes:
        energy_total: eV, host with guest at the best site.
        energy_host: eV, the host alone in the same cell; relaxed where its atoms were let move.
        energy_guest: eV, the guest alone, not periodic; relaxed where it was let move.
        interaction_energy: eV.
        interaction_energy_kJ_per_mol: the same, kJ/mol.
        deformation_energy: eV, what host and guest lose by the shapes that they have together; None without relaxation.
        best_site: ``[3]``, centre of mass of the guest, A.
        best_distance: A, between the nearest atoms of host and guest there.
        best_atoms: host and guest there; the guest's atoms are the last ones.
        sites: every placement that was evaluated, lowest first, before any relaxation: the map.
        placements: that were tried; ``overlapping`` of them were nearer than ``min_distance``.
        relaxed_sites: sites after relaxation, lowest first; empty without.
        unconverged: relaxations that did not converge and are in no number.
        guest: formula.
        atoms_host, atoms_guest: number of atoms.
    """

    energy_total: float
    energy_host: float
    energy_guest: float
    interaction_energy: float
    interaction_energy_kJ_per_mol: float
    deformation_energy: float | None
    best_site: np.ndarray
    best_distance: float
    best_atoms: Atoms
    sites: tuple[Site, ...]
    placements: int
    overlapping: int
    relaxed_sites: tuple[Site, ...]
    unconverged: int
    guest: str
    atoms_host: int
    atoms_guest: int


def interaction_energy(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: InteractionEnergyParameters | None = None,
    progress: Progress = ignore,
    states: States = NOWHERE,
) -> InteractionEnergyAnswer:
    """The guest in the host ``atoms``, which are not changed; placements are evaluated together.

    Args:
        states: where the placements and the relaxations are kept, to go on from.

    Raises:
        InvalidRequest: no placement is left.
        NotRelaxed: host or guest alone, or every placement, did not converge.
    """
    parameters = parameters or InteractionEnergyParameters()
    if len(atoms) == 0:
        raise errors.EmptyStructure("The host has no atoms.")
    forces, host, guest = forces_of(source), atoms.copy(), guest_of(parameters.guest)
    host.set_constraint()
    tried = placements_of(host, guest, parameters)
    clear = [each for each in tried if clearance(host, each.guest) >= parameters.min_distance]
    if not clear:
        raise errors.InvalidRequest(
            f"All {len(tried)} placements are nearer than {parameters.min_distance:g} A to the host.",
            "Try more placements, or lower `min_distance`.",
        )
    together = [host + each.guest for each in clear]

    def told(index: int, point: Point) -> None:
        progress(Step("placements", index + 1, len(clear) + 2, index, energy=point.energy))

    points = evaluate_kept(forces, [host, guest, *together], told, states, "placements", energies_alone=True)
    energies = np.array([point.energy for point in points])
    order = np.argsort(energies[2:], kind="stable")
    alone = float(energies[0] + energies[1])
    sites = tuple(Site(clear[k].centre, float(energies[2 + k] - alone), clearance(host, clear[k].guest)) for k in order)
    found = _Found(host, guest, float(energies[0]), float(energies[1]), [(float(energies[2 + k]), together[k]) for k in order[:1]])
    if parameters.relax:
        found = _relaxed(forces, found, [together[k] for k in order[: parameters.relax_best]], parameters, progress, states)
    return _answer(forces, found, sites, len(tried), len(tried) - len(clear))


def placements_of(host: Atoms, guest: Atoms, parameters: InteractionEnergyParameters) -> list[Placement]:
    """Every placement that the parameters ask for, overlapping ones included."""
    rng = np.random.default_rng(parameters.seed)
    turns: list[Any] = orientations(guest, parameters.orientations, rng)
    if parameters.placement == "grid":
        centres = grid(host, parameters.spacing)
    elif parameters.placement == "random":
        centres = random_centres(host, parameters.count, rng)
    elif parameters.positions is None:
        centres, turns = guest.get_center_of_mass()[None], [None]
    else:
        centres = _positions(parameters.positions)
    return [Placement(centre, placed(guest, centre, turn)) for centre in centres for turn in turns]


@dataclass(frozen=True)
class _Found:
    """Host and guest alone with their energies, and (energy, atoms) of both together, lowest first."""

    host: Atoms
    guest: Atoms
    energy_host: float
    energy_guest: float
    together: list[tuple[float, Atoms]]
    unconverged: int = 0
    relaxed: bool = False


def _relaxed(
    forces: Forces,
    found: _Found,
    together: list[Atoms],
    parameters: InteractionEnergyParameters,
    progress: Progress,
    states: States,
) -> _Found:
    """Relaxes guest, host (where it may move) and the placements, all in the cell that was given."""
    how = OptimizationParameters(fmax=parameters.fmax, max_steps=parameters.max_steps, cell_filter="none")
    size = len(found.host)
    guest = relax_kept(forces, found.guest, how, progress, states, "guest")
    require_converged(guest, how, "the guest")
    host_energy, host = found.energy_host, found.host
    if parameters.relax_host:
        relaxed = relax_kept(forces, host, how, progress, states, "host")
        require_converged(relaxed, how, "the host")
        host_energy, host = relaxed.final_energy, relaxed.optimized_atoms
    else:
        for each in together:
            each.set_constraint(FixAtoms(indices=range(size)))
    answers = relax_all(forces, together, how, progress, "placements", states, require=False)
    good = sorted((answer for answer in answers if answer.converged), key=lambda answer: answer.final_energy)
    if not good:
        raise errors.NotRelaxed(f"None of {len(answers)} placements converged within {parameters.max_steps} steps.")
    pairs = [(answer.final_energy, answer.optimized_atoms) for answer in good]
    return _Found(host, guest.optimized_atoms, host_energy, guest.final_energy, pairs, len(answers) - len(good), True)


def _answer(forces: Forces, found: _Found, sites: tuple[Site, ...], tried: int, overlapping: int) -> InteractionEnergyAnswer:
    size = len(found.host)
    alone = found.energy_host + found.energy_guest
    described = [(_site(both, size, energy - alone), both, energy) for energy, both in found.together]
    best, atoms, total = described[0]
    deformation = None
    if found.relaxed:
        guest = Atoms(atoms.numbers[size:], atoms.positions[size:], info=dict(found.guest.info))
        shapes = forces.evaluate([atoms[:size], guest])
        deformation = shapes[0].energy + shapes[1].energy - alone
    atoms = atoms.copy()
    atoms.set_constraint()
    return InteractionEnergyAnswer(
        energy_total=total,
        energy_host=found.energy_host,
        energy_guest=found.energy_guest,
        interaction_energy=best.interaction_energy,
        interaction_energy_kJ_per_mol=best.interaction_energy / (kJ / mol),
        deformation_energy=deformation,
        best_site=best.centre,
        best_distance=best.distance,
        best_atoms=atoms,
        sites=sites,
        placements=tried,
        overlapping=overlapping,
        relaxed_sites=tuple(site for site, _, _ in described) if found.relaxed else (),
        unconverged=found.unconverged,
        guest=found.guest.get_chemical_formula(),
        atoms_host=size,
        atoms_guest=len(atoms) - size,
    )


def _site(both: Atoms, size: int, energy: float) -> Site:
    host, guest = both[:size], both[size:]
    return Site(guest.get_center_of_mass(), energy, clearance(host, guest))


def _positions(values: Any) -> np.ndarray:
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1:] != (3,) or not np.isfinite(array).all():
        raise errors.InvalidRequest("`positions` has to be a list of points, each three numbers in A.", "")
    return array
