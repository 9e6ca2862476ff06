"""Runs modules of ``forcefields`` in a family's own environment, the only Python that can load its package."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcegate.errors import SetupError, from_wire

SECONDS = 3600.0
"""After which a process is taken for hung."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class Unreadable(SetupError):
    """The package cannot make a force field of the checkpoint."""


def run(python: Path, module: str, *arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a module to its end.

    Pickled checkpoints run code when they are loaded, so the process gets no token, and packages that would rather download
    something are told to stay offline.

    Raises:
        SetupError: the environment is not there, or the process hung.
    """
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | dict(variables or {})
    try:
        return subprocess.run(
            [str(python), "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except OSError as error:
        raise SetupError(f"{python} cannot be run: {error.strerror}.", "Run `forcegate env build`.") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{module} {' '.join(arguments[:1])} did not end within {SECONDS:.0f} s.", "") from None


def ask(
    environments: Path,
    environment: str,
    command: str,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Any:
    """What a command of ``forcefields.runtime.export`` answers; what it says on stderr goes to the file ``log`` when it fails.

    Raises:
        Unreadable: the package cannot read the checkpoint.
        ForcegateError: what the command raised.
        SetupError: the process ended without an answer; the end of what it said is in the message.
    """
    python = environments / environment / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix="forcegate-") as folder:
        answer = Path(folder) / "answer.json"
        ended = run(python, "forcefields.runtime.export", command, str(answer), *arguments, variables=variables)
        told = json.loads(answer.read_text()) if answer.is_file() else {}
    if log is not None and "result" not in told:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{command} {' '.join(arguments[:1])} in the environment {environment}\n{ended.stderr}\n")
    if "result" in told:
        return told["result"]
    if "unreadable" in told:
        raise Unreadable(told["unreadable"], "")
    if (known := from_wire(told.get("error", ""))) is not None:
        raise known
    how = f"was ended by signal {-ended.returncode}" if ended.returncode < 0 else f"ended with status {ended.returncode}"
    said = " ".join(ended.stderr.split())[-400:]
    raise SetupError(f"The process in the environment {environment} {how}: {said or 'it said nothing'}", "")
