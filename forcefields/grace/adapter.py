"""GRACE: SavedModels in TensorFlow, evaluated in shapes of a ladder, so that a stream of different structures is not compiled anew.

A SavedModel knows nothing of structures: it sums over all bonds that it is given. Many structures are one long list of bonds,
whose atomic energies and pair forces are summed up per structure here. XLA compiles for every length of that list, which takes
seconds; so it is padded to one of few lengths, and what was compiled is kept below the state folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.data import atomic_numbers

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.grace.shapes import Ladder, Shape, remember, remembered, rung
from forcefields.grace.tensorflow_settings import prepared
from forcefields.neighbours import neighbour_pairs
from forcefields.runtime.settings import ModelSettings
from forcegate.contract import voigt_from_matrix

INPUTS = {
    "atomic_mu_i": "species",
    "mu_i": "first_species",
    "mu_j": "second_species",
    "ind_i": "first",
    "ind_j": "second",
    "bond_vector": "vectors",
    "batch_tot_nat": "atoms",
    "batch_tot_nat_real": "real_atoms",
}
"""What a SavedModel may ask for, and what it is called here."""
USUAL_BONDS = 48
"""Directed bonds of an atom in a solid, within the usual cutoffs of 6 A."""
FAR = 52.0
"""A, of every component of a padding bond: beyond every cutoff, as in the package."""


@dataclass(frozen=True)
class _Bonds:
    """One structure: species ``[N]`` as the model counts them, directed bonds ``[E]`` and the volume in A^3."""

    species: np.ndarray
    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    volume: float


class Grace(ForceField):
    """A GRACE SavedModel, one or more layers, local or semi-local."""

    pads = True

    def __init__(
        self, model: Any, tensorflow: Any, place: str, symbols: Sequence[str], cutoffs: np.ndarray, full: int, memory: Path
    ) -> None:
        self.cutoff = float(cutoffs.max())
        self.elements = tuple(sorted(atomic_numbers[symbol] for symbol in symbols))
        self.shapes = Ladder()
        self._tf, self._place = tensorflow, place
        # Kept: the signature holds the model's variables by weak references alone.
        self._model = model
        self._signature = model.signatures["compute" if "compute" in model.signatures else "serving_default"]
        self._inputs = {name: spec.dtype for name, spec in self._signature.structured_input_signature[1].items()}
        unknown, missing = set(self._inputs) - set(INPUTS), {"atomic_energy", "total_f", "z_pair_f"} - set(self._outputs())
        if unknown or missing:
            raise ValueError(f"the SavedModel asks for {sorted(unknown)} and does not answer {sorted(missing)}")
        self._species = np.full(119, -1, dtype=np.int32)
        self._species[[atomic_numbers[symbol] for symbol in symbols]] = np.arange(len(symbols))
        self._cutoffs = cutoffs if (cutoffs < self.cutoff).any() else None
        self._memory = memory
        usual = [Shape(1, 1), *(Shape(atoms, USUAL_BONDS * atoms) for atoms in (full // 16, full // 4, full))]
        for shape in dict.fromkeys([*map(rung, usual), *remembered(memory)]):
            for _ in range(2):  # the second one tells what an evaluation takes without compiling
                self._compute([self._nothing(Shape(shape.atoms - 1, shape.edges))], shape)

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Grace:
        """Reads a SavedModel, a folder, and compiles it for a few sizes up to a full forward pass, and those used most before."""
        settings = ModelSettings.from_environment()
        tensorflow = prepared(settings.state, settings.matmul_precision)
        kind, _, index = device.partition(":")
        if kind == "cuda" and not tensorflow.config.list_physical_devices("GPU"):
            raise ValueError("the TensorFlow of this environment is built for the CPU")
        place = f"/GPU:{index or 0}" if kind == "cuda" else "/CPU:0"
        with tensorflow.device(place):
            model = tensorflow.saved_model.load(str(checkpoint))
        if (found := _dtype(tensorflow, checkpoint)) != variant.dtype:
            raise ValueError(f"the weights are {found}, the catalogue says {variant.dtype}")
        symbols, cutoffs = _known(checkpoint, model)
        memory = settings.state / "shapes" / f"{variant.name}-{variant.dtype}.json"
        return cls(model, tensorflow, place, symbols, cutoffs, variant.packing.atoms, memory)

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """All directed bonds within the cutoff, which may depend on the two elements."""
        species = self._species[structure.numbers]
        first, second, vectors = neighbour_pairs(structure, self.cutoff)
        if self._cutoffs is not None:
            near = np.linalg.norm(vectors, axis=1) < self._cutoffs[species[first], species[second]]
            first, second, vectors = first[near], second[near], vectors[near]
        bonds = _Bonds(species, first.astype(np.int32), second.astype(np.int32), vectors, abs(np.linalg.det(structure.cell)))
        return Graph(bonds, len(structure), len(first))

    def padded(self, atoms: int, edges: int) -> tuple[int, int]:
        """The shape at hand for them."""
        return self.shapes.at_hand(Shape(atoms, edges))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One pass over all bonds, summed up per structure."""
        parts = [graph.payload for graph in graphs]
        atoms, edges = np.array([graph.atoms for graph in graphs]), np.array([graph.edges for graph in graphs])
        shape = self.shapes.fitting(Shape(int(atoms.sum()), int(edges.sum())))
        new = shape not in self.shapes.compiled
        answer = self._compute(parts, shape)
        if new:
            remember(self._memory, self.shapes.usual())
        energies = np.split(answer["atomic_energy"].reshape(-1)[: atoms.sum()], np.cumsum(atoms)[:-1])
        forces = np.split(answer["total_f"][: atoms.sum()], np.cumsum(atoms)[:-1])
        pairs = np.split(answer["z_pair_f"][: edges.sum()], np.cumsum(edges)[:-1])
        return [
            Result(
                float(energy.sum()),
                force,
                # The force of a bond is -dE/dr, so the virial sum r (dE/dr) is minus the sum over r f.
                voigt_from_matrix(-(part.vectors.T @ pair) / part.volume),
                {"energies": energy} if "energies" in outputs else {},
            )
            for part, energy, force, pair in zip(parts, energies, forces, pairs, strict=True)
        ]

    def _compute(self, parts: Sequence[_Bonds], shape: Shape) -> dict[str, np.ndarray]:
        """The model's answer to all bonds, padded to ``shape``; padding atoms are last, and padding bonds are theirs."""
        starts = np.cumsum([0, *(len(part.species) for part in parts)])
        atoms, edges = int(starts[-1]), sum(len(part.first) for part in parts)
        species = np.concatenate([part.species for part in parts])
        first = np.concatenate([part.first + start for part, start in zip(parts, starts, strict=False)])
        second = np.concatenate([part.second + start for part, start in zip(parts, starts, strict=False)])
        values = {
            "species": _padded(species, shape.atoms, species[0]),
            "first_species": _padded(species[first], shape.edges, species[0]),
            "second_species": _padded(species[second], shape.edges, species[0]),
            "first": _padded(first, shape.edges, shape.atoms - 1),
            "second": _padded(second, shape.edges, shape.atoms - 1),
            "vectors": _padded(np.concatenate([part.vectors for part in parts]), shape.edges, FAR),
            "atoms": np.array(shape.atoms),
            "real_atoms": np.array(atoms),
        }
        assert atoms < shape.atoms, "a padding bond needs a padding atom"
        assert edges <= shape.edges, "the ladder fits"
        begun = time.perf_counter()
        with self._tf.device(self._place):
            answer = self._signature(
                **{name: self._tf.constant(values[INPUTS[name]], dtype=dtype) for name, dtype in self._inputs.items()}
            )
        found = {name: answer[name].numpy().astype(np.float64) for name in ("atomic_energy", "total_f", "z_pair_f")}
        self.shapes.took(shape, time.perf_counter() - begun)
        return found

    def _outputs(self) -> Sequence[str]:
        return list(self._signature.structured_outputs)

    def _nothing(self, shape: Shape) -> _Bonds:
        """A structure of ``shape`` without meaning, to be compiled for."""
        ends = np.zeros(shape.edges, dtype=np.int32)
        return _Bonds(np.zeros(shape.atoms, dtype=np.int32), ends, ends, np.full((shape.edges, 3), 1.0), 1.0)


