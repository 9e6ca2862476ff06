"""The queue in front of one model: what waits, in which order it goes to Triton, and how much of it is there at once.

Triton takes requests in the order of their coming, so order can be decided only for what has not been handed over yet. Enough is
handed over that the model always finds its next batch, and no more.

Two classes: somebody waits for an interactive request, nobody in particular for each structure of a bulk one. Interactive goes
first, and each class is first in, first out. So that nothing starves, one bulk request goes before everything interactive whenever
bulk has waited for ``PATIENCE_SECONDS`` since the last one. The n-th in the bulk queue has its turn after n times that and what a
full window takes, at the latest.

Free of I/O: everything runs on the event loop, and time comes from ``clock``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from forcegate.contract import MAX_BATCH_SIZE
from forcegate.errors import DeadlineExceeded, Overloaded
from frontend.admission.cost import Correction, Work

WINDOW_SECONDS: Final = 0.25
"""Work that is handed over to Triton at once. Half of it is being computed and half is the next batch, and a batch that takes an
eighth of a second makes nothing of the milliseconds between two of them. An interactive request waits for so long behind bulk."""
WINDOW_PASSES: Final = 2.0
"""Full forward passes that may be handed over, for each instance of the model, whatever they take."""
WINDOW_STRUCTURES: Final = 2 * MAX_BATCH_SIZE
"""Structures that may be handed over for each instance, however little they take."""
PATIENCE_SECONDS: Final = 1.0
DOUBT: Final = 2.0
"""Work is refused for its deadline when it would be late by this factor: estimates are not better than that."""
LONGEST_RETRY: Final = 300


@dataclass(frozen=True)
class Load:
    """What waits in one class."""

    structures: int
    seconds: float


class Place:
    """One request's place in the queue. ``async with place:`` waits for its turn; the block is its time in Triton.

    Whoever wants to see the two apart awaits ``turn`` before.
    """

    __slots__ = ("_queue", "_turn", "bulk", "deadline", "entered", "handed_over", "left", "work")

    def __init__(self, queue: ModelQueue, work: Work, bulk: bool, deadline: float, now: float) -> None:
        self._queue = queue
        self._turn: asyncio.Future[None] | None = None
        self.work, self.bulk, self.deadline, self.entered = work, bulk, deadline, now
        self.handed_over = self.left = False

    async def __aenter__(self) -> Place:
        """See ``turn``."""
        await self.turn()
        return self

    async def turn(self) -> None:
        """Returns when it is this request's turn.

        Raises:
            DeadlineExceeded: the deadline passed before; Triton never hears of the request.
        """
        if not self.handed_over:
            self._turn = asyncio.get_running_loop().create_future()
            try:
                remaining = max(self.deadline - self._queue.clock(), 0.0)
                async with asyncio.timeout(remaining if math.isfinite(remaining) else None):
                    await self._turn
            except TimeoutError:
                if not self.handed_over:  # else it had its turn in the same moment, and was counted
                    self._queue.waited(self, self._queue.clock())
                raise self._queue.refused_for_deadline("The deadline passed while the request waited for the model.") from None
            finally:
                if not self.handed_over or self._turn.cancelled():
                    self._queue.leave(self)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Makes room for the next one."""
        self._queue.finish(self)

    def hand_over(self) -> None:
        """It is this request's turn now."""
        self.handed_over = True
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)


@dataclass
class _Class:
    """One class: its places in order, and the estimated seconds of those that wait and of all that have not been finished."""

    waiting: OrderedDict[Place, None] = field(default_factory=OrderedDict)
    unfinished: int = 0
    structures: int = 0
    seconds_waiting: float = 0.0
    seconds: float = 0.0


