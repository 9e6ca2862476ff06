"""FAIRChem: UMA and eSEN through the package's own predict unit, the neighbour list from vesin.

Tasks, charges and spins mix in one batch: UMA mixes its experts per structure. The package evaluates in its mode for
heterogeneous batches, uncompiled and in full float32 (or float64); its default is made for one trajectory on one GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.graph.radius_graph_pbc import get_max_neighbors_mask
from fairchem.core.units.mlip_unit import InferenceSettings, MLIPPredictUnit, load_predict_unit

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.multiplicity import multiplicity
from forcefields.neighbours import neighbour_images
from forcegate.contract import voigt_from_matrix

CHARGED_TASK = "omol"
"""The only task that was trained with charge and spin. The others were trained with the spin 0, which stands for none."""

PAIRS_PER_EDGE = 192
"""How many of AllScAIP's pairs of atoms, each of which attends to the other, take the memory of one neighbour."""


class FAIRChem(ForceField):
    """A UMA or eSEN checkpoint; heads are UMA's tasks."""

    def __init__(self, unit: MLIPPredictUnit, variant: Variant, elements: tuple[int, ...]) -> None:
        backbone = unit.model.module.backbone
        self.cutoff = float(backbone.cutoff)
        self.elements = elements
        self._unit = unit
        self._task = variant.default_head or _only_task(unit, variant)
        self._most_neighbours = int(backbone.max_neighbors)
        self._dtype = unit.inference_settings.base_precision_dtype
        self._all_to_all = bool(getattr(getattr(backbone, "global_cfg", None), "use_node_path", False))

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> FAIRChem:
        """Builds the model of an inference checkpoint (``.pt``) of the package."""
        kind, _, index = device.partition(":")
        if kind == "cuda":
            # The package takes whichever GPU is current.
            torch.cuda.set_device(int(index or 0))
        settings = InferenceSettings(external_graph_gen=True, activation_checkpointing=False, base_precision_dtype=variant.dtype)
        unit = load_predict_unit(checkpoint, settings, device=kind)
        tasks = {name: frozenset(task.property for task in of_it) for name, of_it in unit.dataset_to_tasks.items()}
        if not set(variant.heads) <= set(tasks):
            raise ValueError(f"the checkpoint has the tasks {sorted(tasks)}, the catalogue says {variant.heads}")
        if len({tasks[name] for name in variant.heads}) > 1:
            # The package concatenates each property over the structures whose task has it: they would be mixed up in a batch.
            raise ValueError(f"the tasks of the checkpoint differ in what they predict: {tasks}")
        if unit.model.module.backbone.regress_config.direct_forces != variant.direct_forces:
            raise ValueError(f"the catalogue says of direct forces {variant.direct_forces}, and the checkpoint does not")
        if getattr(getattr(unit.model.module.backbone, "gnn_cfg", None), "use_sincx_mask", False):
            # Distances of all atoms to all others as they lie in the cell: another energy for another choice of the same cell.
            raise ValueError("the checkpoint's attention depends on distances that are not periodic")
        most = int(unit.model.module.backbone.max_num_elements)
        return cls(unit, variant, tuple(range(1, most)))

    def graph(self, structure: Normalised, head: str) -> Graph:
        """The package's graph of one structure; ``edge_index`` runs from neighbour to atom."""
        task = head or self._task
        atoms, neighbours, images, distances = neighbour_images(structure, self.cutoff)
        edges = torch.from_numpy(np.stack([neighbours, atoms]))
        offsets = torch.from_numpy(images).to(self._dtype)
        number = torch.tensor([len(structure)])
        if len(atoms) and np.bincount(atoms).max() > self._most_neighbours:
            # As the package does it: the nearest ones, and those that are as far as the last of them.
            squares = torch.from_numpy(distances**2).to(self._dtype)
            kept, _ = get_max_neighbors_mask(number, edges[1], squares, self._most_neighbours)
            edges, offsets = edges[:, kept], offsets[kept]
        charged = task == CHARGED_TASK
        data = AtomicData(
            pos=torch.from_numpy(structure.positions).to(self._dtype),
            atomic_numbers=torch.from_numpy(structure.numbers.astype(np.int64)),
            cell=torch.from_numpy(structure.cell[None]).to(self._dtype),
            pbc=torch.ones(1, 3, dtype=torch.bool),
            natoms=number,
            edge_index=edges,
            cell_offsets=offsets,
            nedges=torch.tensor([edges.shape[1]]),
            charge=torch.tensor([round(structure.charge) if charged else 0]),
            spin=torch.tensor([multiplicity(structure) if charged else 0]),
            fixed=torch.zeros(len(structure), dtype=torch.long),
            tags=torch.zeros(len(structure), dtype=torch.long),
            dataset=task,
        )
        cost = edges.shape[1] + (len(structure) ** 2 // PAIRS_PER_EDGE if self._all_to_all else 0)
        return Graph(data, len(structure), cost)

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        """One forward and, for a conservative model, one backward pass over all graphs."""
        answer = self._unit.predict(atomicdata_list_to_batch([graph.payload for graph in graphs]))
        energy, forces = (answer[name].detach().cpu().double().numpy() for name in ("energy", "forces"))
        stress: list[np.ndarray | None] = [None] * len(graphs)
        if "stress" in answer:
            stress = list(voigt_from_matrix(answer["stress"].detach().cpu().double().numpy().reshape(-1, 3, 3)))
        ends = np.cumsum([graph.atoms for graph in graphs])
        return [
            Result(float(energy.reshape(-1)[k]), forces[end - graph.atoms : end], stress[k])
            for k, (graph, end) in enumerate(zip(graphs, ends, strict=True))
        ]


def _only_task(unit: MLIPPredictUnit, variant: Variant) -> str:
    """The task of a model without heads: the checkpoint's only one, or the one that ``options`` names."""
    tasks = sorted(unit.dataset_to_tasks)
    wanted = variant.options.get("task", tasks[0])
    if wanted not in tasks or ("task" not in variant.options and len(tasks) > 1):
        raise ValueError(f"the checkpoint has the tasks {tasks}: name them as heads, or one of them as the option `task`")
    return str(wanted)


ADAPTER = FAIRChem
