"""What a calculation gets from the worker that carries it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from forcegate.calculations.forces import Forces
from forcegate.calculations.progress import Step
from forcegate.calculations.states import Checkpoint, State


class Ended(BaseException):
    """The calculation has to stop. No ``Exception``, so that what catches those to go on after a failure does not catch it."""


class Context(Protocol):
    """One attempt at a task. Its methods may be called from several threads."""

    folder: Path
    """Artifacts of this task: trajectories, pictures, tables. What a former attempt wrote is still there."""

    def progress(self, step: Step) -> None:
        """Tells of a step; ends the calculation here when the task was cancelled, timed out, or has another worker by now.

        Raises:
            Ended: the calculation has to stop. It is not to be caught but to clean up.
        """

    def log(self, text: str) -> None:
        """One line for the task's log."""

    def state(self, part: str) -> State | None:
        """The last state that was kept of ``part``, or None where it begins."""

    def checkpoint(self, part: str) -> Checkpoint:
        """Keeps states of ``part``, at most one every few seconds."""

    def keep_state(self, part: str, state: State) -> None:
        """Keeps ``state`` of ``part`` now."""

    def kept(self, part: str) -> dict[str, Any] | None:
        """The result of ``part`` where it was finished, in this attempt or a former one."""

    def keep(self, part: str, result: dict[str, Any]) -> None:
        """Keeps the result of ``part``; its state, and those of its own parts, are forgotten. ``result`` is JSON."""

    def forces(self, model: str, head: str | None, dispersion: str) -> Forces:
        """A served model, by its canonical name. ``dispersion`` is ``none``, ``d3bj`` or ``auto``."""
