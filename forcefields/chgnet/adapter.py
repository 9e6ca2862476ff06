"""CHGNet 0.4: true batching with one backward pass.

The package's ``predict_graph`` builds the graph of the gradients twice (``create_graph=True``), for training; at inference that
costs ten times the time and gigabytes of memory. Here forces and strains are differentiated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

import numpy as np
import torch
from chgnet.model.model import BatchedGraph, CHGNet

from forcefields.base import ForceField, Graph, Result
from forcefields.catalogue import Variant
from forcefields.chgnet.graph import crystal_graph
from forcegate.contract import voigt_from_matrix
from forcegate.structure import Structure


class CHGNetForceField(ForceField):
    """A CHGNet checkpoint of the ``chgnet`` package (not matgl's CHGNet, which is another architecture)."""

    def __init__(self, model: CHGNet, elements: tuple[int, ...], device: str) -> None:
        self.cutoff = float(model.graph_converter.atom_graph_cutoff)
        self._bond_cutoff = float(model.graph_converter.bond_graph_cutoff)
        self.elements = elements
        self._model, self._device = model, device
        self._biased = bool(model.model_args.get("mlp_out_bias"))

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> CHGNetForceField:
        """Builds the model of a ``.pth.tar`` checkpoint of the package."""
        # The package prints to standard output, which belongs to whoever runs us.
        with redirect_stdout(stderr):
            # As CHGNet.load does: 0.2.0 was trained with a bias in its last layer.
            model = CHGNet.from_file(str(checkpoint), mlp_out_bias=variant.name == "chgnet-0.2.0")
        model.to(device).eval().requires_grad_(False)
        # The checkpoint holds no list of elements; the catalogue's is the training set's.
        return cls(model, variant.elements, device)

    def graph(self, structure: Structure, head: str) -> Graph:  # noqa: ARG002
        """The atom and bond graph of one structure."""
        crystal = crystal_graph(structure, self.cutoff, self._bond_cutoff)
        return Graph(crystal, len(structure), len(crystal.atom_graph))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward and, where forces or stress are wanted, one backward pass over all graphs."""
        if not self._biased:
            return self._evaluate(graphs, outputs)
        # The bias of 0.2.0 changes the bonds of a structure without angles, but the package skips that layer when no structure
        # of the batch has any. A rare gas would get one energy alone and another among crystals: 0.26 eV/A in its forces.
        results: dict[int, Result] = {}
        for with_angles in (True, False):
            chosen = [k for k, graph in enumerate(graphs) if (len(graph.payload.bond_graph) > 0) == with_angles]
            if chosen:
                results |= zip(chosen, self._evaluate([graphs[k] for k in chosen], outputs), strict=True)
        return [results[k] for k in range(len(graphs))]

    def _evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        crystals = [graph.payload.to(self._device) for graph in graphs]
        gradients = bool(outputs & {"forces", "stress"})
        with torch.set_grad_enabled(gradients):
            batch = BatchedGraph.from_graphs(
                crystals,
                bond_basis_expansion=self._model.bond_basis_expansion,
                angle_basis_expansion=self._model.angle_basis_expansion,
                compute_stress=gradients,
            )
            answer = self._model._compute(batch, compute_magmom="magmoms" in outputs)
            atoms = answer["atoms_per_graph"]
            reference = 0 if self._model.composition_model is None else self._model.composition_model(crystals)
            energy = ((answer["e"] + reference) * (atoms if self._model.is_intensive else 1)).detach().cpu().double().numpy()
            results = [Result(float(value)) for value in energy.reshape(-1)]
            if gradients:
                self._differentiate(batch, answer["e"] * (atoms if self._model.is_intensive else 1), results)
        if "magmoms" in outputs:
            for result, magmoms in zip(results, answer["m"], strict=True):
                result.extra["magmoms"] = magmoms.detach().cpu().double().numpy()
        return results

    def _differentiate(self, batch: BatchedGraph, energy: torch.Tensor, results: list[Result]) -> None:
        """Fills in forces, -dE/dx, and stress, (1/V) dE/de."""
        count = len(results)
        gradients = torch.autograd.grad(energy.sum(), [*batch.atom_positions, *batch.strains], allow_unused=True)
        for result, positions, force, strain, volume in zip(
            results, batch.atom_positions, gradients[:count], gradients[count:], batch.volumes.tolist(), strict=True
        ):
            # Without any neighbour within the cutoff nothing depends on the positions, and torch has no gradient to give.
            result.forces = np.zeros(positions.shape) if force is None else -force.cpu().double().numpy()
            virial = np.zeros((3, 3)) if strain is None else strain.cpu().double().numpy()
            result.stress = voigt_from_matrix(virial / volume)


ADAPTER = CHGNetForceField
