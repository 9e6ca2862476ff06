"""Orb: true batching; neighbours from vesin, capped as the model was trained.

A checkpoint holds weights alone, so ``options`` in family.toml name the package's architecture, its arguments and the cap on
neighbours. Compiled where the operator wants it, all but the small heads; the package would compile on the first structures, which
takes minutes. The precision of float32 products is the runtime's (forcefields/runtime/arithmetic.py); the package's own default
lets a GPU round to TensorFloat-32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from orb_models.forcefield import pretrained
from orb_models.forcefield.atomic_system import SystemConfig
from orb_models.forcefield.base import AtomGraphs
from orb_models.forcefield.featurization_utilities import compute_pbc_radius_graph, map_to_pbc_cell
from orb_models.forcefield.load import load_forcefield_state_dict

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.multiplicity import multiplicity
from forcefields.neighbours import neighbour_images
from forcefields.transfer import to_device
from forcegate.contract import voigt_from_matrix
from forcegate.structure import Structure

EQUAL = 1e-4
"""A. Neighbours whose distances differ by less are equally near: float32 positions cannot tell which is to be left out."""


@dataclass(frozen=True)
class _Neighbourhood:
    structure: Normalised
    first: np.ndarray
    second: np.ndarray
    images: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        positions = self.structure.positions
        return positions[self.second] - positions[self.first] + self.images @ self.structure.cell


class Orb(ForceField):
    """An Orb checkpoint with conservative or direct forces."""

    takes_compile = True

    def __init__(self, model: Any, variant: Variant, device: str) -> None:
        self.cutoff = float(model.system_config.radius)
        # The embedding takes any element; the catalogue's are those of the training set.
        self.elements = variant.elements
        self._model, self._device = model, device
        self._dtype = getattr(torch, variant.dtype)
        self._most = int(model.system_config.max_num_neighbors)
        # In float32, as the package adds them, totals of all-electron energies jump by more than a chemical bond changes.
        self._isolated = _array(model.heads["energy"].reference.linear.weight).reshape(-1)
        self._conditioned = model.model.conditioner is not None
        self._torque_free = not variant.direct_forces or not model.heads["forces"].remove_torque_for_nonpbc_systems
        self._evaluate = self._direct if variant.direct_forces else self._conservative

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Orb:
        """Builds the architecture that the catalogue names and fills it with the weights of a ``.ckpt`` file."""
        torch.set_default_dtype(torch.float32)
        model = architecture(variant)
        # A setting of the whole process, which the package leaves no choice about.
        torch.set_default_dtype(getattr(torch, variant.dtype))
        model.to(getattr(torch, variant.dtype))
        keys = load_forcefield_state_dict(model, torch.load(checkpoint, map_location="cpu", weights_only=True))
        # The package takes it for granted that a missing head is going to be trained.
        if missing := [key for key in keys.missing_keys if ".mlp." in key]:
            raise ValueError(f"the checkpoint is of another architecture than {variant.name}: it lacks {missing[0]}")
        model.to(device).eval().requires_grad_(False)
        return cls(model, variant, device)

    def compile(self) -> None:
        """With the package's own options. It compiles the whole model, of which only the network is used here."""
        self._model.model.compile(mode="default", dynamic=True)

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """The nearest neighbours of every atom within the cutoff, at most as many as the model was trained with."""
        first, second, images, distance = neighbour_images(structure, self.cutoff)
        order = np.lexsort((distance, first))
        first, second, images, distance = first[order], second[order], images[order], distance[order]
        counts = np.bincount(first, minlength=len(structure))
        if counts.max(initial=0) > self._most:
            rank = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
            kept = rank < self._most
            last, next_one = distance[rank == self._most - 1], distance[rank == self._most]
            crowded = counts[counts >= self._most] > self._most
            first, second, images, distance = first[kept], second[kept], images[kept], distance[kept]
            if (next_one - last[crowded] < EQUAL).any():
                second, images = self._as_the_package(structure, first, distance) or (second, images)
        return Graph(_Neighbourhood(structure, first, second, images), len(structure), len(first))

    def _as_the_package(
        self, structure: Normalised, first: np.ndarray, distance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Second atoms and images with the package's choice among equally near neighbours, as in a perfect crystal.

        The energy depends on the choice, which is made of the structure as it was sent. The package's search does not find all
        neighbours in strongly skewed cells; None then.
        """
        original = structure.original
        searched: Structure = structure if original is None or original.pbc.any() != original.pbc.all() else original
        positions, cell = torch.from_numpy(searched.positions), torch.from_numpy(searched.cell * searched.pbc[:, None])
        edges, vectors, _ = compute_pbc_radius_graph(
            positions=map_to_pbc_cell(positions, cell) if searched.pbc.any() else positions,
            cell=cell,
            pbc=torch.from_numpy(searched.pbc),
            radius=self.cutoff,
            max_number_neighbors=self._most,
            edge_method="knn_scipy",
            half_supercell=False,
            device="cpu",
            float_dtype=self._dtype,
        )
        if not np.array_equal(edges[0].numpy(), first) or not np.allclose(vectors.norm(dim=1).numpy(), distance, atol=1e-3):
            return None
        second = edges[1].numpy()
        apart = structure.positions[second] - structure.positions[first]
        return second, np.rint((vectors.numpy() - apart) @ np.linalg.inv(structure.cell)).astype(np.int64)

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward pass over all graphs and, for conservative forces or stress, one backward pass."""
        energy, forces, stress = self._evaluate(self._batch(graphs), bool(outputs & {"forces", "stress"}))
        isolated = [self._isolated[graph.payload.structure.numbers].sum() for graph in graphs]
        results = [Result(float(value)) for value in _array(energy) + isolated]
        if forces is not None:
            ends = np.cumsum([graph.atoms for graph in graphs])
            for result, graph, end in zip(results, graphs, ends, strict=True):
                result.forces = self._of_molecule(graph.payload.structure, _array(forces)[end - graph.atoms : end])
        if stress is not None:
            for result, graph, tensor in zip(results, graphs, _array(stress), strict=True):
                volume = abs(np.linalg.det(graph.payload.structure.cell))
                result.stress = voigt_from_matrix(tensor / volume) if tensor.shape == (3, 3) else tensor
        return results

    def _conservative(self, batch: AtomGraphs, gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Energies, forces and virials. The package's own ``predict`` differentiates always, and by rotations too."""
        with torch.set_grad_enabled(gradients):
            strain = None
            if gradients:
                batch.edge_features["vectors"], strain, _ = batch.compute_differentiable_edge_vectors(use_rotation=False)
            energy = self._interaction(self._model.model(batch)["node_features"], batch)
            if self._model.pair_repulsion:
                energy = energy + self._model.pair_repulsion_fn(batch)["energy"]
            if strain is None:
                return energy, None, None
            force, virial = torch.autograd.grad(energy.sum(), [batch.positions, strain])
        return energy, -force, virial if self._model.has_stress else None

    def _direct(self, batch: AtomGraphs, gradients: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Energies, forces and stresses, each from its own head."""
        with torch.inference_mode():
            features = self._model.model(batch)["node_features"]
            found = {"energy": self._interaction(features, batch)}
            if gradients:
                wanted = [name for name in ("forces", "stress") if name in self._model.heads]
                found |= {name: self._model.heads[name].predict(features, batch) for name in wanted}
            if self._model.pair_repulsion:
                repulsion = self._model.pair_repulsion_fn(batch)
                found = {name: value + repulsion[name] for name, value in found.items()}
        return found["energy"], found.get("forces"), found.get("stress")

    def _interaction(self, features: torch.Tensor, batch: AtomGraphs) -> torch.Tensor:
        """Energies without those of the isolated atoms."""
        head = self._model.heads["energy"]
        energy: torch.Tensor = head.normalizer.inverse(head(features, batch)).reshape(-1)
        return energy * batch.n_node if head.atom_avg else energy

    def _of_molecule(self, structure: Normalised, forces: np.ndarray) -> np.ndarray:
        """Direct forces do not turn a molecule as a whole: the package's correction, but in float64 and per structure."""
        original = structure.original
        if self._torque_free or original is None or original.pbc.any():
            return forces
        arms = original.positions - original.positions.mean(axis=0)
        torque = np.cross(arms, forces).sum(axis=0)
        inertia = np.sum(arms**2) * np.eye(3) - arms.T @ arms
        # The inertia of a single atom or of atoms on a line has no inverse.
        return forces - np.cross(np.linalg.pinv(inertia, rcond=1e-10, hermitian=True) @ torque, arms)

    def _batch(self, graphs: Sequence[Graph]) -> AtomGraphs:
        """The package's graph of all structures, one after the other."""
        parts: list[_Neighbourhood] = [graph.payload for graph in graphs]
        atoms, edges = [graph.atoms for graph in graphs], [graph.edges for graph in graphs]
        shift = np.repeat(np.cumsum([0, *atoms[:-1]]), edges)
        numbers = self._whole(np.concatenate([part.structure.numbers for part in parts]))
        system = {
            "cell": self._real(np.stack([part.structure.cell for part in parts])),
            "pbc": torch.ones((len(parts), 3), dtype=torch.bool, device=self._device),
        }
        if self._conditioned:
            system["total_charge"] = self._real([part.structure.charge for part in parts])
            system["total_spin"] = self._real([multiplicity(part.structure) for part in parts])
        return AtomGraphs(
            senders=self._whole(np.concatenate([part.first for part in parts]) + shift),
            receivers=self._whole(np.concatenate([part.second for part in parts]) + shift),
            n_node=self._whole(atoms),
            n_edge=self._whole(edges),
            node_features={
                "positions": self._real(np.concatenate([part.structure.positions for part in parts])),
                "atomic_numbers": numbers,
                "atomic_numbers_embedding": torch.nn.functional.one_hot(numbers, num_classes=118).to(self._dtype),
            },
            edge_features={
                "vectors": self._real(np.concatenate([part.vectors for part in parts])),
                "unit_shifts": self._real(np.concatenate([part.images for part in parts])),
            },
            system_features=system,
            node_targets={},
            edge_targets={},
            system_targets={},
            system_id=None,
            fix_atoms=None,
            tags=None,
            radius=self.cutoff,
            max_num_neighbors=self._whole([self._most] * len(parts)),
        )

    def _whole(self, values: Any) -> torch.Tensor:
        return to_device(torch.as_tensor(np.asarray(values), dtype=torch.long), self._device)

    def _real(self, values: Any) -> torch.Tensor:
        return to_device(torch.as_tensor(np.asarray(values), dtype=self._dtype), self._device)


def architecture(variant: Variant) -> Any:
    """The package's model of a variant, with random weights."""
    build = getattr(pretrained, f"{variant.options['architecture']}_architecture")
    configuration = SystemConfig(radius=variant.cutoff, max_num_neighbors=variant.options["neighbours"])
    return build(device="cpu", system_config=configuration, **variant.options.get("arguments", {}))


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array


ADAPTER = Orb
