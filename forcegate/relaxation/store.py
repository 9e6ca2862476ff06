"""The state of many relaxations in one file, so that a run that was killed goes on where it was.

An SQLite database: a transaction every few seconds holds what has moved since the last one, and a process that is killed leaves
the last whole transaction behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.jsonio import encode

from forcegate import errors
from forcegate.relaxation.relaxation import Relaxation, Relaxed, Settings

VERSION = 1
"""Of the file's layout; a file of another version is refused."""

SECONDS = 3.0
"""Between two transactions, at least: what a crash can cost."""

TABLES = """
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS structures (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL, outcome TEXT, arrays BLOB
);
"""
"""``outcome`` is NULL while a relaxation is under way, and ``arrays`` then what ``Relaxation.restore`` takes."""

IDENTITY = ("model", "head", "checkpoint_sha256", "dispersion")
"""What has to be the same of the model for a run to go on."""


class Store:
    """The states and the results of one run. ``iterate_relaxations`` opens it; whoever made it closes it.

    Args:
        path: of the file; it need not exist.
        seconds: between two transactions.
    """

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path = path
        self._seconds, self._written = seconds, time.monotonic()
        self._active: dict[int, tuple[Relaxation, str]] = {}
        self._digests: dict[int, str] = {}
        self._known: set[int] = set()
        self._database: sqlite3.Connection | None = None

    def open(self, settings: Settings, provenance: Mapping[str, str]) -> None:
        """Opens the file for a run with these settings at this model.

        Raises:
            InvalidRequest: the file is of another run, of another process that still runs, or of no run at all.
        """
        wanted = {name: json.dumps(value) for name, value in settings.as_dict().items()}
        wanted |= {name: provenance.get(name, "") for name in IDENTITY} | {"version": str(VERSION)}
        self._database = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("BEGIN EXCLUSIVE")
            for statement in TABLES.split(";"):
                self._database.execute(statement)
            found = dict(self._database.execute("SELECT name, value FROM run"))
        except sqlite3.OperationalError as error:
            raise errors.InvalidRequest(
                f"{self.path} cannot be opened: {error}.", "Another run may be using it; wait for its end or name another output."
            ) from error
        except sqlite3.DatabaseError as error:
            raise errors.InvalidRequest(f"{self.path} is not the state of a run: {error}.", "Move it out of the way.") from error
        different = [
            f"{name} {found[name]} there, {wanted[name]} here" for name in wanted if name in found and found[name] != wanted[name]
        ]
        if different:
            raise errors.InvalidRequest(
                f"{self.path} holds the state of another run: {'; '.join(different)}.",
                "Repeat the command as it was to go on with it, remove the file to begin anew, or name another output.",
            )
        self._database.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", wanted.items())
        self._known = {number for (number,) in self._database.execute("SELECT number FROM structures WHERE outcome IS NOT NULL")}
        self.commit()

    def result(self, index: int, atoms: Atoms) -> Relaxed | None:
        """What became of a structure that is finished, else None.

        Raises:
            InvalidRequest: the file has another structure in this place.
        """
        self._digests[index] = digest = digest_of(atoms)
        row = self._sql.execute("SELECT digest, outcome, arrays FROM structures WHERE number = ?", (index,)).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            raise errors.InvalidRequest(
                f"Structure {index} is not the one that {self.path} was written for.",
                "Repeat the command with the same files to go on, remove the file to begin anew, or name another output.",
            )
        return None if row[1] is None else _result(index, atoms, json.loads(row[1]), _arrays(row[2]))

    def begin(self, relaxation: Relaxation, atoms: Atoms) -> None:
        """Takes up the state of a relaxation where the file has one, and writes it down from now on."""
        digest = self._digests.pop(relaxation.index, None) or digest_of(atoms)
        row = self._sql.execute("SELECT arrays FROM structures WHERE number = ?", (relaxation.index,)).fetchone()
        if row is not None:
            relaxation.restore(_arrays(row[0]))
        self._active[relaxation.index] = relaxation, digest

    def stepped(self, _relaxation: Relaxation) -> None:
        """To be called after each step; writes when it is time."""
        if time.monotonic() - self._written >= self._seconds:
            self.commit()

    def finish(self, result: Relaxed) -> None:
        """Notes what became of a structure. Errors that can pass are not: the next run tries those structures again."""
        _, digest = self._active.pop(result.index, (None, None))
        digest = digest or self._digests.pop(result.index, "")
        if result.index in self._known:
            return
        if result.error is None or not result.error.retryable:
            self._known.add(result.index)
            row = (result.index, digest, json.dumps(_outcome(result)), _blob(_result_arrays(result)))
            self._sql.execute("INSERT OR REPLACE INTO structures VALUES (?, ?, ?, ?)", row)

    def commit(self) -> None:
        """Writes everything down now."""
        rows = [(number, digest, None, _blob(relaxation.state())) for number, (relaxation, digest) in self._active.items()]
        self._sql.executemany("INSERT OR REPLACE INTO structures VALUES (?, ?, ?, ?)", rows)
        self._sql.execute("COMMIT")
        self._sql.execute("BEGIN EXCLUSIVE")
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes everything down and closes the file."""
        if self._database is not None:
            try:
                if self._database.in_transaction:
                    self.commit()
            finally:
                self._database.close()
                self._database = None

    def remove(self) -> None:
        """Closes and removes the file: the run is complete."""
        self._active.clear()
        self.close()
        self.path.unlink(missing_ok=True)

    @property
    def _sql(self) -> sqlite3.Connection:
        assert self._database is not None, "iterate_relaxations opens the store"
        return self._database


def digest_of(atoms: Atoms) -> str:
    """Names a structure with all that decides its relaxation: elements, positions, cell, charge, spin and constraints."""
    sha = hashlib.sha256()
    for array in (atoms.numbers, atoms.positions, np.array(atoms.cell), atoms.pbc):
        sha.update(np.ascontiguousarray(array).tobytes())
    constraints = [c.todict() if hasattr(c, "todict") else repr(type(c)) for c in atoms.constraints]
    sha.update(encode([atoms.info.get("charge"), atoms.info.get("spin"), constraints]).encode())
    return sha.hexdigest()


def _outcome(result: Relaxed) -> dict[str, Any]:
    error = None if result.error is None else [result.error.code, result.error.detail, result.error.hint, result.error.request_id]
    return {
        "converged": result.converged,
        "steps": result.steps,
        "fmax": result.fmax,
        "initial_energy": result.initial_energy,
        "energy": result.energy,
        "cell_filter": result.cell_filter,
        "error": error,
    }


def _result_arrays(result: Relaxed) -> dict[str, np.ndarray]:
    arrays = {"positions": result.atoms.positions, "cell": np.array(result.atoms.cell)}
    return arrays | {name: value for name in ("forces", "stress") if (value := getattr(result, name)) is not None}


def _result(index: int, atoms: Atoms, outcome: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Relaxed:
    final = atoms.copy()
    final.set_cell(arrays["cell"], apply_constraint=False)
    final.positions[:] = arrays["positions"]
    if (error := outcome.pop("error")) is not None:
        code, detail, hint, request_id = error
        error = errors.BY_CODE[code](detail, hint)
        error.request_id = request_id
    return Relaxed(index, final, forces=arrays.get("forces"), stress=arrays.get("stress"), error=error, **outcome)


def _blob(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _arrays(blob: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
