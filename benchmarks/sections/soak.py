"""Mixed load for many minutes with faults injected: is memory flat, and is every error one that says what to do?

REST and gRPC clients send structures of all sizes to several models, bad ones among them; every other minute a model's process is
killed. The resident memory of every process is sampled. An error counts as typed when it has a code of ``forcegate.errors``.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from benchmarks import report, structures
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.processes import Processes
from benchmarks.service import say
from forcegate import errors
from forcegate.evaluation import iterate
from forcegate.structure import Structure, from_atoms, to_mapping
from frontend.settings import Settings

NAME = "soak"
TITLE = "Soak: mixed load with faults injected (aims: memory flat, no error that is not typed)"
REST_CLIENTS, GRPC_CLIENTS = 8, 4
BAD = 0.05
"""Share of requests that no model can answer."""
KILL_EVERY = 120.0
SAMPLE_EVERY = 2.0
LARGEST = 200
"""Atoms of the largest structure: on a CPU one of 444 atoms would hold the queue up for long."""
CODES = frozenset(kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ForcegateError))


@dataclass
class Seen:
    """What the clients have seen; shared by their threads."""

    answers: Counter[str] = field(default_factory=Counter)
    typed: Counter[str] = field(default_factory=Counter)
    untyped: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def failed(self, code: str, detail: str) -> None:
        """Counts an error."""
        if code in CODES:
            self.typed[code] += 1
        else:
            self.untyped.append(f"{code}: {detail}"[:300])


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each process with its memory; the last one has the counts."""
    models = plan.models(ANALYTIC, *MODELS)
    seconds = plan.seconds(60.0 * plan.minutes, 20.0)
    seen, samples = Seen(), dict[str, list[tuple[float, float]]]()
    with plan.serving(*models) as settings:
        clients = [threading.Thread(target=_rest, args=(settings, models, seen, k)) for k in range(REST_CLIENTS)]
        clients += [threading.Thread(target=_grpc, args=(settings, models, seen, k)) for k in range(GRPC_CLIENTS)]
        for client in clients:
            client.start()
        try:
            kills = _watch(settings, models, seconds, samples, 8.0 if plan.quick else KILL_EVERY)
        finally:
            seen.over.set()
            for client in clients:
                client.join(120)
    rows = [
        {"process": name, **flatness(points), "samples": points[:: max(1, len(points) // 300)]} for name, points in samples.items()
    ]
    counts = {
        "minutes": seconds / 60,
        "answers": dict(seen.answers),
        "typed_errors": dict(seen.typed),
        "untyped_errors": len(seen.untyped),
        "examples": seen.untyped[:10],
        "kills": kills,
        "longest_wait_s": max(seen.waits, default=0.0),
    }
    say(f"soak: {sum(seen.answers.values())} answers, {sum(seen.typed.values())} typed errors, {len(seen.untyped)} untyped")
    return [*rows, counts]


def flatness(points: list[tuple[float, float]]) -> dict[str, float]:
    """MB at the start and the end, at most, and MB an hour of a line through the second half, in which caches are full."""
    times, sizes = np.array(points).T
    late = times >= times[0] + 0.5 * (times[-1] - times[0])
    slope = float(np.polyfit(times[late], sizes[late], 1)[0]) * 3600 if late.sum() > 2 else 0.0
    return {"first_mb": float(sizes[0]), "last_mb": float(sizes[-1]), "most_mb": float(sizes.max()), "mb_an_hour": slope}


def _watch(
    settings: Settings, models: tuple[str, ...], seconds: float, samples: dict[str, list[tuple[float, float]]], every: float
) -> list[str]:
    """Samples memory until the time is over, and kills the processes of all models but the last, whose memory is to show no end."""
    started, next_kill, kills = time.monotonic(), every, list[str]()
    while (at := time.monotonic() - started) < seconds:
        processes = Processes.of(settings)
        for name, size in processes.memory().items():
            samples.setdefault(name, []).append((at, size))
        if at >= next_kill and len(models) > 1:
            next_kill += every
            name = models[len(kills) % (len(models) - 1)]
            if (pid := processes.models.get(name)) is not None:
                os.kill(pid, signal.SIGKILL)
                kills.append(name)
                say(f"soak: killed the process of {name} after {at:.0f} s")
        time.sleep(min(SAMPLE_EVERY, seconds / 10))
    return kills


def _requests(models: tuple[str, ...], seed: int) -> Iterator[tuple[str, Structure, dict[str, Any] | None]]:
    """Model, structure, and now and then a body that is wrong in one of several ways, for ever."""
    chance = random.Random(seed)
    pools = {
        name: [from_atoms(atoms) for atoms in structures.materials_mix(variant_of(name), 64, seed) if len(atoms) <= LARGEST]
        for name in models
    }
    while True:
        name = chance.choice(models)
        structure = chance.choice(pools[name])
        yield name, structure, chance.choice(WRONG)(to_mapping(structure)) if chance.random() < BAD else None


def _coincident(atoms: dict[str, Any]) -> dict[str, Any]:
    return atoms | {"positions": [atoms["positions"][0]] * len(atoms["positions"])}


WRONG: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    _coincident,
    lambda atoms: atoms | {"positions": [[float("nan")] * 3] * len(atoms["positions"])},
    lambda atoms: atoms | {"symbols": ["Og"] * len(atoms["symbols"])},
    lambda atoms: atoms | {"symbols": [], "positions": []},
    lambda atoms: atoms | {"cell": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]},
    lambda atoms: {"positions": atoms["positions"]},
)


def _rest(settings: Settings, models: tuple[str, ...], seen: Seen, seed: int) -> None:
    url = f"http://{settings.host}:{settings.port}/api/v1/single_point"
    with httpx.Client(timeout=120.0, trust_env=False) as client:
        for name, structure, wrong in _requests(models, seed):
            if seen.over.is_set():
                return
            content = orjson.dumps({"model_name": name, "atoms": to_mapping(structure) if wrong is None else wrong})
            started = time.monotonic()
            try:
                answer = client.post(url, content=content, headers={"Content-Type": "application/json"})
                told = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                seen.failed(type(error).__name__, str(error))
                continue
            seen.waits.append(time.monotonic() - started)
            if answer.status_code == httpx.codes.OK:
                seen.answers[name] += 1
            else:
                seen.failed(str(told.get("code")), f"{answer.status_code} {told.get('detail')}")


def _grpc(settings: Settings, models: tuple[str, ...], seen: Seen, seed: int) -> None:
    """``forcegate.iterate`` with a few structures at a time, as a script would."""
    for name, structure, _wrong in _requests(models, 100 + seed):
        if seen.over.is_set():
            return
        started = time.monotonic()
        try:
            for result in iterate([structure] * 4, name, address=settings.grpc_address, in_flight=4, timeout=120.0):
                if result.error is None:
                    seen.answers[name] += 1
                else:
                    seen.failed(result.error.code, result.error.detail)
        except errors.ForcegateError as error:
            seen.failed(error.code, error.detail)
        except Exception as error:  # whatever else it raises is what this section looks for
            seen.failed(type(error).__name__, str(error))
        seen.waits.append(time.monotonic() - started)


def table(rows: list[dict[str, Any]]) -> str:
    """What was counted, then the memory of each process."""
    if "skipped" in rows[0]:
        return str(rows[0]["skipped"])
    counts = rows[-1]
    typed = ", ".join(f"{code} {number}" for code, number in sorted(counts["typed_errors"].items())) or "none"
    told = (
        f"{counts['minutes']:.1f} minutes, {sum(counts['answers'].values())} answers, **{counts['untyped_errors']} errors that are "
        f"not typed**; typed: {typed}. Killed: {', '.join(counts['kills']) or 'nothing'}. "
        f"Longest wait {counts['longest_wait_s']:.1f} s."
    )
    header = ["process", "MB an hour, second half", "first, MB", "last, MB", "most, MB"]
    figures = ("mb_an_hour", "first_mb", "last_mb", "most_mb")
    return told + "\n\n" + report.table(header, [[row["process"], *(f"{row[name]:.0f}" for name in figures)] for row in rows[:-1]])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory of every process over time."""
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows[:-1]:
        times, sizes = np.array(row["samples"]).T
        axes.plot(times / 60, sizes, label=row["process"])
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
