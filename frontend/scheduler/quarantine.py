"""The health of devices, as a state machine over times that it is told: faults, quarantine, probation, and what a person decides.

serving     -- three faults in 300 s -->            quarantined
quarantined -- 600 s, doubled each time -->         probation
probation   -- 300 s without a fault -->            serving
probation   -- one fault -->                        quarantined
any         -- a person drains it -->               draining, until a person gives it back
any         -- a person puts it into quarantine --> quarantined, until a person gives it back
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

State = Literal["serving", "draining", "quarantined", "probation"]

FAULTS: Final = 3
WINDOW_SECONDS: Final = 300.0
FIRST_SECONDS, LONGEST_SECONDS = 600.0, 4 * 3600.0
PROBATION_SECONDS: Final = 300.0


@dataclass
class Health:
    """One device. Times are of one monotonic clock; one that goes back counts as standing still.

    Attributes:
        until: when a quarantine ends by itself; infinite for one that a person has to end.
        reason: why it is not serving.
    """

    state: State = "serving"
    until: float = math.inf
    reason: str = ""
    faults: list[float] = field(default_factory=list)
    quarantines: int = 0
    _now: float = -math.inf

    @property
    def takes_work(self) -> bool:
        """Whether anything new may be placed there."""
        return self.state in ("serving", "probation")

    def fault(self, why: str, now: float) -> bool:
        """Something failed that the device may be the reason of. True when that puts it into quarantine."""
        now = self.tick(now)
        self.faults = [at for at in self.faults if now - at < WINDOW_SECONDS] + [now]
        if self.state == "probation" or (self.state == "serving" and len(self.faults) >= FAULTS):
            self._quarantine(why, now)
            return True
        return False

    def tick(self, now: float) -> float:
        """Time has passed; returns the time that counts."""
        self._now = now = max(now, self._now)
        if self.state == "quarantined" and now >= self.until:
            self.state, self.until, self.faults = "probation", now + PROBATION_SECONDS, []
        elif self.state == "probation" and now >= self.until:
            self.give_back()
            self.quarantines = 0
        return now

    def drain(self, why: str = "a person drains it") -> None:
        """Nothing new goes there; what runs is finished."""
        self.state, self.until, self.reason = "draining", math.inf, why

    def quarantine(self, why: str = "a person put it into quarantine") -> None:
        """Nothing goes there, and its models are placed elsewhere, until a person gives it back."""
        self.state, self.until, self.reason = "quarantined", math.inf, why

    def give_back(self) -> None:
        """It serves again, with a clean record."""
        self.state, self.until, self.reason, self.faults = "serving", math.inf, "", []

    def _quarantine(self, why: str, now: float) -> None:
        seconds = min(FIRST_SECONDS * 2.0**self.quarantines, LONGEST_SECONDS)
        self.quarantines += 1
        self.state, self.until, self.reason = "quarantined", now + seconds, why


class Ward:
    """The health of all devices; ``alert`` is called with the device and the reason when one goes into quarantine."""

    def __init__(self, alert: Callable[[str, str], None] = lambda _device, _why: None) -> None:
        self._alert = alert
        self._health: dict[str, Health] = {}

    def of(self, device: str) -> Health:
        """The health of a device by its id."""
        return self._health.setdefault(device, Health())

    def fault(self, device: str, why: str, now: float) -> None:
        """See ``Health.fault``."""
        if self.of(device).fault(why, now):
            self._alert(device, why)
