"""The gateways of one service: one process or several behind one listening socket, each started and brought back by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from pathlib import Path

from prometheus_client import multiprocess

from forcegate.errors import SetupError
from frontend.settings import PREFIX, Settings
from frontend.supervisor.process import ChildProcess
from frontend.telemetry import METRICS_FOLDER

BACKLOG = 2048
"""Connections that wait to be accepted; as uvicorn has it."""


class Gateways:
    """All gateways.

    The supervisor holds the listening socket. While one gateway is being started again the port stays open: the others accept, or,
    where there is no other, connections wait for it.
    """

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = settings
        self._socket: socket.socket | None = None
        self._metrics = (settings.state / "metrics").resolve()
        several, to_file = settings.gateways > 1, settings.log_to == "files"
        self.processes = [
            ChildProcess(f"gateway {number}" if several else "gateway", log, to_file) for number in range(1, settings.gateways + 1)
        ]

    async def start(self, patience: float) -> None:
        """Opens the port, starts all, and waits until all accept.

        Raises:
            SetupError: the port cannot be opened, one of them ended, or was not ready after ``patience`` seconds.
        """
        if not self.processes:
            return
        if self._settings.gateways > 1:
            # What gateways of an earlier service counted.
            shutil.rmtree(self._metrics, ignore_errors=True)
            self._metrics.mkdir(parents=True)
        self._socket = _listen(self._settings.host, self._settings.port)
        try:
            await asyncio.gather(*(self.start_one(process, patience) for process in self.processes))
        except BaseException:
            await self.stop(5)
            raise

    async def start_one(self, process: ChildProcess, patience: float) -> None:
        """Starts one of them, for the first time or again, and waits until it accepts connections.

        Raises:
            SetupError: it ended, or was not ready after ``patience`` seconds.
        """
        assert self._socket is not None
        number = self.processes.index(process) + 1
        self._forget(process)
        reading, writing = os.pipe()
        try:
            descriptors = self._socket.fileno(), writing
            command = [sys.executable, "-m", "frontend.gateway", *map(str, (*descriptors, number))]
            try:
                await process.start(command, self._environment(), descriptors)
            finally:
                os.close(writing)
            told = await _told(reading, patience)
        finally:
            os.close(reading)
        if not told:
            await process.stop(5)
            raise SetupError("The gateway did not start.", f"The end of {process.log}:\n{process.tail()}")

    async def stop(self, patience: float) -> None:
        """Closes the port and stops all at once; requests in flight get ``patience`` seconds."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        await asyncio.gather(*(process.stop(patience) for process in self.processes))

    def _environment(self) -> dict[str, str]:
        variables = child_environment(self._settings)
        variables.pop(METRICS_FOLDER, None)
        if self._settings.gateways > 1:
            variables[METRICS_FOLDER] = str(self._metrics)
        return variables

    def _forget(self, process: ChildProcess) -> None:
        """What a process that has ended held is not there any more; what it counted stays."""
        if self._settings.gateways > 1 and process.started:
            multiprocess.mark_process_dead(process.pid, str(self._metrics))


def child_environment(settings: Settings) -> dict[str, str]:
    """The variables of a process of the service: those of this one, with its settings in place of what was given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    absolute = {"root": settings.root.resolve(), "state": settings.state.resolve()}
    return environment | settings.model_copy(update=absolute).as_environment()


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    except OSError as error:
        raise SetupError(
            f"Port {port} on {host} (port) cannot be used: {error.strerror}.",
            f"End the program that has it, or set {PREFIX}PORT to another port.",
        ) from None
    listener.setblocking(False)
    return listener


async def _told(pipe: int, patience: float) -> bool:
    """Whether a byte comes through a pipe before it is closed, as it is when its writer ends, and before the time is over."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), patience)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pipe)
    return bool(os.read(pipe, 1))
