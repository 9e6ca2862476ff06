"""MatterSim: true batching through PyTorch Geometric, neighbours from vesin, forces and strains differentiated once.

Loading through the package's ``Potential`` would make folders in the user's home, print to standard output and set up an
optimiser; only its network is used here. Its stress has the wrong sign in a left-handed cell; here every cell is right-handed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

import numpy as np
import torch
from torch_geometric.data import Batch, Data

# On import the package sets up a logger on what is standard output then, which belongs to whoever runs us.
with redirect_stdout(stderr):
    from mattersim.datasets.utils.convertor import compute_threebody_indices
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
    from mattersim.forcefield.potential import batch_to_dict

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.neighbours import neighbour_images
from forcegate.contract import voigt_from_matrix


class MatterSim(ForceField):
    """A MatterSim checkpoint, which is an M3GNet; float32 alone."""

    def __init__(self, model: M3Gnet, elements: tuple[int, ...], device: str) -> None:
        self.cutoff = float(model.model_args["cutoff"])
        self.elements = elements
        self._model, self._device = model, device

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> MatterSim:
        """Builds the model of a ``.pth`` checkpoint of the package, without its training state."""
        # Tensors and plain containers are all there is in it: nothing of the file is run.
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model = M3Gnet(device=device, **saved["model_args"])
        found = model.load_state_dict(saved["model"], strict=False)
        # The package would leave a parameter that is missing at its random value, in silence.
        if missing := sorted(set(found.missing_keys) & {name for name, _ in model.named_parameters()}):
            raise ValueError(f"the checkpoint has no {', '.join(missing[:3])}")
        model.to(device).eval().requires_grad_(False)
        # The checkpoint holds no list of elements; the catalogue's are the paper's, and the network has a place for each.
        return cls(model, tuple(number for number in variant.elements if number <= model.max_z), device)

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """The package's graph of one structure: pairs, and pairs of pairs within the smaller cutoff."""
        centres, neighbours, images, distances = neighbour_images(structure, self.cutoff)
        triples, per_pair, _, _ = compute_threebody_indices(
            np.stack([centres, neighbours], axis=1),
            distances,
            len(structure),
            structure.numbers,
            self._model.model_args["threebody_cutoff"],
        )
        data = Data(
            num_nodes=len(structure),
            num_atoms=len(structure),
            num_bonds=len(centres),
            num_three_body=len(triples),
            atom_attr=torch.tensor(structure.numbers, dtype=torch.float32).unsqueeze(-1),
            atom_pos=torch.tensor(structure.positions, dtype=torch.float32),
            cell=torch.tensor(structure.cell, dtype=torch.float32).unsqueeze(0),
            edge_index=torch.from_numpy(np.stack([centres, neighbours])),
            pbc_offsets=torch.tensor(images, dtype=torch.float32),
            three_body_indices=torch.from_numpy(triples).long(),
            num_triple_ij=torch.from_numpy(per_pair).long().unsqueeze(-1),
        )
        return Graph(data, len(structure), len(centres))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward and, where forces or stress are wanted, one backward pass over all graphs."""
        batch = batch_to_dict(Batch.from_data_list([graph.payload for graph in graphs]), device=self._device)
        gradients = bool(outputs & {"forces", "stress"})
        positions, cells = batch["atom_pos"], batch["cell"]
        strain = torch.zeros_like(cells)
        with torch.set_grad_enabled(gradients):
            if gradients:
                positions.requires_grad_(True)
                strain.requires_grad_(True)
                deformation = torch.eye(3, device=strain.device) + strain
                batch["cell"] = cells @ deformation
                batch["atom_pos"] = torch.einsum("ni,nij->nj", positions, deformation[batch["batch"]])
            energy = self._model(batch)
        results = [Result(float(value)) for value in energy.detach().cpu().double()]
        if gradients:
            forces, virials = torch.autograd.grad(energy.sum(), [positions, strain])
            stresses = virials.cpu().double().numpy() / np.linalg.det(cells.cpu().double().numpy())[:, None, None]
            ends = np.cumsum([graph.atoms for graph in graphs])[:-1]
            rows = np.split(-forces.cpu().double().numpy(), ends)
            for result, force, stress in zip(results, rows, stresses, strict=True):
                result.forces, result.stress = force, voigt_from_matrix(stress)
        return results


ADAPTER = MatterSim
