"""Second chances after a crash: a structure that kills its model must not kill it for ever, nor take its batch-mates with it.

When a model's process dies, every structure in flight is a suspect. Suspects are sent again a few at a time; one that is in flight
at a second death is sent a last time with nothing beside it. Only a structure that was alone when the process died is blamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

FEW: Final = 8
"""Suspects that are sent again together."""
MAX_RESENT: Final = 2
"""How often a structure is sent again after deaths of its model's process."""


class Quarantine:
    """Who may be sent to one model beside whom.

    ``admit(0)`` is for structures above suspicion, ``admit(1)`` for those in flight at one death, ``admit(2)`` for two.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._few = asyncio.Semaphore(FEW)
        self._alone = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def quiet(self) -> bool:
        """Whether nobody is being sent alone, so that ``enter`` and ``leave`` may be used without waiting."""
        return self._open.is_set()

    def enter(self) -> None:
        """Counts one structure as sent."""
        self._in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Counts one structure as answered."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    @asynccontextmanager
    async def admit(self, deaths: int) -> AsyncIterator[None]:
        """Waits until a structure with that many deaths behind it may be sent, and counts it while the block runs."""
        if deaths >= MAX_RESENT:
            async with self._alone:
                self._open.clear()
                try:
                    await self._idle.wait()
                    with _Sent(self):
                        yield
                finally:
                    self._open.set()
        elif deaths:
            async with self._few:
                await self._open.wait()
                with _Sent(self):
                    yield
        else:
            await self._open.wait()
            with _Sent(self):
                yield


class _Sent:
    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine

    def __enter__(self) -> None:
        self._quarantine.enter()

    def __exit__(self, *_: object) -> None:
        self._quarantine.leave()
