"""Guests and where they are put in a host: positions and orientations, without those that overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.geometry import get_distances
from scipy.spatial.transform import Rotation

from forcegate import errors
from forcegate.calculations import geometry

GUESTS = ("H2", "CO2", "CH4", "N2", "H2O", "CO", "NH3")
"""Molecules known by name, with the geometries of ASE's G2 set."""


@dataclass(frozen=True)
class Placement:
    """A guest in its place: centre of mass ``[3]`` in A, and the guest's atoms there."""

    centre: np.ndarray
    guest: Atoms


def guest_of(guest: str | Atoms) -> Atoms:
    """The guest molecule, without a cell.

    Raises:
        InvalidRequest: there is no guest of that name.
    """
    if isinstance(guest, str):
        if guest not in GUESTS:
            raise errors.InvalidRequest(
                f"There is no guest {guest[:40]!r}.", f"There are {', '.join(GUESTS)}; any other can be given as atoms."
            )
        return molecule(guest)
    made = Atoms(guest.numbers, guest.positions, info=dict(guest.info))
    if len(made) == 0:
        raise errors.EmptyStructure("The guest has no atoms.")
    return made


def grid(host: Atoms, spacing: float) -> np.ndarray:
    """Centres ``[M, 3]`` on a grid over the cell; where the host is not periodic, over its extent and 3 A around it."""
    if host.pbc.all():
        counts = np.maximum(1, np.ceil(geometry.heights(host.cell.array) / spacing)).astype(int)
        axes = np.meshgrid(*(np.arange(count) / count for count in counts), indexing="ij")
        return np.stack([axis.ravel() for axis in axes], axis=1) @ host.cell.array
    low, high = host.positions.min(axis=0) - 3, host.positions.max(axis=0) + 3
    axes = np.meshgrid(*(np.arange(a, b + 1e-9, spacing) for a, b in zip(low, high, strict=True)), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def random_centres(host: Atoms, count: int, rng: np.random.Generator) -> np.ndarray:
    """Centres ``[count, 3]`` anywhere in the cell; where the host is not periodic, in its extent and 3 A around it."""
    fractions = rng.random((count, 3))
    if host.pbc.all():
        return fractions @ host.cell.array
    low, high = host.positions.min(axis=0) - 3, host.positions.max(axis=0) + 3
    return low + fractions * (high - low)


def placed(guest: Atoms, centre: np.ndarray, rotation: Rotation | None) -> Atoms:
    """A copy of ``guest``, turned about its centre of mass, which comes to ``centre``."""
    copy = guest.copy()
    arms = copy.positions - copy.get_center_of_mass()
    copy.positions = (arms if rotation is None else rotation.apply(arms)) + centre
    return copy


def orientations(guest: Atoms, count: int, rng: np.random.Generator) -> list[Rotation | None]:
    """The guest as it is, and ``count - 1`` random rotations of it; one atom has a single orientation."""
    if len(guest) == 1:
        return [None]
    return [None, *(Rotation.from_quat(rng.standard_normal(4)) for _ in range(count - 1))]


def clearance(host: Atoms, guest: Atoms) -> float:
    """The shortest distance between an atom of the host, images included, and one of the guest, A."""
    _, distances = get_distances(guest.positions, host.positions, cell=host.cell, pbc=host.pbc)
    return float(distances.min())
