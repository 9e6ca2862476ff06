"""No force field: every tensor of the contract that comes in goes out again, so that a test can see what a carrier does to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcegate.contract import VOIGT
from forcegate.structure import Structure


class Echo(ForceField):
    """Positions come back as forces, the cell as stress and charges, atomic numbers as energies, the rest as the energy."""

    cutoff = 1.0
    elements = tuple(range(1, 119))

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Echo:  # noqa: ARG003
        """Reads a text as packages read theirs, without saying how it is encoded."""
        text = Path(__file__).resolve().with_name("text.txt").read_text()
        if text != "Å\n":
            raise ValueError(f"a text was read as {text!r}")
        return cls()

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """The structure as it was sent."""
        return Graph(structure.original, len(structure), 0)

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        """What was sent."""
        return [_echo(graph.payload) for graph in graphs]


def _echo(sent: Structure) -> Result:
    corner = np.zeros(len(sent))
    # The three of the cell's nine numbers for which the stress has no room.
    corner[: min(3, len(sent))] = [sent.cell[j, i] for i, j in VOIGT[3:]][: len(sent)]
    return Result(
        energy=1e6 * sent.charge + 1e3 * sent.spin + float(sent.pbc @ [1, 2, 4]),
        forces=np.array(sent.positions),
        stress=np.array([sent.cell[i, j] for i, j in VOIGT]),
        extra={"energies": sent.numbers.astype(float), "magmoms": np.arange(len(sent)) + 0.5, "charges": corner},
    )


ADAPTER = Echo