class ModelQueue:
    """The queue in front of one model.

    Args:
        limit: estimated seconds of work that each class may hold here, waiting and in Triton.
        pass_atoms: atoms of a full forward pass of the model.
        clock: monotonic time in s.
        on_refusal: called with the reason whenever something is refused: ``queue`` or ``deadline``.
        on_wait: called with the class (``interactive``, ``bulk``) and the seconds that a request has waited, until its turn or its
            deadline.
    """

    def __init__(
        self,
        limit: float,
        pass_atoms: int,
        clock: Callable[[], float] = time.monotonic,
        on_refusal: Callable[[str], None] = lambda _: None,
        on_wait: Callable[[str, float], None] = lambda _class, _seconds: None,
    ) -> None:
        self.limit, self.clock = limit, clock
        self.correction = Correction()
        self.instances = 1
        """Of the model in Triton: each needs its next pass there. Seconds are those until the answer, whoever computes."""
        self._pass_atoms = pass_atoms
        self._on_refusal, self._on_wait = on_refusal, on_wait
        self._interactive, self._bulk = _Class(), _Class()
        self._bulk_turn = -math.inf
        self._handed_over = self._handed_over_structures = self._handed_over_atoms = 0
        self._handed_over_seconds = 0.0

    @contextmanager
    def enter(self, works: Sequence[Work], bulk: bool, deadline: float) -> Iterator[list[Place]]:
        """Places for one caller's requests, which they keep until the block ends or each of them is finished.

        Args:
            deadline: on ``clock``.

        Raises:
            Overloaded: their class has no room for them. Work of more than ``limit`` has room when its class is empty.
            DeadlineExceeded: they cannot be finished before the deadline.
        """
        self._admit(sum(work.seconds for work in works), bulk, deadline)
        now = self.clock()
        places = [Place(self, work, bulk, deadline, now) for work in works]
        for place in places:
            self._join(place)
        self._hand_over()
        try:
            yield places
        finally:
            # Those that wait first: they must not be handed over to the room that the others make.
            for place in reversed(places):
                self.leave(place)

    def load(self, bulk: bool) -> Load:
        """What waits in one class, in seconds that it is going to take."""
        kind = self._class(bulk)
        return Load(kind.structures, kind.seconds_waiting * self.correction.factor)

    def seconds_in_front(self, bulk: bool) -> float:
        """Seconds until new work of a class would have its turn."""
        waiting = self._interactive.seconds_waiting + (self._bulk.seconds_waiting if bulk else 0.0)
        return (self._handed_over_seconds + waiting) * self.correction.factor

    def finish(self, place: Place) -> None:
        """A request has been answered."""
        if not place.left and place.handed_over:
            self.correction.finished(place.work.seconds, self.clock())
        self.leave(place)

    def leave(self, place: Place) -> None:
        """Forgets a request, whatever has become of it."""
        if place.left:
            return
        place.left = True
        kind = self._class(place.bulk)
        kind.unfinished -= 1
        # What sums of floats leave behind must not look like work.
        kind.seconds = kind.seconds - place.work.seconds if kind.unfinished else 0.0
        if place.handed_over:
            self._count(place, -1)
        else:
            self._stop_waiting(place)
        self._hand_over()

    def waited(self, place: Place, now: float) -> None:
        """Tells how long a request has waited."""
        self._on_wait("bulk" if place.bulk else "interactive", now - place.entered)

    def refused_for_deadline(self, detail: str) -> DeadlineExceeded:
        """The error for a request whose deadline is before its turn."""
        self._on_refusal("deadline")
        return DeadlineExceeded(detail)

    def _admit(self, seconds: float, bulk: bool, deadline: float) -> None:
        factor = self.correction.factor
        kind = self._class(bulk)
        front = self.seconds_in_front(bulk)
        if kind.unfinished and (kind.seconds + seconds) * factor > self.limit:
            self._on_refusal("queue")
            error = Overloaded(f"Requests that take about {front:.0f} s are in front of this one; there is no room for more.")
            error.retry_after = min(LONGEST_RETRY, max(1, math.ceil(front)))
            raise error
        remaining = deadline - self.clock()
        if front + seconds * factor > DOUBT * max(remaining, 0.0):
            raise self.refused_for_deadline(
                f"About {front:.1f} s of work are in front of this request, and it takes about {seconds * factor:.1f} s itself: "
                f"there would be no answer within {max(remaining, 0.0):.1f} s."
            )

    def _join(self, place: Place) -> None:
        kind = self._class(place.bulk)
        kind.waiting[place] = None
        kind.unfinished += 1
        kind.structures += place.work.structures
        kind.seconds_waiting += place.work.seconds
        kind.seconds += place.work.seconds

    def _stop_waiting(self, place: Place) -> None:
        kind = self._class(place.bulk)
        del kind.waiting[place]
        kind.structures -= place.work.structures
        kind.seconds_waiting = kind.seconds_waiting - place.work.seconds if kind.waiting else 0.0

    def _hand_over(self) -> None:
        now = self.clock()
        while (place := self._next(now)) is not None:
            if self._full():
                self.correction.saturated(now)
                return
            self._stop_waiting(place)
            self._count(place, 1)
            if place.bulk:
                self._bulk_turn = now
            self.waited(place, now)
            place.hand_over()
        self.correction.idle()

    def _next(self, now: float) -> Place | None:
        interactive = next(iter(self._interactive.waiting), None)
        bulk = next(iter(self._bulk.waiting), None)
        if interactive is None or bulk is None:
            return interactive or bulk
        return bulk if now - max(self._bulk_turn, bulk.entered) >= PATIENCE_SECONDS else interactive

    def _full(self) -> bool:
        """Whether Triton has enough: a full window, of seconds and of passes. It always gets one request."""
        if not self._handed_over:
            return False
        enough = self._handed_over_seconds * self.correction.factor >= WINDOW_SECONDS
        passes = self._handed_over_atoms / self._pass_atoms >= WINDOW_PASSES * self.instances
        return (enough and passes) or self._handed_over_structures >= WINDOW_STRUCTURES * self.instances

    def _count(self, place: Place, sign: int) -> None:
        self._handed_over += sign
        self._handed_over_structures += sign * place.work.structures
        self._handed_over_atoms += sign * place.work.atoms
        self._handed_over_seconds = self._handed_over_seconds + sign * place.work.seconds if self._handed_over else 0.0

    def _class(self, bulk: bool) -> _Class:
        return self._bulk if bulk else self._interactive
