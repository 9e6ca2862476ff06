"""MACE-POLAR: MACE with charges that attract each other at any distance.

A molecule is evaluated as one, in open space, and not in the vacuum that makes it periodic for models of finite range. Each
structure has a forward pass of its own: the package evaluates the molecules of a batch in another way when a crystal is among
them, and with pairs of all atoms there is little to be gained.

There is no stress: the package strains positions and bonds for it, but neither the reciprocal lattice nor the volume, from which
the Coulomb energy of a crystal comes, and that energy cannot be differentiated by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from forcefields.base import Graph, Normalised, Result
from forcefields.mace.adapter import EMBEDDED, GRADIENTS, MACE


class Polar(MACE):
    """A MACE-POLAR checkpoint; the package does not convert it to cuEquivariance."""

    takes_cuequivariance = takes_compile = False

    def _known(self, model: Any) -> set[str]:  # noqa: ARG002
        return set(EMBEDDED)

    def graph(self, structure: Normalised, head: str) -> Graph:
        """As of any MACE; a molecule keeps its own positions, and no bond of it crosses a boundary."""
        graph = super().graph(structure, head)
        if graph.payload.periodic or structure.original is None:
            return graph
        positions = structure.original.positions - structure.original.positions.mean(axis=0)
        return replace(graph, payload=replace(graph.payload, positions=positions, images=np.zeros_like(graph.payload.images)))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """A forward and, where forces are wanted, a backward pass over each graph."""
        return [self._evaluate(graph, outputs) for graph in graphs]

    def _evaluate(self, graph: Graph, outputs: frozenset[str]) -> Result:
        forces, periodic = bool(outputs & GRADIENTS), graph.payload.periodic
        batch = self._batch([graph])
        # The lattice of a molecule is looked at and not used: of this one, the package makes the fewest waves.
        cell = batch["cell"] if periodic else torch.eye(3, device=self._device, dtype=self._dtype)
        further = {
            "cell": cell,
            "rcell": 2 * math.pi * torch.linalg.inv(cell).T,
            "volume": torch.linalg.det(cell).reshape(1),
            "pbc": torch.full((1, 3), periodic, device=self._device),
            "fermi_level": torch.zeros(1, device=self._device, dtype=self._dtype),
            "external_field": torch.zeros(1, 3, device=self._device, dtype=self._dtype),
        }
        with torch.set_grad_enabled(forces):
            answer = self._model(batch | further, compute_force=forces)
        result = Result(float(answer["energy"]))
        if forces:
            result.forces = answer["forces"].detach().cpu().double().numpy()
        if "charges" in outputs:
            result.extra["charges"] = answer["charges"].detach().cpu().double().numpy()
        return result
