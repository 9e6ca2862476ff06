"""Ends this process when a step hangs.

The clock is ``faulthandler``'s, a thread of C: code that holds the GIL for ever is caught too, and where it hung is in the log. To
set that clock starts and joins a thread, a tenth of a millisecond each time, so it is set for a little longer than needed and left
alone for as long as that holds.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SLACK = 0.25
"""The clock may run longer than a step's limit by this part of it."""
LARGE = 256
"""Atoms beyond which a step gets more time, in proportion."""


class Watchdog:
    """Watches steps, of which several may run at once, each in its thread.

    Args:
        seconds: time that a step over a few atoms gets.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tick = min(max(seconds / 8, 0.1), 5.0)
        self._lock = threading.Lock()
        self._due: dict[object, float] = {}
        self._rings = 0.0
        """When the clock rings, by ``time.monotonic``; 0 where it is not set."""
        threading.Thread(target=self._rest, name="watchdog", daemon=True).start()

    @contextmanager
    def watch(self, atoms: int) -> Iterator[None]:
        """A step over that many atoms. If it is not over in time, the process ends."""
        step, limit = object(), self._seconds * max(1.0, atoms / LARGE)
        with self._lock:
            now = time.monotonic()
            self._due[step] = now + limit
            latest = max(self._due.values())
            if not latest <= self._rings <= latest + SLACK * limit:
                self._set(latest + SLACK * limit, now)
        try:
            yield
        finally:
            with self._lock:
                del self._due[step]
                # Else it might ring before the thread below looks at it again.
                if not self._due and self._rings - time.monotonic() < 4 * self._tick:
                    self._clear()

    def _set(self, rings: float, now: float) -> None:
        self._rings = rings
        faulthandler.dump_traceback_later(rings - now, exit=True)

    def _clear(self) -> None:
        if self._rings:
            self._rings = 0.0
            faulthandler.cancel_dump_traceback_later()

    def _rest(self) -> None:
        """Stops the clock of a process that has nothing to do."""
        while True:
            time.sleep(self._tick)
            with self._lock:
                if not self._due:
                    self._clear()
