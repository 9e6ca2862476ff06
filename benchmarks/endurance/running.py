"""The service of an endurance run: its processes by kind, and what starts it again when its supervisor is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.service import environment, say
from frontend.settings import Settings
from frontend.supervisor import triton

PAUSE_SECONDS = 1.0
"""Before a service that has ended is started again, as RestartSec of a process manager."""


class Running:
    """``forcegate serve``, started again whenever it ends, as by a process manager with Restart=always."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.starts = settings, 0
        self._stop = threading.Event()
        self._process = self._started()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @property
    def log(self) -> Path:
        """What the supervisor says."""
        return self.settings.state / "serve.log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor that is there now."""
        return self._process

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The living processes by kind: supervisor, gateway, worker, tritonserver, and every model by its name."""
        found: dict[str, list[psutil.Process]] = {}
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self._process.pid)
            for process in [supervisor, *supervisor.children(recursive=True)]:
                with suppress(psutil.Error):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.setdefault(_kind(process, process.pid == supervisor.pid), []).append(process)
        return found

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self._stop.set()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(2 * self.settings.drain_seconds + 60)
        self._keeper.join(10)
        return status

    def _started(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "forcegate.cli", "serve"]
            return subprocess.Popen(command, env=environment(self.settings), stdout=output, stderr=output, start_new_session=True)

    def _keep(self) -> None:
        while not self._stop.is_set():
            status = self._process.wait()
            if self._stop.wait(PAUSE_SECONDS):
                return
            say(f"the service ended with status {status}; starting it again")
            self._process = self._started()


def _kind(process: psutil.Process, is_supervisor: bool) -> str:
    if is_supervisor:
        return "supervisor"
    arguments = process.cmdline()
    if (model := triton.model_of(arguments)) is not None:
        return model
    for module, kind in (("frontend.gateway", "gateway"), ("frontend.tasks.worker", "worker"), ("decoder_process", "decoder")):
        if any(module in argument for argument in arguments):
            return kind
    return process.name()


@contextmanager
def kept_running(settings: Settings) -> Iterator[Running]:
    """See ``Running``; stopped at the end of the block."""
    running = Running(settings)
    try:
        yield running
    finally:
        running.stop()
