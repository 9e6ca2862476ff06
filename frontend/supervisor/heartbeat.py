"""The heartbeat of the models: asks one that nobody uses for a known energy, and ends its process where no right answer comes.

The watch (watch.py) loads it again, with its whole gate. A model that has answered somebody a moment ago need not be asked. One
that computes is left alone, however long it takes: steps that hang while they compute are ended by the watchdog inside of the
process (forcefields/runtime/watchdog.py). Caught here is what no watchdog inside sees: a process that is halted or waits for
ever, a GPU after whose fault every evaluation fails, answers that have become wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psutil

from forcegate.errors import ForcegateError, GateFailed, ServerUnavailable
from frontend.triton.control import Answers

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
SHARE: Final = 0.05
"""Part of the time that all canaries together may take; with many idle models they are asked more seldom."""
LONGEST: Final = 1.0
"""s that a canary counts for at most."""
COMPUTING: Final = 0.02
"""Part of the time that a process has used a processor, above which it computes; one that only waits uses a thousandth."""


class Counting(Protocol):
    """What tells how many requests each loaded model has answered: ``TritonControl``."""

    async def answers(self) -> dict[str, Answers]:
        """By model; ``ServerUnavailable`` where nothing answers."""


class Watch(Protocol):
    """What knows the models that should be there: ``ModelWatch``."""

    def steady(self) -> Mapping[str, frozenset[int]]:
        """The loaded models that nothing is being done with, each with its process ids."""

    def end(self, model: str) -> None:
        """Ends the model's processes, so that it is loaded again."""


@dataclass(eq=False)
class Pulse:
    """What is known of one model. Times are of the heartbeat's clock.

    Attributes:
        answered_at: when it last answered well, or was loaded.
        moved_at: when its processes were last seen computing, of which ``cpu_seconds`` were used by then.
        used: requests of others that it has answered, well or not.
        own: canaries that have ended.
        failed: what the last canary ended with, where that was no good answer.
    """

    processes: frozenset[int]
    answered_at: float
    looked_at: float
    moved_at: float
    cpu_seconds: float
    well: int = 0
    used: int = 0
    own: int = 0
    failed: str = ""
    canary: asyncio.Task[None] | None = None


