"""Loads that Triton will never finish: tritonserver 2.51 waits without a limit for the first word of a model process.

A process that is killed, or cannot start, before it has said that word leaves tritonserver in ``StubLauncher::Launch``; the model
stays loading, and every later load of it is refused. Nothing but the end of tritonserver ends that wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from forcegate.errors import EnvironmentBroken, ServerUnavailable

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""s without a process of the model after which its load is taken for lost. That a process has died which it has heard of, Triton
itself sees within 2 s."""
SCAN_SECONDS = 0.5
ATTEMPTS = 3
"""Lost loads in a row after which a model is no longer tried: every one of them costs all models a restart."""


class Launches:
    """Sees that a load is lost, and ends tritonserver, which its keeper starts again.

    A load is lost when for a while no process of the model lives, although shared memory was made for one: a load that waits for
    its turn has made none yet.

    Args:
        processes: gives the ids of a model's living processes.
        orphans: gives the shared-memory regions that no living process names, each with the model that named it last, or None.
        end: ends tritonserver at once.
    """

    def __init__(
        self, processes: Callable[[str], list[int]], orphans: Callable[[], dict[str, str | None]], end: Callable[[], None]
    ) -> None:
        self._processes, self._orphans, self._end = processes, orphans, end
        self._silent: dict[str, float] = {}
        self._lost: Counter[str] = Counter()
        self._own: set[str] = set()

    async def watched(self, model: str, load: Awaitable[None]) -> None:
        """Waits for a load of ``model``.

        Raises:
            ServerUnavailable: it was lost; tritonserver is being started again.
            EnvironmentBroken: it was lost time and again.
        """
        task = asyncio.ensure_future(load)
        # What an earlier process of the model has left, and one that serves until the new one is ready.
        regions, processes = set(self._orphans()), set(self._processes(model))
        since = time.monotonic()
        self._own.add(model)
        try:
            while not (await asyncio.wait({task}, timeout=SCAN_SECONDS))[0]:
                if set(self._processes(model)) - processes or not self._left(model, regions):
                    since = time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    raise self._give_up(model)
            task.result()
            del self._lost[model]
        finally:
            self._own.discard(model)
            task.cancel()

    def look(self, loading: Iterable[str]) -> None:
        """Judges the loads that somebody else has asked for: ``loading`` are the models that Triton calls loading now.

        To be called once a second, and with nothing when tritonserver has ended.
        """
        now = time.monotonic()
        others = set(loading) - self._own
        silent = [model for model in others if not self._processes(model) and self._left(model, set())]
        self._silent = {model: self._silent.get(model, now) for model in silent}
        lost = next((model for model, since in self._silent.items() if now - since > PATIENCE), None)
        if lost is not None:
            self._silent.clear()
            self._give_up(lost)

    def _left(self, model: str, known: set[str]) -> bool:
        return any(owner in (None, model) for path, owner in self._orphans().items() if path not in known)

    def _give_up(self, model: str) -> ServerUnavailable | EnvironmentBroken:
        self._lost[model] += 1
        log.error(
            "a model's process ended before it was heard of, and tritonserver waits for it: ending tritonserver",
            extra={"model": model, "times": self._lost[model]},
        )
        self._end()
        if self._lost[model] < ATTEMPTS:
            return ServerUnavailable(f"The process of {model!r} ended while it started; the inference server is started again.")
        return EnvironmentBroken(
            f"The process of {model!r} ended {self._lost[model]} times before it could say why.",
            "Build its environment anew (`forcegate env build`), look whether the machine is out of memory, and load it again.",
        )
