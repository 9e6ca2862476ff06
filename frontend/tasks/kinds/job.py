"""One calculation for one structure and one model, within a task that may hold many of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces
from forcegate.calculations.progress import Progress, Step
from forcegate.calculations.states import Checkpoint, State, States, Within
from frontend.tasks.kinds.kind import TaskParameters
from frontend.tasks.kinds.trajectory import Trajectory

if TYPE_CHECKING:
    from frontend.tasks.context import Context

WHOLE = "whole"
"""Name of the only part of a task that has one."""


@dataclass(frozen=True)
class Level:
    """The level of theory: canonical name of the model, its head (None for the default), and dispersion as it was asked for."""

    model: str
    head: str | None
    dispersion: str


@dataclass(frozen=True)
class Job:
    """What a calculation is given.

    Attributes:
        context: of the task.
        level: model, head and dispersion.
        atoms: the structure.
        parameters: of its kind.
        part: its name among the parts of the task.
        number: its place among them, for progress; None where there is one.
        report: takes the steps.
        source: forces of the level; made from ``context`` where it is None.
    """

    context: Context
    level: Level
    atoms: Atoms
    parameters: TaskParameters
    part: str = WHOLE
    number: int | None = None
    report: Progress | None = None
    source: Forces | None = field(default=None, repr=False)

    @property
    def forces(self) -> Forces:
        """Energies, forces and stresses of the level, dispersion included."""
        return self.source or self.context.forces(self.level.model, self.level.head, self.level.dispersion)

    @contextmanager
    def calculator(self) -> Iterator[BaseCalculator]:
        """A calculator for one trajectory; its connection ends with the block."""
        calculator = self.forces.calculator()
        try:
            yield calculator
        finally:
            if (close := getattr(calculator, "close", None)) is not None:
                close()

    def progress(self, step: Step) -> None:
        """Passes on a step of this job."""
        (self.report or self.context.progress)(step if self.number is None else replace(step, part=self.number))

    @property
    def resume(self) -> State | None:
        """The last state that was kept."""
        return self.context.state(self.part)

    @property
    def checkpoint(self) -> Checkpoint:
        """Keeps states."""
        return self.context.checkpoint(self.part)

    @property
    def states(self) -> States:
        """Where a calculation of several parts keeps the state of each."""
        return Within(self.context, self.part)

    def trajectory(self, kept: int | None) -> Trajectory:
        """The file that frames go to; those above number ``kept`` are dropped, all where it is None."""
        return Trajectory(self.context.folder / self._file("trajectory", "extxyz"), kept)

    def draw(self, answer: Answer, kind: str) -> None:
        """Saves the picture of ``answer`` in the task's folder, where there is one of such an answer."""
        from forcegate.calculations import plots

        try:
            plots.save_plot(answer, self.context.folder / self._file(kind, "png"))
        except TypeError:  # there is no picture of such an answer
            return

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        return provenance(self.forces)

    def _file(self, name: str, ending: str) -> str:
        return f"{name}.{ending}" if self.part == WHOLE else f"{self.part}-{name}.{ending}"


def provenance(forces: Forces) -> dict[str, Any]:
    """Where the numbers of ``forces`` come from; empty for a source that does not tell."""
    tell = getattr(forces, "provenance", None)
    return {name: value or None for name, value in tell().items()} if tell is not None else {}