class Heartbeat:
    """See the module.

    Args:
        ask: evaluates a canary of the named model.
        dead: told of each model that is ended, and why.
        used: told which models others than the heartbeat have used.
        counted: told at every look what Triton has counted.
        every: s after the last good answer in which a canary is sent; 0 for no heartbeat at all.
        patience: s without a good answer after which a model is dead.
        clock: monotonic time in s.
        cpu_seconds: of the processes with these ids together.
    """

    def __init__(
        self,
        server: Counting,
        watch: Watch,
        ask: Callable[[str], Awaitable[object]],
        dead: Callable[[str, str], None],
        used: Callable[[Iterable[str]], None],
        every: float = 10.0,
        patience: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        cpu_seconds: Callable[[Iterable[int]], float] | None = None,
        counted: Callable[[Mapping[str, Answers]], None] = lambda _: None,
    ) -> None:
        self._server, self._watch, self._ask, self._dead, self._used = server, watch, ask, dead, used
        self._counted = counted
        self._every, self._patience, self._clock = every, max(patience, every), clock
        self._cpu_seconds = cpu_seconds or _cpu_seconds
        self._pulses: dict[str, Pulse] = {}
        self._took: dict[str, float] = {}
        self.canaries: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        try:
            while True:
                with suppress(ServerUnavailable):  # it is being restarted
                    await self.look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for pulse in self._pulses.values():
                _stop(pulse)

    async def look(self) -> None:
        """Looks at every model once. Canaries go on in the background.

        Raises:
            ServerUnavailable: Triton does not answer, which its keeper sees to.
        """
        answers, steady, now = await self._server.answers(), self._watch.steady(), self._clock()
        self._counted(answers)
        for name in self._pulses.keys() - (steady.keys() & answers.keys()):
            _stop(self._pulses.pop(name))
        busy = []
        for name in steady.keys() & answers.keys():
            pulse = self._pulses.get(name)
            if pulse is None or pulse.processes != steady[name]:
                self._begin(name, steady[name], answers[name], now)
            elif self._count(pulse, answers[name], now):
                busy.append(name)
        if busy:
            self._used(busy)
        if self._every:
            for name in list(self._pulses):
                self._judge(name, self._pulses[name], now)

    def _begin(self, name: str, processes: frozenset[int], answers: Answers, now: float) -> None:
        """It has just been loaded, and passed its gate and a canary."""
        for counter in (self.canaries, self.deaths):
            counter.setdefault(name, 0)  # a counter whose first value is 1 has increased for nobody
        if (before := self._pulses.get(name)) is not None:
            _stop(before)
        used = answers.well + answers.failed
        self._pulses[name] = Pulse(processes, now, now, now, self._cpu_seconds(processes), answers.well, used)

    def _count(self, pulse: Pulse, answers: Answers, now: float) -> bool:
        """Whether anybody else has been answered since it was last looked at."""
        if answers.well > pulse.well:
            pulse.answered_at, pulse.failed = now, ""
        pulse.well = answers.well
        spent = self._cpu_seconds(pulse.processes)
        if spent - pulse.cpu_seconds >= COMPUTING * (now - pulse.looked_at) > 0:
            pulse.moved_at = now
        pulse.cpu_seconds, pulse.looked_at = spent, now
        used = answers.well + answers.failed - pulse.own
        # A canary counts in Triton a moment before or after it ends here: while one is under way nothing is said.
        if pulse.canary is not None or used <= pulse.used:
            return False
        pulse.used = used
        return True

    def _judge(self, name: str, pulse: Pulse, now: float) -> None:
        every = max(self._every, sum(self._took.get(each, 0.0) for each in self._pulses) / SHARE)
        silent, patience = now - pulse.answered_at, every + self._patience - self._every
        if silent >= patience and pulse.failed:
            self._end(name, pulse, f"it has not answered well for {silent:.0f} s: {pulse.failed}")
        elif silent >= patience and pulse.canary is not None and now - pulse.moved_at >= self._patience - self._every:
            self._end(name, pulse, f"it has not answered for {silent:.0f} s, and computes nothing")
        elif silent >= every and pulse.canary is None:
            pulse.canary = asyncio.create_task(self._try(name, pulse))

    async def _try(self, name: str, pulse: Pulse) -> None:
        began = self._clock()
        self.canaries[name] += 1
        try:
            await self._ask(name)
        except GateFailed as error:
            pulse.canary = None
            if self._pulses.get(name) is pulse:
                self._end(name, pulse, error.detail)  # a wrong answer is no matter of patience
        except ServerUnavailable:
            pass
        except ForcegateError as error:
            pulse.failed = error.detail
        except Exception as error:  # whatever it is, it was no good answer
            log.exception("a canary failed", extra={"model": name})
            pulse.failed = type(error).__name__
        else:
            pulse.answered_at, pulse.failed = self._clock(), ""
            pulse.well += 1  # as Triton counts it; else the next look would take it for somebody else's
            # The shortest, since the others have waited for somebody's work.
            self._took[name] = min(pulse.answered_at - began, self._took.get(name, LONGEST))
        finally:
            pulse.own += 1
            pulse.canary = None

    def _end(self, name: str, pulse: Pulse, why: str) -> None:
        _stop(pulse)
        del self._pulses[name]
        self.deaths[name] += 1
        log.error("model is dead: ending its process, so that it is loaded again", extra={"model": name, "why": why})
        self._watch.end(name)
        self._dead(name, why)

    def as_dict(self) -> dict[str, Any]:
        """What is told: canaries and deaths by model, and the seconds since each model last answered well."""
        now = self._clock()
        silent = {name: round(max(now - pulse.answered_at, 0.0), 1) for name, pulse in sorted(self._pulses.items())}
        return {"canaries": dict(self.canaries), "deaths": dict(self.deaths), "silent_seconds": silent}


def _stop(pulse: Pulse) -> None:
    if pulse.canary is not None:
        pulse.canary.cancel()


def _cpu_seconds(processes: Iterable[int]) -> float:
    total = 0.0
    for pid in processes:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
