"""Bounds on memory: how many structures, and how many bytes of bodies, the gateway holds at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forcegate.errors import InvalidRequest, Overloaded

SMALL_BODY = 1 << 20
"""Bodies up to this many bytes are not counted: their number is bounded by the connections."""


class Admission:
    """Bounds on the work in flight. All of it runs on the event loop, so plain counters will do.

    Args:
        max_structures: structures that may be in flight together.
        max_bytes: bytes of large bodies that may be held together.
        observe: called with the structures in flight whenever their number changes.
        on_refusal: called with the reason whenever something is refused: ``structures`` or ``bytes``.
    """

    def __init__(
        self,
        max_structures: int,
        max_bytes: int,
        observe: Callable[[int], None] = lambda _: None,
        on_refusal: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.max_structures = max_structures
        self.max_bytes = max_bytes
        self.structures = 0
        self.bytes = 0
        self._observe = observe
        self._on_refusal = on_refusal
        self._rate = 0.0  # structures per second, decaying average
        self._last = time.monotonic()

    @contextmanager
    def hold(self, structures: int) -> Iterator[None]:
        """Counts ``structures`` as in flight for the duration of the block.

        Raises:
            Overloaded: there is no room for them now.
            InvalidRequest: there would not be room for them even if nothing else were in flight.
        """
        if structures > self.max_structures:
            raise InvalidRequest(
                f"The request holds {structures} structures; the service takes at most {self.max_structures} at once.",
                "Send them in several requests.",
            )
        if self.structures + structures > self.max_structures:
            self._on_refusal("structures")
            error = Overloaded(
                f"{self.structures} structures are in flight, of at most {self.max_structures}: no room for {structures} more."
            )
            error.retry_after = self.retry_after
            raise error
        self.structures += structures
        self._observe(self.structures)
        try:
            yield
        finally:
            self.structures -= structures
            self._observe(self.structures)
            self._finished(structures)

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that accounts for the bytes of one body as they come in; they are released after the block.

        Raises:
            Overloaded: (from the function) the large bodies held already leave no room.
        """
        held = counted = 0

        def grow(size: int) -> None:
            nonlocal held, counted
            held += size
            if held <= SMALL_BODY:
                return
            # A lone body always passes: its own limit is the one that counts.
            if self.bytes > counted and self.bytes + held - counted > self.max_bytes:
                self._on_refusal("bytes")
                raise Overloaded("Other large requests are being read; there is no memory for this one now.")
            self.bytes += held - counted
            counted = held

        try:
            yield grow
        finally:
            self.bytes -= counted

    @property
    def retry_after(self) -> int:
        """Whole seconds after which there should be room: what is in flight over what has lately been finished per second."""
        if self._rate <= 0:
            return 1
        return min(30, max(1, math.ceil(self.structures / self._rate)))

    def _finished(self, structures: int) -> None:
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-6)
        self._last = now
        weight = 1.0 - math.exp(-elapsed / 5.0)  # an average over about five seconds
        self._rate += weight * (structures / elapsed - self._rate)
