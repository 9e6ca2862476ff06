"""Reads what model processes note of their memory (forcefields/runtime/memory.py): each thing once."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class News:
    """What a model has noted since it was last read.

    Attributes:
        peaks: directed neighbour pairs of a pass, and the MB that it took above the loaded model.
        ran_out: pairs of a pass that ran out of memory, and in how many calls of the model that has happened.
    """

    peaks: tuple[tuple[int, float], ...] = ()
    ran_out: tuple[tuple[int, int], ...] = ()


class Notes:
    """The notes of all models.

    Args:
        folder: where they are, a file for each model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed: dict[str, int] = {}
        # Instances of one model write into one file by turns, each all that it knows.
        self._read: dict[tuple[str, int], tuple[dict[int, float], dict[int, int]]] = {}

    def news(self, model: str, processes: Collection[int]) -> News:
        """What is new; nothing where the notes are of a process that is not among ``processes``, or cannot be read."""
        path = self._folder / f"{model}.json"
        try:
            changed = path.stat().st_mtime_ns
            if self._changed.get(model) == changed:
                return News()
            return self._taken(model, changed, json.loads(path.read_bytes()), processes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return News()

    def _taken(self, model: str, changed: int, data: dict[str, Any], processes: Collection[int]) -> News:
        pid = int(data["pid"])
        if pid not in processes:
            return News()
        peaks = {int(edges): float(mb) for edges, mb in data["peaks"]}
        ran_out = {int(edges).bit_length(): (int(edges), int(times)) for edges, times in data["ran_out"]}
        told, counted = self._read.get((model, pid), ({}, {}))
        counts = {size: times for size, (_, times) in ran_out.items()}
        self._read = {key: known for key, known in self._read.items() if key[0] != model or key[1] in processes}
        self._read[model, pid], self._changed[model] = (peaks, counts), changed
        return News(
            tuple((edges, mb) for edges, mb in peaks.items() if told.get(edges) != mb),
            tuple(
                (edges, times - counted.get(size, 0)) for size, (edges, times) in ran_out.items() if times > counted.get(size, 0)
            ),
        )
