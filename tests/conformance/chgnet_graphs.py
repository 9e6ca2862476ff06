"""``environments/chgnet/bin/python -m tests.conformance.chgnet_graphs CUTOFF CASE...``: our graphs beside the package's.

Prints, as JSON, for each case how many bonds and angles there are, and what differs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from chgnet.graph import CrystalGraphConverter
from pymatgen.core import Lattice
from pymatgen.core import Structure as PymatgenStructure

from forcefields.chgnet.graph import crystal_graph
from forcefields.runtime.physics import normalise
from forcegate.structure import from_atoms
from tests.conformance import cases


def main() -> None:
    """Compares them without regard to order."""
    cutoff, *names = sys.argv[1:]
    converter = CrystalGraphConverter(atom_graph_cutoff=float(cutoff), bond_graph_cutoff=3)
    converter.set_isolated_atom_response("ignore")
    found = {}
    for name in names:
        structure = normalise(from_atoms(cases.structure("chgnet", name)), converter.atom_graph_cutoff)
        ours = crystal_graph(structure, converter.atom_graph_cutoff, converter.bond_graph_cutoff)
        crystal = PymatgenStructure(Lattice(structure.cell), structure.numbers, structure.positions, coords_are_cartesian=True)
        theirs = converter(crystal)
        one, other = described(ours), described(theirs)
        found[name] = {
            "bonds": len(ours.atom_graph),
            "angles": len(ours.bond_graph),
            "differ": [part for part in one if one[part] != other[part]],
            "positions": float((ours.atom_frac_coord - theirs.atom_frac_coord).abs().max()),
        }
    print(json.dumps(found))  # noqa: T201


def described(graph: Any) -> dict[str, list[Any]]:
    """The graph without any numbering of bonds: one is named by its ends and its image, an undirected one by its two directions."""
    ends = graph.atom_graph.numpy().reshape(-1, 2)
    image = graph.neighbor_image.detach().numpy().reshape(-1, 3).astype(int)
    name = [tuple(map(int, (*pair, *shift))) for pair, shift in zip(ends, image, strict=True)]
    undirected = graph.directed2undirected.tolist()
    members: dict[int, set[Any]] = {}
    for directed, bond in enumerate(undirected):
        members.setdefault(bond, set()).add(name[directed])
    pair = {bond: tuple(sorted(each)) for bond, each in members.items()}
    angles = np.asarray(graph.bond_graph.numpy()).reshape(-1, 5).tolist()
    return {
        "directed bonds": sorted(name),
        "undirected bonds": sorted(pair.values()),
        "undirected of directed": sorted((name[k], pair[bond]) for k, bond in enumerate(undirected)),
        "directed of undirected": sorted(
            pair[k] for k, start in enumerate(graph.undirected2directed.tolist()) if name[start] in pair[k]
        ),
        "angles": sorted((centre, pair[a], name[b], pair[c], name[d]) for centre, a, b, c, d in angles),
    }


if __name__ == "__main__":
    main()
