"""The checkpoint that a name of a user's own had before: kept when another takes its place, and put back by one command.

A name has two places: what is served, and what was served before (``replaced/<name>`` in the state folder). Putting back exchanges
the two, so that it can be undone by the same command.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporters import records
from exporters.lock import locked
from exporters.prepare import FOREIGN, lock
from forcefields.catalogue import EXPORTS, RECORD
from forcegate.errors import InvalidRequest

REPLACED = "replaced"
ENTRIES = "entries.json"
"""File among what is set aside: the model's entries of the records."""
OF_A_MODEL = ("gates/*", "calibrations/*", "golden", "memory", "reports")
"""Folders of the state with a file of each model that holds for one checkpoint of it."""


@contextmanager
def replacing(name: str, state: Path) -> Iterator[None]:
    """An own checkpoint is set aside while the block puts another into its place; it is back where the block raises.

    Raises:
        SetupError: it cannot be written.
    """
    kept, older = state / REPLACED / name, state / REPLACED / f".older-{name}"
    with locked(lock(state, name), lambda _line: None, ""):
        if kept.exists():
            _move(kept, older)
        _take(name, state, kept)
    try:
        yield
    except BaseException:
        put_back(name, state)
        if older.exists():
            _move(older, kept)
        raise
    shutil.rmtree(older, ignore_errors=True)


def put_back(name: str, state: Path) -> str:
    """Puts the earlier checkpoint of a name back into its place; the one that was there is set aside. Returns its sha256.

    Raises:
        InvalidRequest: there is no earlier one.
        SetupError: it cannot be written.
    """
    kept, passing = state / REPLACED / name, state / REPLACED / f".{name}"
    if not (kept / ENTRIES).is_file():
        raise InvalidRequest(
            f"There is no earlier checkpoint of {name!r}.",
            "One is kept when `forcegate export --file FILE --as NAME --replace` puts another into its place.",
        )
    with locked(lock(state, name), lambda _line: None, ""):
        there = name in records.read(state / EXPORTS)
        if there:
            _take(name, state, passing)
        digest = _give(name, state, kept)
        shutil.rmtree(kept, ignore_errors=True)
        if there:
            os.replace(passing, kept)
    return digest


def _take(name: str, state: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    entries: dict[str, Any] = {}
    for file in (EXPORTS, RECORD):
        records.update(state / file, lambda data, file=file: entries.update({file: data.pop(name, None)}))  # type: ignore[misc]
    for path in files(name, state):
        _move(path, target / path.relative_to(state))
    _move(state / FOREIGN / name, target / FOREIGN / name)
    records.write(target / ENTRIES, entries)


def _give(name: str, state: Path, source: Path) -> str:
    for path in files(name, source):
        _move(path, state / path.relative_to(source))
    _move(source / FOREIGN / name, state / FOREIGN / name)
    # Triton loads a model anew whose files are newer than those it knows.
    (state / FOREIGN / name / "config.pbtxt").touch()
    entries = json.loads((source / ENTRIES).read_text())
    for file in (RECORD, EXPORTS):
        if entries[file] is not None:
            records.update(state / file, lambda data, file=file: data.update({name: entries[file]}))  # type: ignore[misc]
    return str(entries[EXPORTS]["variant"]["checkpoint"]["sha256"])


def files(name: str, state: Path) -> list[Path]:
    """What was written of a model and holds for one checkpoint of it, but its folder and the records."""
    return [path for pattern in OF_A_MODEL for path in state.glob(f"{pattern}/{name}.json")]


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(source, target)
