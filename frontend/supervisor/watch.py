"""Keeps the models that should be there loaded: Triton itself never brings a dead model process back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from forcegate.errors import ForcegateError, ModelNotReady, ServerUnavailable
from frontend.supervisor import triton
from frontend.supervisor.launches import Launches
from frontend.triton.control import ModelState, TritonControl, dtype_of

log = logging.getLogger(__name__)

SCAN_SECONDS = 1.0
"""Interval at which model processes that somebody else had loaded are found."""
LONGEST_PAUSE = 60.0
"""s between attempts at a model that cannot be brought back; the pauses double from one second on."""

Load = Callable[[str, bool, str], Awaitable[None]]
"""Loads the named model and checks it. The second argument says that Triton takes it for ready although its process has died, the
third is the dtype that it should run in."""


class ModelWatch:
    """Compares, once a second and whenever a model process ends, what should be loaded with what is.

    A pidfd of every model process tells of its end at once, whatever ended it.

    Args:
        server: gives the process id of tritonserver, None while it is not running.
        load: loads one model.
        regions: gives the paths of the service's shared-memory regions.
        end: ends tritonserver at once; its keeper starts it again.
    """

    def __init__(
        self,
        control: TritonControl,
        server: Callable[[], int | None],
        load: Load,
        regions: Callable[[], list[str]],
        end: Callable[[], None],
    ) -> None:
        self._control, self._server, self._load, self._regions = control, server, load, regions
        self.launches = Launches(self._living, self._orphaned, end)
        self._owners: dict[str, str | None] = {}
        self._watched: dict[int, tuple[int, str]] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._orphans: set[str] = set()
        self._changed = asyncio.Event()
        self._asked: dict[str, frozenset[int]] = {}
        self.wanted: dict[str, str] = {}
        """Models that should be loaded, each with its dtype: those of the start, and those that somebody has loaded since and not
        unloaded."""
        self.instances: dict[str, int] = {}
        """How many processes a model should have; 1 for those that are not named. With fewer it is loaded again: Triton would go on
        sending requests to the one that has died."""

    @property
    def processes(self) -> list[int]:
        """Ids of the model processes that were last seen."""
        return list(self._watched)

    def processes_of(self, model: str) -> list[int]:
        """Those of one model."""
        return [pid for pid, (_, name) in self._watched.items() if name == model]

    def steady(self) -> dict[str, frozenset[int]]:
        """The models that should be there and are, each with its process ids; without those that are being brought back."""
        found = {name: frozenset(self.processes_of(name)) for name in self.wanted.keys() - self._working.keys()}
        return {name: processes for name, processes in found.items() if processes}

    def end(self, model: str) -> None:
        """Ends a model's processes, whatever they do. One that should be there is loaded again."""
        for pid in self.processes_of(model):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            self._changed.clear()
            with suppress(ServerUnavailable):  # it is being restarted, and its models are brought back once it answers
                await self._reconcile(await self._control.states())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), SCAN_SECONDS)

    async def _reconcile(self, states: dict[str, ModelState]) -> None:
        self.refresh()
        self.launches.look([name for name, state in states.items() if state.state == "LOADING"])
        living = Counter(model for _, model in self._watched.values())
        for name, state in states.items():
            if state.state == "READY":
                await self._note(name)
            elif state.reason == "unloaded":
                self.wanted.pop(name, None)
        for name in self.wanted.keys() - self._working.keys():
            found = states.get(name)
            dead = found is not None and found.state == "READY" and living[name] < self.instances.get(name, 1)
            lost = found is None or found.state == "UNAVAILABLE"
            if not dead and not lost:
                if found is not None and found.state == "READY":
                    self._failures.pop(name, None)
            elif time.monotonic() >= self._failures.get(name, (0, 0.0))[1]:
                self._working[name] = asyncio.create_task(self._bring_back(name, dead))
        if not self._working and not any(state.state == "LOADING" for state in states.values()):
            self._remove_orphans()

    async def _note(self, name: str) -> None:
        """Keeps a model's dtype in mind: a tritonserver that is started again knows nothing of it."""
        processes = frozenset(pid for pid, (_, model) in self._watched.items() if model == name)
        if name in self.wanted and (not processes or self._asked.get(name) == processes):
            return
        with suppress(ModelNotReady):  # unloaded since the index was read
            self.wanted[name] = dtype_of(await self._control.config(name))
            self._asked[name] = processes

    async def _bring_back(self, name: str, dead: bool) -> None:
        started = time.monotonic()
        log.error("model process died" if dead else "model is not loaded", extra={"model": name})
        if dead:
            # Of several, those that live would stay with the copy that Triton is not able to end, and hold their memory.
            self.end(name)
        try:
            await self._load(name, dead, self.wanted[name])
        except ForcegateError as error:
            failures = self._failures.get(name, (0, 0.0))[0] + 1
            pause = min(2.0 ** (failures - 1), LONGEST_PAUSE)
            self._failures[name] = (failures, time.monotonic() + pause)
            if not error.retryable:
                # It says itself that it must not be served: a checkpoint that differs, a gate that failed.
                self.wanted.pop(name, None)
            log.error(
                "model could not be brought back",
                extra={"model": name, "code": error.code, "detail": error.detail, "failures": failures, "again": error.retryable},
            )
        else:
            log.warning("model is back", extra={"model": name, "seconds": round(time.monotonic() - started, 2)})
        finally:
            del self._working[name]
            self._changed.set()

    def refresh(self) -> None:
        """Finds new model processes."""
        server = self._server()
        if server is None:
            return
        for pid, model in triton.model_processes(server).items():
            if pid in self._watched:
                continue
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # it has ended in this moment
                continue
            self._watched[pid] = (descriptor, model)
            asyncio.get_running_loop().add_reader(descriptor, self._ended, pid)

    def _ended(self, pid: int) -> None:
        descriptor, _ = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        # An unload or a reload by somebody else also ends a process; Triton's index changes within moments.
        asyncio.get_running_loop().call_later(0.1, self._changed.set)

    def _living(self, model: str) -> list[int]:
        if not (known := self.processes_of(model)):  # or several loads at once would read the process table all the time
            self.refresh()
        return known or self.processes_of(model)

    def _orphaned(self) -> dict[str, str | None]:
        """The regions that no living model process was started with, each with the model whose process named it last."""
        server = self._server()
        if server is None:
            return {}
        existing = {os.path.basename(path): path for path in self._regions()}
        named = triton.regions_in_use(server)
        self._owners = {name: named.get(name) or self._owners.get(name) for name in existing}
        return {path: self._owners[name] for name, path in existing.items() if name not in named}

    def _remove_orphans(self) -> None:
        """Unlinks the shared memory of model processes that have died; Triton keeps it until its own end.

        A region is taken for orphaned when no living process names it at two scans in a row: between its making and the start of
        its process there is a moment.
        """
        orphans = set(self._orphaned())
        for path in orphans & self._orphans:
            with suppress(OSError):
                os.unlink(path)
        self._orphans = orphans - self._orphans

    async def close(self) -> None:
        """Stops watching, and whatever is being brought back."""
        tasks = list(self._working.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for descriptor, _ in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()
