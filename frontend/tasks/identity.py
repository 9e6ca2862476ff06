"""The name of a worker: the same after a restart, so that it finds its tasks again at once, and never that of two that live."""

from __future__ import annotations

import fcntl
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def identity(state: Path) -> Iterator[str]:
    """The first name in the state folder that no process that lives has; it is this process's until the block ends.

    The kernel frees the name when the process ends, however it ends.
    """
    folder = state / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        with (folder / str(number)).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number += 1
                continue
            file.seek(0)
            if not (name := file.read().strip()):
                host = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())[:40]
                name = f"{host}-{uuid.uuid4().hex[:8]}"
                file.write(name)
                file.flush()
            yield name
            return
