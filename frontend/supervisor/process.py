"""One child process: started so that it cannot outlive its parent, logged to a file, stopped by its id."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from frontend.supervisor import remains

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
LARGEST_LOG = 50 * 2**20
"""Bytes. A longer log is set aside, and one that was set aside before it is dropped."""
LOG_SECONDS = 10.0
"""Interval at which the lengths of logs are looked at."""


class ChildProcess:
    """A child with its log file.

    Args:
        to_file: whether it writes into its log; where containers keep the logs, it writes where its parent does.
    """

    def __init__(self, name: str, log: Path, to_file: bool = True) -> None:
        self.name, self.log, self._to_file = name, log, to_file
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def started(self) -> bool:
        """Whether it has been started, however long ago."""
        return self._process is not None

    @property
    def running(self) -> bool:
        """Whether it has been started and not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, command: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int] = ()) -> None:
        """Starts it in a session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops all in order.

        Args:
            descriptors: open files that it inherits, under the same numbers.
        """
        if self._to_file:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            set_aside(self.log)
        parent = os.getpid()
        with self.log.open("ab") if self._to_file else nullcontext(sys.stderr) as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env={**environment, remains.SUPERVISOR: remains.signature()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=descriptors,
                preexec_fn=lambda: die_with(parent),
            )

    async def wait(self) -> int:
        """Waits for its end and returns the exit status, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, patience: float) -> None:
        """SIGTERM, and SIGKILL when it has not ended after ``patience`` seconds."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL, without waiting for the end."""
        if self._process is not None and self.running:
            self._process.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 16_384))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def set_aside(path: Path) -> bool:
    """Copies a log that has grown too long to ``<name>.old`` and empties it, while processes go on writing at its end.

    Whoever writes has opened it to append, or would leave a hole as long as the log was. Lines written between the copy and the
    emptying are lost.

    Returns:
        Whether the log was too long.
    """
    old = path.with_suffix(".old")
    try:
        if path.stat().st_size <= LARGEST_LOG:
            return False
        old.unlink(missing_ok=True)
        shutil.copyfile(path, old)
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    except OSError as error:  # a full disk ends no service; the log is tried again
        log.error("log not set aside", extra={"path": str(path), "detail": str(error)})
    return True


async def keep_short(logs: Sequence[Path]) -> None:
    """Sets logs aside when they grow too long, until it is cancelled."""
    while True:
        for path in logs:
            await asyncio.to_thread(set_aside, path)
        await asyncio.sleep(LOG_SECONDS)


def die_with(parent: int) -> None:
    """Runs in the child: the kernel sends it SIGTERM when its parent ends, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)
