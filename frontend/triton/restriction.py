"""The key of those APIs of Triton that change what it serves or reads: with it come the supervisor and the gateways, nobody else.

Whoever can open a connection to Triton may ask models for answers and configurations. Loading a model with a configuration of
one's own, or mapping shared memory, is another matter.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Final

from forcegate.connection import CONTROL_HEADER
from forcegate.errors import SetupError
from frontend.settings import PREFIX, Settings

RESTRICTED: Final = ("model-repository", "shared-memory", "trace", "logging")
"""Triton's names of the APIs that need the key."""
HTTP_HEADER: Final = "forcegate-control"
FILE: Final = "triton.key"
_KEY = re.compile(r"[A-Za-z0-9_\-]{16,200}")


def generated(settings: Settings) -> Settings:
    """``settings`` with the key that Triton is to be started with: the one that is set, else a new one.

    It is also written into the state folder, for a gateway or a worker that is started by itself.

    Raises:
        SetupError: the key that is set is none, or the file cannot be written.
    """
    key = settings.triton_key or secrets.token_urlsafe(32)
    if not _KEY.fullmatch(key):
        raise SetupError(f"{PREFIX}TRITON_KEY has to be 16 to 200 letters, digits, _ and -.", "Leave it out, and one is made.")
    path = settings.state / FILE
    partial = path.with_name(f"{FILE}.part")
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key)
        partial.replace(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.", f"See {PREFIX}STATE.") from None
    return settings.model_copy(update={"triton_key": key})


def key_of(settings: Settings) -> str:
    """The key of the Triton of these settings, or nothing where it has none."""
    if settings.triton_key:
        return settings.triton_key
    try:
        return Path(settings.state / FILE).read_text().strip()
    except OSError:
        return ""


def options(key: str) -> list[str]:
    """The options that tritonserver is started with."""
    if not key:
        return []
    names = ",".join(RESTRICTED)
    grpc_name = CONTROL_HEADER.removeprefix("triton-grpc-protocol-")
    return [f"--grpc-restricted-protocol={names}:{grpc_name}={key}", f"--http-restricted-api={names}:{HTTP_HEADER}={key}"]


def headers(key: str) -> dict[str, str] | None:
    """What a call of a restricted API carries over gRPC."""
    return {CONTROL_HEADER: key} if key else None
