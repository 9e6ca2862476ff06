"""What a model's work takes of memory at its peak, and what did not fit: in a file, from which the scheduler learns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from forcefields.runtime.engine import Report
from forcefields.runtime.gate import write_json

MB: Final = 2**20
STATUS: Final = Path("/proc/self/status")
WORTH_TELLING: Final = 1.05
"""A peak of a size is told again when it is so much higher than the last one."""


class Memory:
    """The notes of one model process. ``begin`` and ``peak_mb`` go around each call, in its thread; ``observe`` writes, behind the
    answers.

    Sizes are powers of two of the directed neighbour pairs of a pass. On a GPU the peak of each call is torch's own. On a CPU the
    kernel keeps the highest that the process ever held, so only what exceeds it is known.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device
        self._torch: Any = sys.modules.get("torch") if device.startswith("cuda") else None
        self._status = os.open(STATUS, os.O_RDONLY)
        self._base = self._before = self._highest()
        self._peaks: dict[int, tuple[int, float]] = {}
        self._ran_out: dict[int, tuple[int, int]] = {}

    def begin(self) -> None:
        """A call begins."""
        if self._torch is not None:
            self._torch.cuda.reset_peak_memory_stats(self._device)
        self._before = self._highest()

    def peak_mb(self) -> float:
        """MB of 2^20 bytes that the call took above what the loaded model holds; 0 where that cannot be told."""
        highest = self._highest()
        return max(highest - self._base, 0.0) if self._torch is not None or highest > self._before else 0.0

    def observe(self, reports: Sequence[Report]) -> None:
        """Takes what some calls have shown into the file, where it is news."""
        news = False
        for report in reports:
            edges, size = report.tally.largest_pass, report.tally.largest_pass.bit_length()
            if report.peak_mb > WORTH_TELLING * self._peaks.get(size, (0, 0.0))[1]:
                self._peaks[size], news = (edges, round(report.peak_mb, 1)), True
            if report.tally.out_of_memory:
                size = report.tally.too_large.bit_length()
                self._ran_out[size], news = (report.tally.too_large, self._ran_out.get(size, (0, 0))[1] + 1), True
        if news:
            peaks, ran_out = list(self._peaks.values()), list(self._ran_out.values())
            write_json(self._path, {"pid": os.getpid(), "device": self._device, "peaks": peaks, "ran_out": ran_out})

    def _highest(self) -> float:
        if self._torch is not None:
            return float(self._torch.cuda.max_memory_allocated(self._device)) / MB
        # Not ru_maxrss: that of a program begins with what the process that started it once held.
        _, _, found = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        return int(found.split(None, 1)[0]) / 1024
