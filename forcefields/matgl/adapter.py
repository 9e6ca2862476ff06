"""MatGL: M3GNet, TensorNet and MatGL's own CHGNet, truly batched, neighbours from vesin.

Energies of isolated atoms are added here in float64: the ones of all-electron data sets are so large that float32 totals, which
the package gives, jump by more than a chemical bond changes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.neighbours import neighbour_images
from forcefields.transfer import to_device
from forcegate.contract import voigt_from_matrix


@contextmanager
def _elsewhere() -> Iterator[None]:
    """The package makes a folder in the home directory when it is imported, and fails where it cannot."""
    before = os.environ.get("HOME")
    with TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("HOME") if before is None else os.environ.update(HOME=before)


with _elsewhere():
    from matgl import load_model
    from matgl.models import _chgnet
    from matgl.utils.constants import EV_PER_ANG3_TO_GPA
    from torch_geometric.data import Batch, Data


class MatGL(ForceField):
    """A ``Potential`` of MatGL, which is a folder of three files."""

    def __init__(self, potential: Any, device: str) -> None:
        self.cutoff = float(potential.model.cutoff)
        symbols = potential.model.element_types
        self.elements = tuple(sorted(atomic_numbers[symbol] for symbol in symbols))
        self._device = device
        self._type_of = np.full(119, -1)
        self._type_of[[atomic_numbers[symbol] for symbol in symbols]] = np.arange(len(symbols))
        self._isolated = np.zeros(len(symbols))
        if potential.element_refs is not None:
            self._isolated = potential.element_refs.property_offset.double().numpy()
            potential.element_refs = None
        self._potential = potential.to(device)
        self._energies_alone = copy.copy(potential)
        self._energies_alone.calc_forces = self._energies_alone.calc_stresses = False

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> MatGL:
        """Builds the potential of a folder that the package wrote."""
        potential = load_model(checkpoint)
        # It comes in training mode, and a potential that was trained without stress is set never to compute it.
        potential.eval().requires_grad_(False)
        potential.calc_forces = potential.calc_stresses = True
        potential.calc_magmom = "magmoms" in variant.extra_outputs
        return cls(potential, device)

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """The package's graph of one structure: edges sorted by their first atom, as its line graphs need them."""
        first, second, images, _ = neighbour_images(structure, self.cutoff)
        data = Data(
            num_nodes=len(structure),
            # As the package's own converter has them. With int64 torch 2.13 sums messages in another way, five times slower.
            edge_index=torch.from_numpy(np.array([first, second], dtype=np.int32)),
            pbc_offset=torch.from_numpy(images).float(),
            node_type=torch.from_numpy(self._type_of[structure.numbers]),
            frac_coords=torch.from_numpy(structure.positions @ np.linalg.inv(structure.cell)).float(),
            lattice_vectors=torch.from_numpy(structure.cell).float()[None],
        )
        return Graph(data, len(structure), len(first))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward pass and, where forces or stress are wanted, one backward pass over all graphs."""
        gradients = bool(outputs & {"forces", "stress"})
        batch = to_device(Batch.from_data_list([graph.payload for graph in graphs]), self._device)
        potential = self._potential if gradients else self._energies_alone
        energy, forces, stress, _, *magmoms = potential(batch, batch.lattice_vectors)
        # The model remembers what it computed, and with it the memory of the whole pass.
        potential.model.feature_dict = {}
        ends = np.cumsum([graph.atoms for graph in graphs])
        results: list[Result] = []
        for graph, end, value in zip(graphs, ends, _array(energy).reshape(-1), strict=True):
            isolated = self._isolated[graph.payload.node_type.numpy()].sum()
            result = Result(float(value + isolated))
            if gradients:
                result.forces = _array(forces[end - graph.atoms : end])
                k = len(results)
                result.stress = voigt_from_matrix(_array(stress[3 * k : 3 * k + 3])) / EV_PER_ANG3_TO_GPA
            if magmoms:
                result.extra["magmoms"] = _array(magmoms[0][end - graph.atoms : end]).reshape(-1)
            results.append(result)
        return results


def directed_line_graph(
    edge_index: torch.Tensor,
    pbc_offset: torch.Tensor,
    bond_vec: torch.Tensor,
    bond_dist: torch.Tensor,
    threebody_cutoff: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the package's ``create_directed_line_graph`` gives, in the same order, in time and memory linear in its size.

    The package compares every bond of the batch with every other one: 100 crystals would cost 10 000 times as much as one.
    """
    with torch.no_grad():
        kept = (bond_dist <= threebody_cutoff).nonzero().squeeze(1)
        first, second, images = edge_index[0][kept].long(), edge_index[1][kept].long(), pbc_offset[kept]
        order = torch.argsort(first, stable=True)
        leaving = torch.bincount(first, minlength=int(edge_index.max()) + 1 if edge_index.numel() else 1)
        # Every bond that arrives at an atom meets every bond that leaves it, but not its own way back.
        meeting = leaving[second]
        arriving = torch.repeat_interleave(torch.arange(len(kept), device=kept.device), meeting)
        rank = torch.arange(len(arriving), device=kept.device) - (meeting.cumsum(0) - meeting)[arriving]
        onward = order[(leaving.cumsum(0) - leaving)[second[arriving]] + rank]
        back = (first[arriving] == second[onward]) & (images[arriving] == -images[onward]).all(dim=1)
        line_graph = torch.stack([arriving[~back], onward[~back]])
    return line_graph, bond_vec[kept], bond_dist[kept], images, bond_vec.new_full((len(kept), 1), -1.0)


_chgnet.create_directed_line_graph = directed_line_graph  # the model looks the function up in its module, and takes no other


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array


ADAPTER = MatGL
