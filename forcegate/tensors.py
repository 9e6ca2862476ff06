"""``list[Structure]`` <-> the padded tensors of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from forcegate.contract import INPUTS
from forcegate.structure import Structure


def pack(structures: Sequence[Structure]) -> dict[str, np.ndarray]:
    """Padded input tensors for one request.

    Every tensor is always there, the optional ones too: Triton does not put requests with different sets of tensors into one
    batch.

    Args:
        structures: at least one.

    Returns:
        The arrays of ``contract.INPUTS`` by name, for ``B`` structures padded to the longest with atomic number 0.
    """
    count, longest = len(structures), max(len(structure) for structure in structures)
    # Triton refuses an axis of length 0. An empty structure travels as one atom of padding; the model sees that it is empty.
    atoms = max(longest, 1)
    arrays = {spec.name: np.zeros(spec.shape(count, atoms), dtype=spec.dtype) for spec in INPUTS}
    for row, structure in enumerate(structures):
        arrays["numbers"][row, : len(structure)] = structure.numbers
        arrays["positions"][row, : len(structure)] = structure.positions
        arrays["cell"][row] = structure.cell
        arrays["pbc"][row] = structure.pbc
        arrays["charge"][row] = structure.charge
        arrays["spin"][row] = structure.spin
    return arrays


def unpack(arrays: Mapping[str, np.ndarray]) -> list[Structure]:
    """The structures in the input tensors of one request, without their padding; ``charge`` and ``spin`` may be missing.

    Raises:
        ValueError: ``numbers`` and ``positions`` have different numbers of atoms. Triton cannot know that the two belong together.
    """
    numbers, positions = arrays["numbers"], arrays["positions"]
    if positions.shape != (*numbers.shape, 3):
        raise ValueError(f"numbers has shape {list(numbers.shape)}, so positions cannot have {list(positions.shape)}")
    charge, spin = arrays.get("charge"), arrays.get("spin")
    structures = []
    for row in range(len(numbers)):
        # Padding is at the end. A zero between atoms stays, and the model refuses it as an element that does not exist.
        present = np.flatnonzero(numbers[row])
        atoms = int(present[-1]) + 1 if len(present) else 0
        structures.append(
            Structure(
                numbers=numbers[row, :atoms],
                positions=positions[row, :atoms],
                cell=arrays["cell"][row],
                pbc=arrays["pbc"][row],
                charge=0.0 if charge is None else float(charge[row, 0]),
                spin=0 if spin is None else int(spin[row, 0]),
            )
        )
    return structures
