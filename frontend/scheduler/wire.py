"""How gateways and workers talk with the owner of the residents: JSON lines over a socket in the state folder.

A connection is a lease that needs no clock: what a process holds is given back by the kernel when that process ends, however it
ends. The owner is the process that has the lock on the state folder (frontend/supervisor/launch.py): there is never a second one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from forcegate.errors import BY_CODE, ForcegateError, ModelNotReady

SOCKET: Final = "scheduler.sock"
LONGEST_LINE: Final = 4 * 2**20
"""Bytes; the longest is the state that followers are told, some hundred bytes for each model and each waiting request."""


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The path of the socket through an open descriptor: addresses of sockets have 107 bytes, and state folders can be deep."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def listener(folder: Path) -> socket.socket:
    """The owner's socket; what an owner before it left behind is replaced. No other user of the machine can connect."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOCKET).unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX)
    with _short(folder) as path:
        before = os.umask(0o177)
        try:
            made.bind(path)
        finally:
            os.umask(before)
    made.listen(64)
    made.setblocking(False)
    return made


async def connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the owner.

    Raises:
        OSError: there is none.
    """
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    try:
        with _short(folder) as path:
            await asyncio.get_running_loop().sock_connect(made, path)
        return await asyncio.open_unix_connection(sock=made, limit=LONGEST_LINE)
    except BaseException:
        made.close()
        raise


def line(message: Mapping[str, Any]) -> bytes:
    """One message as it travels."""
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None at the end of the connection, or where it makes no sense any more."""
    try:
        text = await reader.readline()
        message = json.loads(text) if text else None
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def error_to_dict(error: ForcegateError) -> dict[str, Any]:
    """A typed error as it travels."""
    return {"code": error.code, "detail": error.detail, "hint": error.hint, "retry_after": error.retry_after}


def error_from_dict(data: Mapping[str, Any]) -> ForcegateError:
    """The error again."""
    error = BY_CODE.get(str(data.get("code")), ModelNotReady)(str(data.get("detail", "")), str(data.get("hint", "")))
    error.retry_after = data.get("retry_after")
    return error
