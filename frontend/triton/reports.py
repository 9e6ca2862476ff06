"""What models write about their own loading, and what their processes are doing now."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from forcefields.cost import Cost
from forcefields.processes import processes
from forcegate.errors import BY_CODE, ForcegateError, GateFailed


@dataclass(frozen=True)
class Report:
    """What a model wrote about its own loading, and what its process is doing now.

    Attributes:
        pid: id of its process. One that runs in another container or on another machine has no id here: a negative number stands
            for it, another one for each load.
        arithmetic: what the numbers are computed with (forcefields/runtime/arithmetic.py), as pairs; empty where it does not say.
        pids: ids of all its processes that ran when the report was written, the newest last; none of those elsewhere.
    """

    ready: bool = False
    error: ForcegateError | None = None
    gate: Mapping[str, Any] | None = None
    seconds: float | None = None
    device: str | None = None
    dtype: str | None = None
    pid: int | None = None
    pids: tuple[int, ...] = ()
    time: float = 0.0
    cost: Cost | None = None
    memory_mb: int | None = None
    arithmetic: tuple[tuple[str, str | bool], ...] = ()


class Reports:
    """The files that models write when they load, read again when they change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, str] = {}
        self._known: dict[str, tuple[int, Report]] = {}

    def read(self, name: str) -> Report:
        """The newest report of a model; an empty one where there is none, or it cannot be read."""
        if (path := self._paths.get(name)) is None:
            path = self._paths[name] = str(self._folder / f"{name}.json")
        try:
            changed = os.stat(path).st_mtime_ns
            known = self._known.get(name)
            if known is None or known[0] != changed:
                known = changed, _report(json.loads(Path(path).read_bytes()))
                self._known[name] = known
        except (OSError, ValueError, TypeError, AttributeError):
            return Report()
        return known[1]


def _report(data: Mapping[str, Any]) -> Report:
    error = data.get("error")
    return Report(
        ready=bool(data.get("ready")),
        error=BY_CODE.get(error.get("code"), GateFailed)(str(error.get("detail", "")), str(error.get("hint", "")))
        if error
        else None,
        gate=data.get("gate"),
        seconds=data.get("seconds"),
        device=data.get("device"),
        dtype=data.get("dtype"),
        pid=_process(data),
        pids=tuple(map(int, data.get("pids") or ())) if data.get("namespace") in (None, processes()) else (),
        time=float(data.get("time") or 0.0),
        cost=_cost(data.get("cost")),
        arithmetic=tuple((data.get("arithmetic") or {}).items()),
    )


def _process(data: Mapping[str, Any]) -> int | None:
    pid = data.get("pid")
    if pid is None or data.get("namespace") in (None, processes()):
        return pid
    return -max(1, int(float(data.get("time") or 0.0) * 1000))


def _cost(data: object) -> Cost | None:
    """A model's calibration; one that cannot be read costs the estimates, not the report."""
    if not isinstance(data, Mapping):
        return None
    try:
        cost = Cost.from_dict(data)
        seconds = cost.seconds_per_pass, cost.seconds_per_atom, cost.seconds_per_edge
        return cost if all(0.0 <= value < math.inf for value in seconds) and any(seconds) else None
    except TypeError:
        return None


def current(report: Report) -> Report:
    """The report with what is now: the id of the newest process that runs, and the memory of all of them."""
    if set(report.pids) <= {report.pid}:
        return replace(report, memory_mb=resident_mb(report.pid))
    held = {pid: resident_mb(pid) for pid in report.pids}
    running = [pid for pid in report.pids if held[pid] is not None]
    memory = sum(held[pid] or 0 for pid in running)
    return replace(report, pid=running[-1] if running else report.pid, memory_mb=memory or None)


def alive(pid: int | None) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    if pid is None or pid < 0:
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def resident_mb(pid: int | None) -> int | None:
    """Resident memory of a process in MB, or None where it does not run."""
    if pid is None or pid < 0:
        return None
    try:
        resident = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
    # A process that has ended and waits for its parent to notice has no memory.
    return resident // 2**20 if resident else None
