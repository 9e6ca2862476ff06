"""The tensor contract: every name, type, shape and unit that crosses a process boundary.

This is the one source for the server's ``config.pbtxt``, for the Python clients and for the model runtime. It needs numpy
alone. The batch dimension counts structures; inside one request structures are padded to the longest with atomic number 0,
and requests of different lengths share a batch (``allow_ragged_batch``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

VERSION: Final = 1
"""Version of this contract; it is written into every model's configuration."""

ATOMS: Final = -1
"""In ``TensorSpec.dims``: an axis that runs over atoms and differs from request to request."""

MAX_BATCH_SIZE: Final = 256
"""Structures that one call of a model may hold. How many of them share a forward pass is the runtime's decision, by cost."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the contract.

    ``dims`` leaves out the batch axis. ``triton_type`` is the name that ``config.pbtxt`` uses, without ``TYPE_``.
    """

    name: str
    triton_type: str
    dims: tuple[int, ...]
    unit: str
    meaning: str
    optional: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype of this tensor."""
        return np.dtype({"FP64": np.float64, "INT32": np.int32, "BOOL": np.bool_}[self.triton_type])

    def shape(self, structures: int, atoms: int) -> tuple[int, ...]:
        """The full shape for ``structures`` structures padded to ``atoms`` atoms."""
        return (structures, *(atoms if dim == ATOMS else dim for dim in self.dims))


INPUTS: Final[tuple[TensorSpec, ...]] = (
    TensorSpec("numbers", "INT32", (ATOMS,), "", "atomic numbers, 0 is padding"),
    TensorSpec("positions", "FP64", (ATOMS, 3), "A", "Cartesian positions"),
    TensorSpec("cell", "FP64", (3, 3), "A", "lattice vectors as rows, zeros where there is none"),
    TensorSpec("pbc", "BOOL", (3,), "", "periodic along each lattice vector"),
    TensorSpec("charge", "FP64", (1,), "e", "total charge", optional=True),
    TensorSpec("spin", "INT32", (1,), "2S+1", "spin multiplicity, 0 is the model's default", optional=True),
)

OUTPUTS: Final[tuple[TensorSpec, ...]] = (
    TensorSpec("energy", "FP64", (1,), "eV", "total energy of the functional that the variant was trained on"),
    TensorSpec("forces", "FP64", (ATOMS, 3), "eV/A", "forces, 0 on padding"),
    TensorSpec("stress", "FP64", (6,), "eV/A^3", "Voigt xx yy zz yz xz xy, +(1/V) dE/de, NaN unless periodic in all three"),
)

EXTRA_OUTPUTS: Final[dict[str, TensorSpec]] = {
    spec.name: spec
    for spec in (
        TensorSpec("energies", "FP64", (ATOMS,), "eV", "energy of each atom, 0 on padding"),
        TensorSpec("magmoms", "FP64", (ATOMS,), "mu_B", "magnetic moment of each atom, 0 on padding"),
        TensorSpec("charges", "FP64", (ATOMS,), "e", "charge of each atom, 0 on padding"),
    )
}
"""Outputs that only some families have; ``family.toml`` lists them by these names."""

HEAD_PARAMETER: Final = "head"
"""Request parameter that names a MACE head, a SevenNet modal or a UMA task."""

VOIGT: Final = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Row and column of the 3x3 stress behind each of the six Voigt components, in ASE's order."""


def output_specs(extra: tuple[str, ...] = ()) -> tuple[TensorSpec, ...]:
    """The outputs of a model that has the named extra ones.

    Raises:
        KeyError: ``extra`` holds a name that the contract does not know.
    """
    return OUTPUTS + tuple(EXTRA_OUTPUTS[name] for name in extra)


def voigt_from_matrix(stress: np.ndarray) -> np.ndarray:
    """Six Voigt components of symmetric 3x3 stress tensors, ``[..., 3, 3] -> [..., 6]``; the off-diagonal pairs are averaged."""
    symmetric = 0.5 * (stress + np.swapaxes(stress, -1, -2))
    return np.stack([symmetric[..., i, j] for i, j in VOIGT], axis=-1)
