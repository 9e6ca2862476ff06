"""The life of one model on one device, as a state machine over times that it is told.

    absent -> loading -> resident -> leaving -> unloading -> settling -> absent
                 |                                             |
                 +-> failed (pause, doubled each time)          +-> stuck: the memory has not come back; its process is ended

It says what to do next (``Step``) and does nothing itself: whoever owns the machine carries it out and tells the outcome.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["absent", "loading", "resident", "leaving", "unloading", "settling", "stuck", "failed"]
Step = Literal["none", "load", "unload", "measure", "end process", "give up"]

LOAD_SECONDS: Final = 600.0
UNLOAD_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 10.0
"""Time in which freed memory has to show in the measurement."""
GIVEN_BACK: Final = 0.9
"""Part of what a model held that has to come back; other programs take memory in the same moments."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0


@dataclass
class Residency:
    """One model on one device.

    Attributes:
        since: when its state began.
        in_flight: work that it is computing; it never leaves before that is finished.
        held_mb: what it held when its unload began.
        failures: loads that have failed in a row; ``retry_at`` is when the next one may be tried.
    """

    state: State = "absent"
    since: float = 0.0
    in_flight: int = 0
    held_mb: float = 0.0
    failures: int = 0
    retry_at: float = -math.inf
    reason: str = ""

    def want(self, now: float) -> Step:
        """Somebody asks for the model."""
        if self.state == "leaving":
            self._enter("resident", now)  # nothing has been done yet that could not be taken back
        if self.state == "absent" or (self.state == "failed" and now >= self.retry_at):
            self._enter("loading", now)
            return "load"
        return "none"

    def loaded(self, now: float) -> Step:
        """The load has ended well; one that had been given up for hung is as good."""
        if self.state in ("loading", "failed"):
            self._enter("resident", now)
            self.failures = 0
        return "none"

    def load_failed(self, why: str, now: float) -> Step:
        """The load has failed."""
        if self.state == "loading":
            self._enter("failed", now)
            self.reason = why
            self.retry_at = now + min(FIRST_PAUSE * 2.0**self.failures, LONGEST_PAUSE)
            self.failures += 1
        return "none"

    def start(self) -> bool:
        """Work wants to begin; whether it may."""
        if self.state != "resident":
            return False
        self.in_flight += 1
        return True

    def finish(self, held_mb: float, now: float) -> Step:
        """Work has ended; ``held_mb`` is what the model holds now."""
        self.in_flight = max(self.in_flight - 1, 0)
        return self._unload_if_idle(held_mb, now)

    def evict(self, held_mb: float, now: float) -> Step:
        """It shall go: at once when it is idle, else when its work is finished."""
        if self.state == "resident":
            self._enter("leaving", now)
        return self._unload_if_idle(held_mb, now)

    def unloaded(self, now: float) -> Step:
        """The unload has ended well; whether the memory is back is measured."""
        if self.state == "unloading":
            self._enter("settling", now)
        return "measure"

    def measured(self, given_back_mb: float, now: float) -> Step:
        """So much memory has come back since the unload began."""
        if self.state in ("settling", "stuck") and given_back_mb >= GIVEN_BACK * self.held_mb:
            self._enter("absent", now)
            return "none"
        if self.state == "settling" and self._elapsed(now) >= SETTLE_SECONDS:
            self._enter("stuck", now)
            self.reason = f"{self.held_mb - given_back_mb:.0f} of {self.held_mb:.0f} MB have not come back"
            return "end process"
        return "measure" if self.state in ("settling", "stuck") else "none"

    def gone(self, now: float) -> Step:
        """Its process, or its device, has ended; whatever it was doing, it is not there."""
        self._enter("absent", now)
        self.in_flight = 0
        return "none"

    def tick(self, now: float) -> Step:
        """Time has passed."""
        if self.state == "loading" and self._elapsed(now) >= LOAD_SECONDS:
            self.load_failed(f"the load has not ended in {LOAD_SECONDS:.0f} s", now)
            return "give up"
        if self.state == "unloading" and self._elapsed(now) >= UNLOAD_SECONDS:
            self._enter("stuck", now)
            self.reason = f"the unload has not ended in {UNLOAD_SECONDS:.0f} s"
            return "end process"
        return "measure" if self.state in ("settling", "stuck") else "none"

    def _unload_if_idle(self, held_mb: float, now: float) -> Step:
        if self.state != "leaving" or self.in_flight:
            return "none"
        self._enter("unloading", now)
        self.held_mb = held_mb
        return "unload"

    def _elapsed(self, now: float) -> float:
        """Seconds in this state; a clock that went back counts as standing still."""
        return max(now - self.since, 0.0)

    def _enter(self, state: State, now: float) -> None:
        self.state, self.since, self.reason = state, now, ""
