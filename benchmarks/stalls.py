"""Stalls: the longest time in which work was waiting and the model computed nothing.

The model writes a line into its log when it has answered a batch, with the seconds that the batch took; together these are the
times in which it was busy. What is left of the times in which a request was on its way is transport, Triton's queue, or a stall.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

Span = tuple[float, float]


def longest(log: Path, model: str, sent: np.ndarray, latencies: np.ndarray) -> float | None:
    """Seconds of the longest stall of one run, or None where the log has no line of a batch in this time.

    Args:
        log: of the model processes.
        sent: of each request, on ``time.time()``'s clock.
        latencies: seconds of each request.
    """
    first, last = float(sent.min()), float((sent + latencies).max())
    busy = [span for span in batches(log.read_text(errors="replace").splitlines(), model) if span[1] > first and span[0] < last]
    waiting = union(list(zip(sent.tolist(), (sent + latencies).tolist(), strict=True)))
    return longest_gap(waiting, union(busy)) if busy else None


def batches(lines: Iterable[str], model: str) -> list[Span]:
    """Beginning and end of every batch of ``model``, from lines of JSON; others are passed over."""
    found = []
    for line in lines:
        if '"message": "batch"' in line and f'"{model}"' in line:
            try:
                entry = json.loads(line)
                end = datetime.fromisoformat(entry["time"]).timestamp()
                found.append((end - float(entry["seconds"]), end))
            except (ValueError, KeyError):
                continue
    return found


def union(spans: Sequence[Span]) -> list[Span]:
    """The same times without overlaps, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def longest_gap(waiting: Sequence[Span], busy: Sequence[Span]) -> float:
    """The longest stretch that lies in ``waiting`` and in none of ``busy``; both without overlaps and in order."""
    worst = 0.0
    for begin, end in waiting:
        at = begin
        for first, last in busy:
            if last <= at:
                continue
            if first >= end:
                break
            worst = max(worst, first - at)
            at = max(at, last)
        worst = max(worst, end - at)
    return worst
