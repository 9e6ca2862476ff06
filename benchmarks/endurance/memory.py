"""Resident memory, open files and shared memory of a service over time, across the lives of its processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.endurance.running import Running
from frontend.supervisor import triton

YOUNG_SECONDS = 20.0
"""A process that lives for less is still importing or loading: its memory says nothing of a leak."""


class Sampler:
    """Looks every ``every`` seconds until it is told that the run is over.

    Attributes:
        lives: samples (s since the start, MB, open files) of each process, by (kind, process id, time of its start).
        regions: (s, number, MB) of the shared memory of the service.
    """

    def __init__(self, running: Running, every: float, over: threading.Event) -> None:
        self._running, self._every, self._over = running, every, over
        self.started = time.monotonic()
        self.lives: dict[tuple[str, int, float], list[tuple[float, float, int]]] = {}
        self.regions: list[tuple[float, int, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the last look."""
        self._thread.join(60)

    def _run(self) -> None:
        while not self._over.wait(self._every):
            now = time.monotonic() - self.started
            for kind, processes in self._running.processes().items():
                for process in processes:
                    with suppress(psutil.Error):
                        key = (kind, process.pid, process.create_time())
                        size = process.memory_info().rss / 1e6
                        self.lives.setdefault(key, []).append((now, size, process.num_fds()))
            sizes = []
            for path in map(Path, triton.regions(self._running.settings)):
                with suppress(OSError):
                    sizes.append(path.stat().st_blocks * 512 / 1e6)
            self.regions.append((now, len(sizes), sum(sizes)))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each kind of process; see ``summary``."""
        kinds = sorted({kind for kind, _, _ in self.lives})
        return [{"process": kind} | summary([life for key, life in self.lives.items() if key[0] == kind]) for kind in kinds]


def summary(lives: Sequence[Sequence[tuple[float, float, int]]]) -> dict[str, Any]:
    """Of one kind of process, whose lives follow or accompany each other.

    ``first_mb`` and ``last_mb`` are medians over the samples of the first and the last third of the time; ``mb_an_hour_within`` is
    the slope within lives, all of one line each with a level of its own: what a life has gained in an hour of it. The first
    half of a life is left out: caches fill in it.
    """
    grown = [[sample for sample in life if sample[0] - life[0][0] >= YOUNG_SECONDS] for life in lives]
    grown = [life for life in grown if life] or [list(life) for life in lives]
    every = np.array([sample for life in grown for sample in life])
    begin, end = every[:, 0].min(), every[:, 0].max()
    first = every[every[:, 0] <= begin + (end - begin) / 3]
    last = every[every[:, 0] >= end - (end - begin) / 3]
    longest = max(lives, key=lambda life: life[-1][0] - life[0][0])
    return {
        "lives": len(lives),
        "longest_life_s": longest[-1][0] - longest[0][0],
        "first_mb": float(np.median(first[:, 1])),
        "last_mb": float(np.median(last[:, 1])),
        "most_mb": float(every[:, 1].max()),
        "mb_an_hour_within": _slope_within(grown),
        "first_files": float(np.median(first[:, 2])),
        "last_files": float(np.median(last[:, 2])),
        "samples": [[(round(at, 1), round(size, 1)) for at, size, _ in life] for life in lives],
    }


def _slope_within(lives: Sequence[Sequence[tuple[float, float, int]]]) -> float | None:
    """MB an hour; None where no life is long enough for one."""
    above = below = 0.0
    for life in lives:
        times, sizes, _ = np.array(life[len(life) // 2 :]).T
        if times[-1] - times[0] >= YOUNG_SECONDS:
            above += float(((times - times.mean()) * (sizes - sizes.mean())).sum())
            below += float(((times - times.mean()) ** 2).sum())
    return 3600 * above / below if below else None
