"""MACE: true batching through one disconnected graph, the neighbour list from vesin.

The package's ASE calculator evaluates one structure at a time and divides the stress of a slab by the volume of a cell that it
makes up; here every structure arrives periodic, and stress is masked by the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sys import stderr
from typing import Any

import numpy as np
import torch

# Before any e3nn, whose 0.4.4 cannot read its own constants unless this package has prepared torch.load. It tells standard
# output, which belongs to whoever runs us, that there is no cuEquivariance.
with redirect_stdout(stderr):
    import mace.modules  # noqa: F401  # the classes that a checkpoint is made of

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.multiplicity import multiplicity
from forcefields.neighbours import neighbour_images
from forcefields.transfer import to_device
from forcegate.contract import voigt_from_matrix
from forcegate.errors import ChargeNotSupported, SpinNotSupported

GRADIENTS = frozenset({"forces", "stress"})
EMBEDDED = {"total_charge", "total_spin"}
"""What of a whole structure a checkpoint may have been trained to know, by the package's names."""


@dataclass(frozen=True)
class _Atoms:
    species: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    images: np.ndarray
    head: int
    charge: float
    spin: float
    periodic: bool


class _PreciseRepulsion(torch.nn.Module):
    """The repulsion of the package, in float64 whatever the model's precision is.

    Its envelope is 1 - 21 x^5 + 35 x^6 - 15 x^7: near x = 1, that is two atoms at the sum of their covalent radii, nearly all
    digits cancel. In float32 that leaves noise of 0.001 eV/A in the forces of a water molecule.
    """

    def __init__(self, repulsion: Any) -> None:
        super().__init__()
        self._repulsion = repulsion.double()

    def forward(self, lengths: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Energy of each atom, eV, in the type of ``lengths``."""
        energies: torch.Tensor = self._repulsion(lengths.double(), *others)
        return energies.to(lengths.dtype)


class MACE(ForceField):
    """A MACE checkpoint, evaluated in ``float32`` or ``float64`` as the variant says."""

    takes_cuequivariance = takes_compile = True

    def __init__(self, model: Any, variant: Variant, device: str) -> None:
        self.cutoff = round(float(model.r_max), 6)
        numbers = model.atomic_numbers.cpu().numpy()
        self.elements = tuple(int(number) for number in np.sort(numbers))
        self._species = np.full(int(numbers.max()) + 1, -1)
        self._species[numbers] = np.arange(len(numbers))
        self._heads = _heads(model, variant)
        self._embedded: dict[str, dict[str, Any]] = dict(getattr(model, "embedding_specs", None) or {})
        known = self._known(model)
        if not known <= EMBEDDED or (variant.uses_charge, variant.uses_spin) != tuple(name in known for name in sorted(EMBEDDED)):
            raise ValueError(f"the checkpoint knows {sorted(known)}, which is not what the catalogue says")
        self._dtype: torch.dtype = getattr(torch, variant.dtype)
        repulsion = deepcopy(getattr(model, "pair_repulsion_fn", None))
        self._model, self._device = model.to(device, self._dtype).eval().requires_grad_(False), device
        if repulsion is not None:
            model.pair_repulsion_fn = _PreciseRepulsion(repulsion.to(device))

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> MACE:
        """Unpickles a ``.model`` checkpoint of the package, which holds the whole model."""
        with redirect_stdout(stderr), _archives_on(device):
            model = torch.load(checkpoint, map_location=device, weights_only=False)
        if type(model).__name__ == "PolarMACE":
            from forcefields.mace.polar import Polar

            return Polar(model, variant, device)
        return cls(model, variant, device)

    @classmethod
    def load_with_cuequivariance(cls, checkpoint: Path, variant: Variant, device: str) -> MACE:
        """The package makes the same model of cuEquivariance's layers and moves the weights. POLAR is left as it is."""
        with redirect_stdout(stderr), _archives_on(device):
            model = torch.load(checkpoint, map_location=device, weights_only=False)
        if type(model).__name__ == "PolarMACE":
            return cls.load(checkpoint, variant, device)
        return cls(converted(model, variant, device), variant, device)

    def compile(self) -> None:
        """Compiles the interactions and products, in which nearly all of the time goes, each by itself.

        The package compiles the whole model with its gradient, for one padded size at a time. As they were loaded these layers are
        TorchScript, which cannot be compiled: the package makes them anew without it. The gate compares with the energies before.
        """
        if type(self._model).__name__ != "ScaleShiftMACE":
            raise ValueError(f"MACE's package cannot make a {type(self._model).__name__} anew")
        with redirect_stdout(stderr):
            from mace.tools.compile import prepare
            from mace.tools.scripts_utils import extract_model

            plain = (
                prepare(extract_model)(model=self._model, map_location=self._device).to(self._dtype).eval().requires_grad_(False)
            )
        for name in ("interactions", "products"):
            layers = getattr(plain, name)
            _same_weights(getattr(self._model, name), layers)
            setattr(self._model, name, layers)
            for layer in layers:
                layer.compile(dynamic=True)

    def _known(self, model: Any) -> set[str]:  # noqa: ARG002
        """What the model knows of a structure besides its atoms."""
        return set(self._embedded)

    def graph(self, structure: Normalised, head: str) -> Graph:
        """Species, positions and neighbours of one structure.

        Raises:
            ChargeNotSupported, SpinNotSupported: a value outside of those that the checkpoint's embedding has a row for; on a
                GPU it would end the process.
        """
        charge, spin = structure.charge, multiplicity(structure)
        if not self._in_range("total_charge", charge):
            raise ChargeNotSupported(f"The model was not made for a charge of {charge:g} e.", "Give a whole number near 0.")
        if not self._in_range("total_spin", spin):
            raise SpinNotSupported(f"The model was not made for a multiplicity of {spin}.", "Give a small 2S+1.")
        senders, receivers, images, _ = neighbour_images(structure, self.cutoff)
        atoms = _Atoms(
            self._species[structure.numbers],
            structure.positions,
            structure.cell,
            senders,
            receivers,
            images,
            self._heads[head],
            charge,
            spin,
            structure.original is None or bool(structure.original.pbc.any()),
        )
        return Graph(atoms, len(structure), len(senders))

    def _in_range(self, name: str, value: float) -> bool:
        spec = self._embedded.get(name)
        if spec is None or spec["type"] != "categorical":
            return True
        return float(value).is_integer() and 0 <= value + spec.get("offset", 0) < spec["num_classes"]

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward and, where forces or stress are wanted, one backward pass over all graphs."""
        forces, stress = bool(outputs & GRADIENTS), "stress" in outputs
        with torch.set_grad_enabled(forces):
            answer = self._model(self._batch(graphs), compute_force=forces, compute_stress=stress)
        results = [Result(float(energy)) for energy in _array(answer["energy"])]
        ends = np.cumsum([graph.atoms for graph in graphs])[:-1]
        if forces:
            for result, rows in zip(results, np.split(_array(answer["forces"]), ends), strict=True):
                result.forces = rows
        if stress:
            for result, matrix in zip(results, _array(answer["stress"]), strict=True):
                result.stress = voigt_from_matrix(matrix)
        if "energies" in outputs:
            for result, rows in zip(results, np.split(_array(answer["node_energy"]), ends), strict=True):
                result.extra["energies"] = rows
        return results

    def _batch(self, graphs: Sequence[Graph]) -> dict[str, torch.Tensor]:
        """What the model's ``forward`` reads, of all graphs in one; it writes into this dictionary, which is new each time."""
        parts: list[_Atoms] = [graph.payload for graph in graphs]
        counts = np.array([graph.atoms for graph in graphs])
        starts = np.concatenate([[0], np.cumsum(counts)])
        shifts = np.concatenate([part.images @ part.cell for part in parts])
        edges = np.concatenate(
            [np.stack([part.senders, part.receivers]) + start for part, start in zip(parts, starts, strict=False)], 1
        )
        species = to_device(torch.from_numpy(np.concatenate([part.species for part in parts])), self._device)
        return {
            "node_attrs": torch.nn.functional.one_hot(species, len(self.elements)).to(self._dtype),
            "positions": self._floats(np.concatenate([part.positions for part in parts])),
            "cell": self._floats(np.concatenate([part.cell for part in parts])),
            "shifts": self._floats(shifts),
            "unit_shifts": self._floats(np.concatenate([part.images for part in parts])),
            "edge_index": to_device(torch.from_numpy(edges), self._device),
            "batch": to_device(torch.from_numpy(np.repeat(np.arange(len(parts)), counts)), self._device),
            "ptr": to_device(torch.from_numpy(starts), self._device),
            "head": to_device(torch.tensor([part.head for part in parts]), self._device),
            "total_charge": self._floats([part.charge for part in parts]),
            "total_spin": self._floats([part.spin for part in parts]),
        }

    def _floats(self, values: Any) -> torch.Tensor:
        # Rounded first: half as much to copy.
        return to_device(torch.as_tensor(np.asarray(values, dtype=np.float64)).to(self._dtype), self._device)


def converted(model: Any, variant: Variant, device: str) -> Any:
    """The model in cuEquivariance's layers."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        # The package takes whichever GPU is current, and fuses convolutions for the name without an index alone.
        torch.cuda.set_device(int(index or 0))
    before = torch.get_default_dtype()
    try:
        with redirect_stdout(stderr):
            from mace.cli.convert_e3nn_cueq import run

            # The package builds in the default type, which it sets to the weights'.
            return run(model.to(getattr(torch, variant.dtype)), device=kind)
    finally:
        torch.set_default_dtype(before)


def _same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Makes sure that layers made anew hold every weight: the package loads what it finds and is silent about the rest."""
    found = other.state_dict()
    for name, weight in one.state_dict().items():
        # Flags of older versions: which weights are zero.
        if not name.endswith("_zeroed") and (name not in found or not torch.equal(found[name].to(weight), weight)):
            raise ValueError(f"the layers that MACE's package made anew have another {name}")


@contextmanager
def _archives_on(device: str) -> Iterator[None]:
    """Puts the TorchScript archives inside of a checkpoint where they belong.

    e3nn leaves them on the device they were saved from, which for MACE-ANI-CC is a GPU: without one it could not be loaded.
    """
    load = torch.jit.load
    torch.jit.load = partial(load, map_location=device)
    try:
        yield
    finally:
        torch.jit.load = load


def _heads(model: Any, variant: Variant) -> dict[str, int]:
    """Index by name. A checkpoint with one head has no name for it: its head is the empty name."""
    known = list(getattr(model, "heads", None) or ["Default"])
    if variant.heads:
        if missing := set(variant.heads) - set(known):
            raise ValueError(f"the checkpoint has the heads {known}, not {sorted(missing)}")
        return {name: known.index(name) for name in variant.heads}
    # As the package's calculator chooses: fine-tuning with replay leaves the old head beside the new one.
    chosen = [0] if len(known) == 1 else [index for index, name in enumerate(known) if name.lower() == "default"]
    if not chosen:
        raise ValueError(f"the checkpoint has the heads {known}, the catalogue none")
    return {"": chosen[0]}


def _array(tensor: torch.Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().cpu().double().numpy()
    return found


ADAPTER = MACE
