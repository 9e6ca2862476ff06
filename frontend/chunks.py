"""A batch cut into few requests of similar structures, so that little of what travels is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forcegate.structure import Structure
from frontend.admission import Estimator, Work
from frontend.admission.queue import WINDOW_SECONDS

STRUCTURES: Final = 32
"""Structures of one request at most. They share what a request costs in gateway and server, and are evaluated again together when
one of them is refused."""
ATOMS: Final = 4096
"""Atoms of one request at most, padding included; more would not save anything."""
PADDING: Final = 1.25
"""The longest structure of a request over the shortest, at most."""
SECONDS: Final = WINDOW_SECONDS / 2
"""Estimated work of one request at most: an interactive request has to wait for what has been handed over."""


@dataclass(frozen=True)
class Chunk:
    """Structures that travel together, and their places in the batch."""

    indices: tuple[int, ...]
    structures: tuple[Structure, ...]
    work: Work


def chunks(entries: Sequence[tuple[int, Structure]], estimator: Estimator, correction: float) -> list[Chunk]:
    """The requests for the structures of a batch, shortest structures first.

    Args:
        entries: structures and their places in the batch.
        correction: seconds that an estimated second takes.
    """
    made: list[Chunk] = []
    group: list[tuple[int, Structure, Work]] = []
    seconds = 0.0
    for index, structure in sorted(entries, key=lambda entry: len(entry[1])):
        work = estimator.work((structure,))
        atoms = len(structure)
        if group and (
            len(group) == STRUCTURES
            or atoms > PADDING * max(len(group[0][1]), 1)
            or atoms * (len(group) + 1) > ATOMS
            or (seconds + work.seconds) * correction > SECONDS
        ):
            made.append(_chunk(group))
            group, seconds = [], 0.0
        group.append((index, structure, work))
        seconds += work.seconds
    if group:
        made.append(_chunk(group))
    return made


def _chunk(group: Sequence[tuple[int, Structure, Work]]) -> Chunk:
    works = [work for _, _, work in group]
    return Chunk(
        indices=tuple(index for index, _, _ in group),
        structures=tuple(structure for _, structure, _ in group),
        work=Work(len(works), sum(work.atoms for work in works), sum(work.seconds for work in works)),
    )