def _padded(array: np.ndarray, length: int, value: float) -> np.ndarray:
    return np.concatenate([array, np.full((length - len(array), *array.shape[1:]), value, dtype=array.dtype)])


def _dtype(tensorflow: Any, checkpoint: Path) -> str:
    """The type of most weights. It was chosen at the export: inputs and outputs are float64 always."""
    reader = tensorflow.train.load_checkpoint(str(checkpoint / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    sizes = {"float32": 0, "float64": 0}
    for name, dtype in reader.get_variable_to_dtype_map().items():
        if dtype.name in sizes:
            sizes[dtype.name] += int(np.prod(shapes[name]))
    return max(sizes, key=lambda name: sizes[name])


def _known(checkpoint: Path, model: Any) -> tuple[list[str], np.ndarray]:
    """The elements in the model's order, and the cutoffs ``[K, K]`` in A between them."""
    file = checkpoint / "metadata.yaml"
    if file.is_file():
        data = yaml.safe_load(file.read_text())
        symbols = [str(symbol) for symbol in data["chemical_symbols"]]
        matrix = data.get("cutoff_matrix", data["cutoff"])
    else:
        # Exports of early 2025 have no such file; the package knows where else to look, and greets on standard output.
        from contextlib import redirect_stdout
        from sys import stderr

        with redirect_stdout(stderr):
            from tensorpotential.tpmodel import extract_cutoff_and_elements, extract_cutoff_matrix

        cutoff, names, indices = extract_cutoff_and_elements(model.instructions)
        symbols = [str(symbol) for _, symbol in sorted(zip(indices, names, strict=True))]
        matrix = extract_cutoff_matrix(model.instructions)
        matrix = cutoff if matrix is None else matrix
    cutoffs = np.broadcast_to(np.array(matrix, dtype=float), (len(symbols), len(symbols)))
    return symbols, np.array(cutoffs)


ADAPTER = Grace
