"""When to try a call again: inside its deadline, on errors that say that it can help, with growing pauses."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from forcegate.errors import DeadlineExceeded, EvaluationFailed, ForcegateError, ModelNotReady, ServerUnavailable

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Pauses double from the first to the longest, in s. A model's process is back within seconds, a server within thirty."""

MAX_CRASHES = 6
"""A call during which the model's process has died this often is given up. The model itself finds out sooner which structure kills
it: after a death it evaluates those of that pass one by one, and refuses one that was alone at two deaths."""

REPLACEMENT_SECONDS = 5.0
"""How long a dead process is left alone; then it is called again, in case it was replaced without a trace."""


class Process:
    """The process behind a model, of which one dies and another takes its place.

    A dead process answers every call with the same error until it is replaced, so a call is sent again only to a new one: else
    structures would be blamed for a death that came before them.

    Args:
        read: names the model's present process; None where that cannot be found out.
    """

    def __init__(self, read: Callable[[], str | None]) -> None:
        self.current: str | None = None
        """The process that calls go to, as far as is known."""
        self._read = read
        self._dead: str | None = None
        self._given_up = 0.0

    def died(self, sent_to: str | None) -> str:
        """Names the process that died under a call that was sent to ``sent_to``."""
        now = self._read()
        if sent_to is not None and now is not None and now != sent_to:
            self.current = now
            return sent_to
        self._dead, self._given_up = now or "", time.monotonic() + REPLACEMENT_SECONDS
        return self._dead

    def replaced(self) -> bool:
        """Whether calls may be sent: none is known to be dead, or the dead one has been replaced."""
        if self._dead is None:
            return True
        now = self._read()
        if now in (None, self._dead) and time.monotonic() < self._given_up:
            return False
        self.current, self._dead = now, None
        return True


class Attempts:
    """The attempts at one call.

    Args:
        timeout: time for all of them together, in s.
        patience: how long to wait for a service that has never answered this caller, in s. A wrong address or a model that
            nobody loaded should not take the whole timeout to notice.
    """

    def __init__(self, timeout: float, patience: float = math.inf) -> None:
        now = time.monotonic()
        self.timeout = timeout
        self._deadline = now + timeout
        self._patience = now + min(timeout, patience)
        self._pause = FIRST_PAUSE
        self._crashes: set[str] = set()
        self._cause: ForcegateError | None = None

    @property
    def remaining(self) -> float:
        """Time that is left, in s; never under a millisecond, since gRPC takes 0 for none at all."""
        return max(self._deadline - time.monotonic(), 1e-3)

    def crashed_in(self, process: str) -> None:
        """Notes that the model's process died during this call.

        Args:
            process: which one. The errors of one dead process, which come until it is replaced, count once.

        Raises:
            EvaluationFailed: that was one too many.
        """
        self._crashes.add(process)
        if len(self._crashes) >= MAX_CRASHES:
            raise EvaluationFailed(
                f"The model's process ended {MAX_CRASHES} times while it evaluated this structure, so it is not sent again.",
                "Check the structure: too many atoms or neighbours for the memory are the usual reason. The model's log has more.",
            )

    def pause(self, error: ForcegateError, known: bool = True, at_least: float = 0.0) -> float:
        """Seconds to wait before the next attempt.

        Args:
            error: what the last attempt ended with.
            known: whether the service has answered this caller before.
            at_least: what the service itself asked for (Retry-After), in s.

        Raises:
            ForcegateError: ``error`` itself when trying again cannot help or no time is left.
        """
        now = time.monotonic()
        if not error.retryable:
            raise error
        if now >= self._deadline or isinstance(error, DeadlineExceeded):
            raise self._late(error)
        self._cause = error
        wait = max(at_least, self._pause * random.uniform(0.75, 1.25))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        absent = isinstance(error, ServerUnavailable | ModelNotReady) and not known
        if now + wait >= (self._patience if absent else self._deadline):
            raise error
        return wait

    def _late(self, error: ForcegateError) -> ForcegateError:
        if self._cause is None or not isinstance(error, DeadlineExceeded):
            return error
        return DeadlineExceeded(f"{error.detail} An earlier attempt ended with: {self._cause.detail}", error.hint)
