"""Neighbour lists made on a GPU, by the same library that makes them on the CPU (``forcefields/neighbours.py``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from vesin import NeighborList

from forcefields.base import ForceField
from forcefields.neighbours import Neighbours, listed, neighbours
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import EnvironmentBroken
from forcegate.structure import Structure

log = logging.getLogger(__name__)

Lists = Callable[[Structure, float], Neighbours]
"""Makes the list of one structure within a cutoff in A."""


def chosen(settings: ModelSettings, force_field: ForceField, device: str) -> Lists:
    """Who makes the lists of a model. GRACE's environment has no torch, and with that no way to a GPU for them.

    Raises:
        EnvironmentBroken: they are to be made on the device, and cannot be.
    """
    wanted = settings.neighbours == "device" and device != "cpu" and force_field.reads_neighbours
    return DeviceNeighbours(device) if wanted and find_spec("torch") is not None else neighbours


class DeviceNeighbours:
    """Makes the list of one structure on a device, for graphs that are built on the host.

    Args:
        device: ``cuda:<index>``; on ``cpu`` the tests compare the two ways.

    Raises:
        EnvironmentBroken: no list can be made there.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._told = False
        try:
            import torch

            self._torch: Any = torch
            self._made(3.0 * np.eye(3)[:2], 3.0 * np.eye(3), 4.0)
        except Exception as error:
            raise EnvironmentBroken(
                f"Neighbour lists cannot be made on {device} (FORCEGATE_NEIGHBOURS=device): {str(error)[:300]}",
                "Set FORCEGATE_NEIGHBOURS=cpu.",
            ) from error

    def __call__(self, structure: Structure, cutoff: float) -> Neighbours:
        """As ``forcefields.neighbours.neighbours``; made on the CPU where the device has no room for so many neighbours."""
        return neighbours(structure, cutoff, self._listed)

    def _listed(self, structure: Structure, cutoff: float) -> Neighbours:
        try:
            return self._made(structure.positions, structure.cell, cutoff)
        except Exception as error:
            if not self._told:
                log.warning("a neighbour list is made on the CPU", exc_info=error, extra={"atoms": len(structure)})
            self._told = True
            return listed(structure, cutoff)

    def _made(self, positions: np.ndarray, cell: np.ndarray, cutoff: float) -> Neighbours:
        points, box = (self._torch.from_numpy(np.array(array)).to(self._device) for array in (positions, cell))
        calculator = NeighborList(cutoff=cutoff, full_list=True)
        found = calculator.compute(points=points, box=box, periodic=True, quantities="ijSDd", copy=True)
        first, second, images, vectors, distances = (tensor.cpu().numpy() for tensor in found)  # type: ignore[attr-defined]
        return Neighbours(first.astype(np.int64), second.astype(np.int64), images.astype(np.int64), vectors, distances)
