"""SIGKILL at random moments to every kind of process, and how long those waited who were waiting then."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.endurance.running import Running
from benchmarks.service import answers, say, serves

MODEL, CHILDREN = "model", "all children"
DECK = (MODEL, "gateway", "worker", MODEL, "tritonserver", "gateway", MODEL, "worker", CHILDREN, "supervisor")
"""Shuffled and gone through again and again, so that even a short run kills one of each."""
IN_RECOVERY = 0.25
"""Share of the kills that come whatever the last one has left; the others wait until the service is whole again, which takes
minutes on a machine that others use too."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Fault:
    """What was killed, and when (``time.monotonic()``)."""

    at: float
    target: str
    names: tuple[str, ...]


class Killer:
    """Kills something at random moments, ``every`` seconds apart on average, from half of that to one and a half."""

    def __init__(self, running: Running, every: float, models: Sequence[str], over: threading.Event, seed: int) -> None:
        self._running, self._every, self._models, self._over = running, every, tuple(models), over
        self._chance = random.Random(seed)
        self.faults: list[Fault] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the last kill."""
        self._thread.join(60)

    def _run(self) -> None:
        deck: list[str] = []
        while not self._over.wait(self._every * self._chance.uniform(0.5, 1.5)):
            if self._chance.random() > IN_RECOVERY and not self._whole():
                continue
            if not deck:
                deck = list(DECK)
                self._chance.shuffle(deck)
            target = deck.pop()
            names = self._kill(target)
            if not names:  # it is being started again just now; its turn comes at the next kill
                deck.append(target)
                continue
            self.faults.append(Fault(time.monotonic(), target, names))
            say(f"killed {', '.join(names)}")

    def _whole(self) -> bool:
        """Waits until everything is there and answers; False where the run is over before."""
        settings = self._running.settings
        while not (answers(settings) and serves(settings, self._models) and self._all_there()):
            if self._over.wait(LOOK_SECONDS):
                return False
        return True

    def _all_there(self) -> bool:
        settings, processes = self._running.settings, self._running.processes()
        return all(
            len(processes.get(kind, ())) == count for kind, count in (("gateway", settings.gateways), ("worker", settings.workers))
        )

    def _kill(self, target: str) -> tuple[str, ...]:
        processes = self._running.processes()
        if target == CHILDREN:
            victims = [(kind, each) for kind, all_ in processes.items() if kind != "supervisor" for each in all_]
        else:
            kinds = [kind for kind in (self._models if target == MODEL else (target,)) if processes.get(kind)]
            if not kinds:
                return ()
            kind = self._chance.choice(kinds)
            victims = [(kind, self._chance.choice(processes[kind]))]
        killed = []
        for kind, process in victims:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
                killed.append(kind)
        return tuple(killed)


def told(faults: Iterable[Fault], spans: dict[str, list[tuple[float, float]]], requests: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kind of fault: how often, and after how many seconds the last of those had its answer who were waiting.

    Args:
        requests: the kinds of clients to look at; a task takes long by itself.
    """
    rows: dict[str, list[float]] = {}
    every = [span for kind in requests for span in spans.get(kind, [])]
    for fault in faults:
        waited = [ended - fault.at for began, ended in every if began <= fault.at <= ended]
        rows.setdefault(fault.target, []).append(max(waited, default=0.0))
    counts = Counter(name for fault in faults for name in fault.names)
    say(f"processes killed: {dict(counts)}")
    return [
        {"target": target, "times": len(waits), "median_wait_s": sorted(waits)[len(waits) // 2], "longest_wait_s": max(waits)}
        for target, waits in sorted(rows.items())
    ]
