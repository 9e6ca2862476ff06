"""What is made of the numbers: rounds in which the ways take turns, ratios within a round, percentiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Round = dict[str, float]


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> list[Round]:
    """Every way once in each round; every other round in the opposite order."""
    results = []
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        results.append({way: ways[way]() for way in order})
    return results


def ratio(rounds: Sequence[Round], over: str, under: str) -> float:
    """``over`` / ``under``: the median of the ratios within each round, so that a machine that drifts does not shift it."""
    return float(np.median([each[over] / each[under] for each in rounds]))


def median(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    """The median over the rounds."""
    return float(np.median([each[name] for each in rounds]))


def waits(latencies: np.ndarray) -> dict[str, float]:
    """p50, p95 and p99 and the longest of some waits, in ms.

    A percentile is one of the waits themselves (the smallest that as many do not exceed), not a value between two of them: with
    few requests, p99 is then the longest.
    """
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99], method="inverted_cdf") * 1e3
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "longest_ms": float(latencies.max()) * 1e3}


def rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value
