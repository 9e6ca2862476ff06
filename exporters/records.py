"""The small JSON files of the state folder that several exports may write at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forcegate.errors import SetupError


def read(path: Path) -> dict[str, Any]:
    """The record, empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, data: dict[str, Any]) -> None:
    """Writes a file that is always whole.

    Raises:
        SetupError: it cannot be written.
    """
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SetupError(f"{path} cannot be written: {error.strerror}.", "Make room or check permissions.") from None


def update(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a record; nobody else changes it meanwhile.

    Raises:
        SetupError: it cannot be written.
    """
    with held(path) as data:
        change(data)


@contextmanager
def held(path: Path) -> Iterator[dict[str, Any]]:
    """The record while nobody else can change it; it is written when the block ends, unless that raises.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.", "Make room or check permissions.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = read(path)
        yield data
        write(path, dict(sorted(data.items())))
