"""CHGNet's atom graph and bond graph in whole arrays.

The package's converter makes a Python object of every bond and goes through them in Python: a fifth of a millisecond for each atom,
up to a tenth of an evaluation. Its neighbour search, pymatgen's, moreover takes memory for every box of the cutoff's width in the
cell, empty ones too: 27 GB for a cell of 3000 A, which ends the process. This module gives the same graph in another order.
"""

from __future__ import annotations

import numpy as np
import torch
from chgnet.graph.crystalgraph import CrystalGraph

from forcefields.neighbours import neighbour_images
from forcegate.structure import Structure


def crystal_graph(structure: Structure, cutoff: float, bond_cutoff: float) -> CrystalGraph:
    """The graph that CHGNet evaluates.

    Args:
        structure: periodic in all three directions.
        cutoff: A, for the bonds of the atom graph.
        bond_cutoff: A, for the bonds between which angles are formed.
    """
    listed = neighbour_images(structure, cutoff)
    bond, start, both = _undirected(*listed[:3])
    if not both.all():
        # Rounding has listed a bond of exactly the cutoff, which has no effect, from one end alone.
        listed = (listed[0][both], listed[1][both], listed[2][both], listed[3][both])
        bond, start, _ = _undirected(*listed[:3])
    first, second, image, distance = listed
    angles = _angles(first, bond, distance < bond_cutoff)
    return CrystalGraph(
        atomic_number=torch.from_numpy(structure.numbers.astype(np.int32)),
        # The package moves atoms in fractional coordinates of single precision.
        atom_frac_coord=torch.tensor(structure.positions @ np.linalg.inv(structure.cell), dtype=torch.float32, requires_grad=True),
        atom_graph=torch.from_numpy(np.stack([first, second], axis=1).astype(np.int32)),
        atom_graph_cutoff=cutoff,
        neighbor_image=torch.from_numpy(image.astype(np.float32)),
        directed2undirected=torch.from_numpy(bond.astype(np.int32)),
        undirected2directed=torch.from_numpy(start.astype(np.int32)),
        bond_graph=torch.from_numpy(angles.astype(np.int32)),
        bond_graph_cutoff=bond_cutoff,
        lattice=torch.tensor(structure.cell, dtype=torch.float32, requires_grad=True),
    )


def _undirected(first: np.ndarray, second: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins each directed bond to the same bond seen from its other end.

    Returns:
        for each directed bond the number of its undirected one, for each undirected bond one of its directed ones, and for each
        directed bond whether its other direction is there.
    """
    reach = int(np.abs(image).max(initial=0))
    atoms = int(max(first.max(initial=0), second.max(initial=0))) + 1
    width = 2 * reach + 1
    place = np.array([width * width, width, 1])

    def key(i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return (i * atoms + j) * width**3 + (shift + reach) @ place

    either = np.minimum(key(first, second, image), key(second, first, -image))
    _, start, bond, directions = np.unique(either, return_index=True, return_inverse=True, return_counts=True)
    # Numbered by their first appearance: what belongs to one atom then lies together in memory.
    order = np.argsort(start)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[bond], start[order], directions[bond] == 2


def _angles(first: np.ndarray, bond: np.ndarray, short: np.ndarray) -> np.ndarray:
    """Every ordered pair of different short bonds at one atom.

    Args:
        first: the atom that each directed bond starts from, in growing order.

    Returns:
        int64 ``[angles, 5]``: the atom, the first bond (undirected, directed), the second bond (undirected, directed).
    """
    chosen = np.flatnonzero(short)
    centre = first[chosen]
    low, high = np.searchsorted(centre, centre, side="left"), np.searchsorted(centre, centre, side="right")
    count = high - low
    left = np.repeat(np.arange(len(chosen)), count)
    # Within each group of equal `left`, the second bond runs from low to high.
    right = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count) + low[left]
    different = left != right
    one, other = chosen[left[different]], chosen[right[different]]
    return np.stack([first[one], bond[one], one, bond[other], other], axis=1)
