"""What one API key may ask for: requests a second, and structures in flight, so that no key takes what all share."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from forcegate.errors import RateLimited
from frontend.security.keys import Key
from frontend.settings import Settings

BURST_SECONDS: Final = 2.0
"""A key that has been quiet may send as many requests at once as it has in so many seconds."""


class KeyLimits:
    """The limits of every key within one gateway. All of it runs on the event loop.

    Several gateways share what a key may do evenly, as they share its connections.

    Args:
        settings: ``key_requests_per_second`` and ``key_structures`` of the whole service; 0 is no limit.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        share = max(1, settings.gateways)
        self.rate = settings.key_requests_per_second / share
        self.structures = math.ceil(settings.key_structures / share)
        self._clock = clock
        self._tokens: dict[str, tuple[float, float]] = {}
        self._held: Counter[str] = Counter()

    def request(self, key: Key) -> None:
        """Counts a request.

        Raises:
            RateLimited: too many have come; when the next one may is in it.
        """
        if not self.rate:
            return
        most, now = max(1.0, BURST_SECONDS * self.rate), self._clock()
        tokens, at = self._tokens.get(key.id, (most, now))
        tokens = min(most, tokens + (now - at) * self.rate)
        if tokens < 1:
            self._tokens[key.id] = tokens, now
            error = RateLimited(f"The API key {key.id} has sent more than {self.rate:g} requests a second.")
            error.retry_after = max(1, math.ceil((1 - tokens) / self.rate))
            raise error
        self._tokens[key.id] = tokens - 1, now

    @contextmanager
    def hold(self, key: Key | None, structures: int) -> Iterator[None]:
        """Counts ``structures`` as the key's while the block runs; those of requests without a key are not counted.

        Raises:
            RateLimited: the key has too many in flight.
        """
        if key is None or not self.structures:
            yield
            return
        # What one request may hold passes when nothing else of the key is in flight.
        if self._held[key.id] and self._held[key.id] + structures > self.structures:
            raise RateLimited(
                f"The API key {key.id} has {self._held[key.id]} structures in flight, of at most {self.structures}: "
                f"no room for {structures} more."
            )
        self._held[key.id] += structures
        try:
            yield
        finally:
            self._held[key.id] -= structures
            if not self._held[key.id]:
                del self._held[key.id]
