"""The frames of a relaxation or of molecular dynamics in one extxyz file, which a task that goes on goes on with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from forcegate.calculations.progress import Step

KEY = "frame="
"""In the comment line of a frame, before its number."""


class Trajectory:
    """Appends numbered frames to a file; a number that the file has already is not written again.

    A state is kept after the frame of its step has been written, so a task that goes on finds the frames up to its state in the
    file, and some of those after it, which it is going to make again: these are cut off.

    Args:
        path: the file; it need not exist.
        kept: the last frame that belongs to the path that is gone on with; None begins anew.
    """

    def __init__(self, path: Path, kept: int | None = None) -> None:
        self._path = path
        self._last = -1
        end = 0
        if kept is not None and path.exists():
            for number, begin, after in frames(path):
                if number > kept or begin != end:
                    break
                self._last, end = number, after
        # Unbuffered: each frame is one write, whole for whoever reads meanwhile.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def add(self, number: int, step: Step) -> None:
        """Appends the structure of ``step`` with its energy (eV), forces (eV/A) and, where there is one, stress (eV/A^3)."""
        if number <= self._last or step.atoms is None:
            return
        text = io.StringIO()
        write_extxyz(text, [_frame(number, step, step.atoms)])
        self._file.write(text.getvalue().encode())
        self._last = number


def frames(path: Path) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and byte after the last of each whole frame in ``path``."""
    with path.open("rb") as file:
        while True:
            begin = file.tell()
            count, comment = file.readline(), file.readline().decode(errors="replace")
            if not count.strip().isdigit() or KEY not in comment:
                return
            lines = [file.readline() for _ in range(int(count))]
            if not all(line.endswith(b"\n") for line in lines):
                return
            yield int(comment.partition(KEY)[2].split()[0]), begin, file.tell()


def _frame(number: int, step: Step, atoms: Atoms) -> Atoms:
    frame = atoms.copy()
    frame.set_constraint()
    frame.info = {"frame": number, "phase": step.phase, "step": step.step}
    if step.temperature is not None:
        frame.info["temperature_K"] = step.temperature
    # The calculator of the run has these at hand; asking it for everything that it could say might cost an evaluation.
    known = {"energy": step.energy, "forces": np.array(atoms.get_forces(apply_constraint=False))}
    if atoms.pbc.all():
        known["stress"] = np.array(atoms.get_stress(apply_constraint=False))
    frame.calc = SinglePointCalculator(frame, **known)
    return frame
