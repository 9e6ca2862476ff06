"""A task's context without queue and service: forces of a potential of this process, and everything kept in a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forcegate import errors
from forcegate.calculations.forces import Forces, OneByOne
from forcegate.calculations.progress import Step
from forcegate.calculations.states import Checkpoint, State
from tests.unit.calculations.potentials import EPSILON, lennard_jones


class Killed(BaseException):
    """The worker has died here."""


@dataclass
class InProcess:
    """See ``frontend.tasks.context.Context``. A later one with the same folder is a later attempt at the task.

    Args:
        folder: of the artifacts; states and results of parts are kept beside it.
        die_at: number of the step that the worker does not survive.
        die_after: number of evaluations that it does not survive.
        every: of how many steps one state is kept.
        missing: models that are not there.
    """

    folder: Path
    die_at: int | None = None
    missing: tuple[str, ...] = ()
    die_after: int | None = None
    every: int = 3
    evaluations: int = 0
    steps: list[Step] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.folder.mkdir(exist_ok=True)
        self.kept_in = self.folder.with_name(f"{self.folder.name}-kept")
        self.kept_in.mkdir(exist_ok=True)

    def progress(self, step: Step) -> None:
        with self._lock:
            self.steps.append(step)
            if self.die_at is not None and len(self.steps) > self.die_at:
                raise Killed

    def log(self, text: str) -> None:
        self.lines.append(text)

    def state(self, part: str) -> State | None:
        path = self._path(part)
        return State.load(path) if path.exists() else None

    def checkpoint(self, part: str) -> Checkpoint:
        def keep(make: Callable[[], State]) -> None:
            # Every third step: a worker keeps one every few seconds, so that the newest steps are not in it.
            if (state := make()).step % self.every == 0:
                state.save(self._path(part))

        return keep

    def keep_state(self, part: str, state: State) -> None:
        state.save(self._path(part))

    def _path(self, part: str) -> Path:
        return self.kept_in / f"{part.replace('/', ' ')}.npz"

    def kept(self, part: str) -> dict[str, Any] | None:
        return self.results.get(part)

    def keep(self, part: str, result: dict[str, Any]) -> None:
        self.results[part] = result
        for path in [self._path(part), *self.kept_in.glob(f"{part} *.npz")]:
            path.unlink(missing_ok=True)

    def forces(self, model: str, head: str | None, dispersion: str) -> Forces:
        self.asked.append((model, head, dispersion))
        if model in self.missing:
            raise errors.GateFailed(f"The model {model!r} did not pass its gate.")
        calculator = lennard_jones(epsilon=1.1 * EPSILON if model == "stiffer" else EPSILON)
        calculate = calculator.calculate

        def counted(*arguments: Any, **options: Any) -> None:
            if self.die_after is not None and self.evaluations >= self.die_after:
                raise Killed
            calculate(*arguments, **options)
            self.evaluations += 1

        calculator.calculate = counted
        return OneByOne(calculator)
