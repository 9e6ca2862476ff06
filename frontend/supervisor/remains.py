"""What a supervisor that was killed has left running: ended before another one begins on the same state folder.

The kernel tells its children to end (``die_with``), and each does so in its own time: a gateway waits for requests that nobody
can answer any more, and tritonserver for a model that it loads. Meanwhile they hold their ports. gRPC shares its port with whoever
opens it, so that two servers would answer by turns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

SUPERVISOR = "FORCEGATE_SUPERVISOR"
"""Variable of every process that a supervisor starts, and of what that starts in turn: ``<process id>:<its start>``."""
STATE = "FORCEGATE_STATE"
PATIENCE = 5.0
"""s in which they may end by themselves: a worker keeps the last states of its tasks in 3."""

CLOCK_SECONDS = 5.0
"""By which the start of a process may seem to have moved when the clock was set; ids are not used again so soon."""


def signature() -> str:
    """What children of this process have as ``SUPERVISOR``. The start tells it from a later process of the same id."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def end(state: Path, say: Callable[[str], None], patience: float = PATIENCE) -> int:
    """Ends the processes on a state folder whose supervisor is dead; returns how many there were.

    What runs under a supervisor of its own, or under none (``forcegate worker``), is left alone.
    """
    left = [process for process in psutil.process_iter() if _left(process, state.resolve())]
    if not left:
        return 0
    say(f"waiting for {len(left)} processes of a service that was killed")
    _, alive = psutil.wait_procs(left, timeout=patience)
    for process in alive:
        log.warning("killed what an earlier service has left", extra={"pid": process.pid})
        process.kill()
    psutil.wait_procs(alive, timeout=patience)
    return len(left)


def _left(process: psutil.Process, state: Path) -> bool:
    try:
        variables = process.environ()
        if SUPERVISOR not in variables or Path(variables.get(STATE, "")) != state or process.status() == psutil.STATUS_ZOMBIE:
            return False
        identifier, _, started = variables[SUPERVISOR].partition(":")
        return not _lives(int(identifier), float(started))
    except (psutil.Error, OSError, ValueError):  # it has ended, or is somebody else's
        return False


def _lives(identifier: int, started: float) -> bool:
    try:
        process = psutil.Process(identifier)
        return abs(process.create_time() - started) < CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
