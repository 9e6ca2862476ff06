"""SevenNet: true batching through PyTorch Geometric, the neighbour list from vesin.

The package's own ASE calculator evaluates one structure at a time and clamps the volume of a molecule, which makes its stress
meaningless; here every structure arrives periodic, and stress is masked by the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sevenn._keys as KEY
from sevenn.atom_graph_data import AtomGraphData
from sevenn.util import load_checkpoint
from torch_geometric.data import Batch

from forcefields.base import ForceField, Graph, Result
from forcefields.catalogue import Variant
from forcefields.neighbours import neighbour_pairs
from forcefields.transfer import to_device
from forcegate.structure import Structure

FROM_PACKAGE = [0, 1, 2, 4, 5, 3]
"""SevenNet orders stress xx yy zz xy yz zx with the opposite sign; ASE wants xx yy zz yz xz xy."""


class SevenNet(ForceField):
    """A SevenNet checkpoint; heads are its modals."""

    takes_cuequivariance = True

    def __init__(self, model: Any, cutoff: float, elements: tuple[int, ...], device: str) -> None:
        self.cutoff, self.elements = cutoff, elements
        self._model, self._device = model, device

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> SevenNet:
        """Builds the model of a ``.pth`` checkpoint of the package."""
        return cls._load(checkpoint, variant, device, cuequivariance=False)

    @classmethod
    def load_with_cuequivariance(cls, checkpoint: Path, variant: Variant, device: str) -> SevenNet:
        """As ``load``; the package replaces its convolutions."""
        return cls._load(checkpoint, variant, device, cuequivariance=True)

    @classmethod
    def _load(cls, checkpoint: Path, variant: Variant, device: str, cuequivariance: bool) -> SevenNet:
        loaded = load_checkpoint(str(checkpoint))
        model = loaded.build_model(enable_cueq=cuequivariance)
        model.set_is_batch_data(True)
        model.to(device).eval().requires_grad_(False)
        heads = tuple(model.modal_map or ())
        if sorted(heads) != sorted(variant.heads):
            raise ValueError(f"the checkpoint has the modals {heads}, the catalogue says {variant.heads}")
        return cls(model, float(loaded.config[KEY.CUTOFF]), tuple(sorted(loaded.config[KEY.TYPE_MAP])), device)

    def graph(self, structure: Structure, head: str) -> Graph:
        """The package's graph of one structure."""
        first, second, vectors = neighbour_pairs(structure, self.cutoff)
        data = AtomGraphData.from_numpy_dict(
            {
                KEY.NODE_FEATURE: structure.numbers,
                KEY.ATOMIC_NUMBERS: structure.numbers,
                KEY.POS: structure.positions,
                KEY.EDGE_IDX: np.stack([first, second]),
                KEY.EDGE_VEC: vectors,
                KEY.CELL_VOLUME: np.array(abs(np.linalg.det(structure.cell))),
                KEY.NUM_ATOMS: np.array(len(structure)),
                KEY.INFO: {},
            }
        )
        if head:
            data[KEY.DATA_MODALITY] = head
        return Graph(data, len(structure), len(first))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        """One forward and one backward pass over all graphs."""
        batch = to_device(Batch.from_data_list([graph.payload for graph in graphs]), self._device)
        answer = self._model(batch)
        energy = answer[KEY.PRED_TOTAL_ENERGY].detach().cpu().double().numpy().reshape(-1)
        forces = answer[KEY.PRED_FORCE].detach().cpu().double().numpy()
        stress = -answer[KEY.PRED_STRESS].detach().cpu().double().numpy().reshape(-1, 6)[:, FROM_PACKAGE]
        ends = np.cumsum([graph.atoms for graph in graphs])
        return [
            Result(float(energy[k]), forces[end - graph.atoms : end], stress[k])
            for k, (graph, end) in enumerate(zip(graphs, ends, strict=True))
        ]


ADAPTER = SevenNet
