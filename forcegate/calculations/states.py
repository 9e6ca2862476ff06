"""The state of a relaxation or of molecular dynamics: handed out while it runs, and taken back to go on from there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from forcegate.errors import InvalidRequest

VERSION = 1


@dataclass(frozen=True)
class State:
    """Everything that is needed to go on, in numbers: no object is stored, so that a file from elsewhere can be read safely.

    Attributes:
        kind: what it belongs to: ``optimization`` or ``stability``.
        step: steps that have been made.
        arrays: positions, momenta, cell, Hessian, thermostat and the like.
        values: what JSON holds: phase, counters, state of the random numbers.
    """

    kind: str
    step: int
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the state; a reader finds the former one or this one, never a part of it."""
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        with beside.open("wb") as file:
            self._write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> State:
        """Reads what ``save`` wrote.

        Raises:
            InvalidRequest: the file is none of these, or of another version.
        """
        return cls._read(path, str(path))

    def as_bytes(self) -> bytes:
        """The state as ``save`` writes it, for a place that is no file."""
        buffer = io.BytesIO()
        self._write(buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Reads what ``as_bytes`` made.

        Raises:
            InvalidRequest: it is none of these, or of another version.
        """
        return cls._read(io.BytesIO(data), "What was given")

    def _write(self, file: IO[bytes]) -> None:
        header = json.dumps({"version": VERSION, "kind": self.kind, "step": self.step, "values": self.values})
        np.savez(file, __header__=np.array(header), **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def _read(cls, source: Path | IO[bytes], name: str) -> State:
        try:
            with np.load(source, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("__header__")))
        except (OSError, ValueError, KeyError) as error:
            raise InvalidRequest(f"{name} holds no state of a calculation: {error}", "Start the calculation anew.") from None
        if header["version"] != VERSION:
            raise InvalidRequest(f"{name} was written by another version.", "Start the calculation anew.")
        return cls(header["kind"], header["step"], arrays, header["values"])

    def belongs(self, kind: str, atoms: int) -> None:
        """Checks that this state is one of ``kind``, for as many atoms.

        Raises:
            InvalidRequest: it is not.
        """
        if self.kind != kind or len(self.arrays["positions"]) != atoms:
            raise InvalidRequest(
                f"The state is that of {self.kind} with {len(self.arrays['positions'])} atoms, not of {kind} with {atoms}.",
                "Give the state that this calculation handed out.",
            )


Checkpoint = Callable[[Callable[[], State]], None]
"""Called at every step with a function that makes the state, so that making it costs nothing where it is not wanted yet."""


class States(Protocol):
    """Where the states of a calculation of several parts are kept: relaxations, volumes, strains, displacements, placements."""

    def state(self, part: str) -> State | None:
        """The last state that was kept of ``part``, or None where it begins."""

    def checkpoint(self, part: str) -> Checkpoint:
        """Keeps states of ``part``, not every one that it is offered."""

    def keep_state(self, part: str, state: State) -> None:
        """Keeps ``state`` of ``part`` in any case: other parts are built upon it."""


class Nowhere:
    """No state is kept, and every calculation begins at its beginning."""

    def state(self, _: str) -> None:
        """There is none."""

    def checkpoint(self, _: str) -> Checkpoint:
        """Offers come to nothing."""
        return lambda make: None  # noqa: ARG005

    def keep_state(self, _: str, __: State) -> None:
        """It is dropped."""


@dataclass(frozen=True)
class Within:
    """The states of one part of ``whole``, whose own parts have its name before theirs."""

    whole: States
    name: str

    def state(self, part: str) -> State | None:
        """See ``States``."""
        return self.whole.state(f"{self.name}/{part}")

    def checkpoint(self, part: str) -> Checkpoint:
        """See ``States``."""
        return self.whole.checkpoint(f"{self.name}/{part}")

    def keep_state(self, part: str, state: State) -> None:
        """See ``States``."""
        self.whole.keep_state(f"{self.name}/{part}", state)


NOWHERE: States = Nowhere()
