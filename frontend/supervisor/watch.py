"""Watches the model processes, and brings back a model whose process has died: Triton itself never does."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

from forcegate.errors import ForcegateError, ServerUnavailable
from frontend.supervisor.triton import model_processes
from frontend.triton.control import TritonControl

log = logging.getLogger(__name__)

SCAN_SECONDS = 1.0
"""Interval at which model processes that somebody else had loaded are found."""


class ModelWatch:
    """Holds a pidfd of every model process: the kernel tells of an end at once, whatever ended it.

    Args:
        server: gives the process id of tritonserver, None while it is not running.
    """

    def __init__(self, control: TritonControl, server: Callable[[], int | None]) -> None:
        self._control, self._server = control, server
        self._watched: dict[int, tuple[int, str]] = {}
        self._reloading: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.resident: set[str] = set()
        """Models that Triton last said are ready: what is loaded again after a restart."""
        self.restarting = False
        """While a new server is loading them, what it says is not what should be resident."""

    @property
    def processes(self) -> list[int]:
        """Ids of the model processes that were last seen."""
        return list(self._watched)

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            self.refresh()
            # While the server is being restarted, what was resident before counts.
            with suppress(ServerUnavailable):
                states = await self._control.states()
                if not self.restarting:
                    self.resident = {name for name, state in states.items() if state.state == "READY"}
            await asyncio.sleep(SCAN_SECONDS)

    def refresh(self) -> None:
        """Finds new model processes."""
        server = self._server()
        if server is None:
            return
        for pid, model in model_processes(server).items():
            if pid in self._watched:
                continue
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self._watched[pid] = (descriptor, model)
            asyncio.get_running_loop().add_reader(descriptor, self._ended, pid)

    def _ended(self, pid: int) -> None:
        descriptor, model = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if model not in self._reloading:
            task = asyncio.create_task(self._heal(model, pid))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _heal(self, model: str, pid: int) -> None:
        """Reloads a model that Triton takes for ready and that has no living process."""
        # An unload or a reload by somebody else also ends a process; its state changes within moments.
        await asyncio.sleep(0.1)
        self.refresh()
        try:
            state = (await self._control.states()).get(model)
        except ServerUnavailable:
            return  # the whole server is gone, and its keeper restores the models
        if state is None or state.state != "READY" or any(name == model for _, name in self._watched.values()):
            return
        log.error("model process died", extra={"model": model, "pid": pid})
        self._reloading.add(model)
        started = time.monotonic()
        try:
            await self._control.reload(model)
            log.warning("model is back", extra={"model": model, "seconds": round(time.monotonic() - started, 2)})
        except ForcegateError as error:
            log.error("model could not be brought back", extra={"model": model, "code": error.code, "detail": error.detail})
        finally:
            self._reloading.discard(model)
            self.refresh()

    def close(self) -> None:
        """Stops watching."""
        for task in self._tasks:
            task.cancel()
        loop = asyncio.get_running_loop()
        for descriptor, _ in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()
