"""A gateway's or a worker's side of the socket (wire.py): it holds what it uses, and follows what the owner decides.

A model that was granted once stays held, and costs no message, until the owner recalls it. From then on nothing new begins with it
here; it is given back when the last use has ended, and whoever wants it then asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from forcegate.errors import DeadlineExceeded, ForcegateError, ModelNotReady, ServerUnavailable
from frontend.scheduler import wire

log = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 0.2
USED_SECONDS: Final = 0.5
"""How often the owner is told which models were used, for its choice of who goes."""
MARGIN_SECONDS: Final = 0.25
"""Time that is left for the answer when a wait ends."""
RETRY_AFTER: Final = 5
SMALL_EDGES: Final = 2048
"""Structures with fewer neighbour pairs are not told of: they take 100 MB or so, which the margin of each device has."""
STEPS, MOST_STEPS = 4, 160
"""Sizes are told in steps of the fourth root of two; the largest of them is beyond every device."""
TOLD_SECONDS: Final = 30.0
"""How long it may be that the owner was told of structures of a size for the next one to begin without a question; the owner keeps
room for them twice as long, and as long as one is under way."""


@dataclass
class _Lease:
    """What one connection holds.

    Attributes:
        uses: those under way, by model; ``large``: those of structures that are not small, by model and size.
        recalled: models that are to be given back.
        sizes: what each model has memory for: the size of structures that the owner was told of, and when.
    """

    uses: dict[str, int] = field(default_factory=dict)
    large: Counter[tuple[str, int]] = field(default_factory=Counter)
    recalled: set[str] = field(default_factory=set)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)

    def allows(self, name: str, size: int, now: float) -> bool:
        """Whether a use may begin without a question."""
        known, told_at = self.sizes.get(name, (0, float("-inf")))
        enough = not size or (size <= known and now - told_at < TOLD_SECONDS)
        return enough and name in self.uses and name not in self.recalled


class Follower:
    """One process's connection to the owner. ``run`` keeps it up.

    Args:
        folder: the state folder of the service.
        name: of this process, for people.
        clock: monotonic time in s.
    """

    def __init__(self, folder: Path, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._name, self._clock = folder, f"{name} ({os.getpid()})", clock
        self._writer: asyncio.StreamWriter | None = None
        self._lease = _Lease()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[tuple[str, ...], asyncio.Future[None]]] = {}
        self._used: set[str] = set()
        self.state: dict[str, Any] | None = None
        """What the owner told last; None where there is none."""
        self.told_at = float("-inf")
        self.waiting: Callable[[], Mapping[str, float]] = dict
        """Gives the seconds that work waits here, by model: the owner is told with the uses."""

    async def run(self) -> None:
        """Follows until it is cancelled."""
        while True:
            try:
                reader, self._writer = await wire.connect(self._folder)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            telling = asyncio.create_task(self._tell_uses())
            try:
                self._send({"hello": self._name})
                while (message := await wire.read(reader)) is not None:
                    self._take(message)
            finally:
                telling.cancel()
                self._disconnected()

    @property
    def connected(self) -> bool:
        """Whether there is an owner."""
        return self._writer is not None

    @asynccontextmanager
    async def hold(
        self, models: Iterable[str], deadline: float, priority: int = 1, edges: Mapping[str, int] | None = None
    ) -> AsyncIterator[None]:
        """All of ``models`` are resident while the block runs. Without an owner it runs at once: what is there can be used.

        Args:
            deadline: of the clock, until which a wait makes sense.
            priority: index into ``PRIORITIES``.
            edges: neighbour pairs of the largest structure that each is used for.

        Raises:
            ModelNotReady: the deadline comes first; what was begun for it goes on.
            NoRoom, and what a failed load ended with.
        """
        names = tuple(sorted(set(models)))
        sizes = {name: _size(pairs) for name, pairs in (edges or {}).items() if pairs >= SMALL_EDGES}
        lease = await self._acquire(names, deadline, priority, sizes)
        self._used.update(names)
        if lease is not None:
            lease.large.update(sizes.items())
        try:
            yield
        finally:
            if lease is not None:
                lease.large -= Counter(sizes.items())
                self._used.update(names)
                self._leave(lease, names)

    async def _acquire(self, names: tuple[str, ...], deadline: float, priority: int, sizes: Mapping[str, int]) -> _Lease | None:
        while self.connected:
            lease, now = self._lease, self._clock()
            if all(lease.allows(name, sizes.get(name, 0), now) for name in names):
                for name in names:
                    lease.uses[name] += 1
                return lease
            try:
                if await self._ask(names, deadline, priority, sizes):
                    lease.sizes.update({name: (size, self._clock()) for name, size in sizes.items()})
                    return lease  # the grant has counted this use already
            except ConnectionError:
                continue
            except TimeoutError:
                raise self._too_late(names) from None
        return None

    async def _ask(self, names: tuple[str, ...], deadline: float, priority: int, sizes: Mapping[str, int]) -> bool:
        lease, number, future = self._lease, next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = names, future
        edges = {name: _edges(size) for name, size in sizes.items()}
        self._send({"ask": number, "models": names, "priority": priority, "edges": edges})
        patience = max(deadline - MARGIN_SECONDS - self._clock(), 0.01)
        try:
            async with asyncio.timeout(patience if patience < float("inf") else None):
                await future
        except BaseException:
            if self._waiting.pop(number, None) is not None:
                self._send({"cancel": number})
            elif future.done() and not future.cancelled() and future.exception() is None:
                self._leave(lease, names)  # granted in the moment in which its caller left
            raise
        return lease is self._lease

    def _too_late(self, names: tuple[str, ...]) -> ForcegateError:
        states = (self.state or {}).get("models", {})
        told = ", ".join(f"{name} is {states.get(name, {}).get('state', 'waiting')}" for name in names)
        error = ModelNotReady(f"A model was not ready in time: {told}.", "Try again in a few seconds: what was begun goes on.")
        error.retry_after = RETRY_AFTER
        return error

    def _leave(self, lease: _Lease, names: tuple[str, ...]) -> None:
        for name in names:
            lease.uses[name] -= 1
            if not lease.uses[name] and name in lease.recalled:
                self._give_back(lease, name)

    def _give_back(self, lease: _Lease, name: str) -> None:
        lease.uses.pop(name, None)
        lease.sizes.pop(name, None)
        lease.recalled.discard(name)
        if lease is self._lease:
            self._send({"release": name})

    async def do(self, what: str, patience: float, **arguments: Any) -> None:
        """One command of a person.

        Raises:
            ServerUnavailable: there is no owner, or it ends.
            DeadlineExceeded: it is not done in time; it goes on.
            ForcegateError: what it ended with.
        """
        if not self.connected:
            raise ServerUnavailable("The scheduler does not answer.", "`forcegate serve` starts it.")
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = (), future
        self._send({"do": number, "what": what, **arguments})
        try:
            await asyncio.wait_for(future, patience)
        except TimeoutError:
            raise DeadlineExceeded(f"It was not done within {patience:g} s; it goes on.") from None
        except ConnectionError:
            raise ServerUnavailable("The scheduler does not answer.") from None
        finally:
            self._waiting.pop(number, None)

    def _take(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"state": dict(state)}:
                self.state, self.told_at = state, self._clock()
            case {"granted": int(number)}:
                self._granted(number)
            case {"done": int(number)}:
                if (found := self._waiting.pop(number, None)) is not None and not found[1].done():
                    found[1].set_result(None)
            case {"refused": int(number), "error": dict(error)}:
                if (found := self._waiting.pop(number, None)) is not None and not found[1].done():
                    found[1].set_exception(wire.error_from_dict(error))
            case {"recall": str(model)}:
                self._lease.recalled.add(model)
                if not self._lease.uses.get(model):
                    self._give_back(self._lease, model)

    def _granted(self, number: int) -> None:
        names, future = self._waiting.pop(number, ((), None))
        taken = future is not None and not future.done()
        for name in names:
            self._lease.uses[name] = self._lease.uses.get(name, 0) + taken
        if taken and future is not None:
            future.set_result(None)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None and not self._writer.transport.is_closing():
            self._writer.write(wire.line(message))

    async def _tell_uses(self) -> None:
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(USED_SECONDS)
            uses = {name: count for name, count in self._lease.uses.items() if count}
            busy, self._used = uses.keys() | self._used, set()
            if busy or told:
                # In the order of their sizes, so that the largest of each model stays.
                edges = {name: _edges(size) for name, size in sorted(self._lease.large, key=lambda each: each[1])}
                self._send({"used": sorted(busy), "uses": uses, "waiting": dict(self.waiting()), "edges": edges})
            told = uses

    def _disconnected(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._lease, self.state = None, _Lease(), None
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionError())
        if waiting:
            log.warning("the scheduler is gone", extra={"waiting": len(waiting)})


def _size(edges: int) -> int:
    """The least step that is not below so many pairs."""
    return min(math.ceil(STEPS * math.log2(edges)), MOST_STEPS)


def _edges(size: int) -> int:
    return int(2 ** (size / STEPS))
