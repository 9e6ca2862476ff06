"""What one forward pass of a loaded model costs on this device: measured, and kept as long as nothing it depends on changes.

A few passes over crystals of known size are timed, and ``seconds = per_pass + per_atom * atoms + per_edge * edges`` is fitted to
them without negative terms. Passes are made larger for as long as that brings more atoms a second, until they no longer fit or the
time is up; the smallest that is about as fast as the best is the size of a full pass, in seconds: molecules, with their few
neighbours, make longer ones. On a CPU large passes get slower again, since they leave the caches. On a GPU torch's own peak gives
the bytes of a pair.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from forcefields.cost import Cost
from forcefields.runtime import golden
from forcefields.runtime.batch import Job, PassSize
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.gate import write_json
from forcegate.structure import Structure

log = logging.getLogger(__name__)

BUDGET_SECONDS = 6.0
"""Time after which no further pass is measured; enough for passes of 128 atoms of SevenNet on a CPU, which take 2 s."""
FIRST_ATOMS, MOST_ATOMS = 32, 512
"""Atoms of the smallest pass that is tried, and of the largest on a CPU."""
STRETCH = 1.12
"""Factor on the lattice of some measured crystals: the same atoms with fewer neighbours, which tells the two apart."""
GAIN = 1.03
"""A pass of twice the size has to bring this much more to be worth its delay."""
LEAST_PASSES, MOST_PASSES = 3, 8
"""How often each pass is timed: until the last two have not been faster than ``SETTLED`` times the ones before."""
SETTLED = 0.95
LONG_SECONDS = 0.5
"""A pass that takes as long is timed twice: chance evens out within it."""
MEMORY_SHARE = 0.6
"""Part of the memory limit that a measured pass may take: what holds for one kind of crystal does so only roughly for another."""


@dataclass(frozen=True)
class Sample:
    """One timed pass; ``peak`` is the bytes that it took at its peak on a GPU, else 0."""

    atoms: int
    edges: int
    seconds: float
    peak: int = 0


@dataclass(frozen=True)
class Calibration:
    """The cost of passes, and how large they are made."""

    cost: Cost
    size: PassSize


def calibrated(engine: Engine, device: str, memory: Path, key: str) -> Calibration:
    """The calibration of a loaded model: the remembered one where ``key`` is the same, else measured now.

    Args:
        memory: file to remember it in.
        key: stands for all that it depends on: checkpoint, code, packages, device, threads.
    """
    samples = _remembered(memory, key)
    if samples is None:
        samples = measure(engine, device)
        write_json(memory, {"key": key, "samples": [vars(sample) for sample in samples]})
    found = fit(samples, engine)
    log.info("calibrated", extra={"cost": found.cost.as_dict(), "full_pass": found.size.full, "samples": len(samples)})
    return found


def _remembered(memory: Path, key: str) -> list[Sample] | None:
    try:
        data = json.loads(memory.read_text())
        return [Sample(**sample) for sample in data["samples"]] if data["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(engine: Engine, device: str) -> list[Sample]:
    """Times passes of growing size over a crystal, and two over the same one stretched."""
    crystal = next(s for s in golden.structures(engine.variant).values() if s.pbc.all())
    stretched = replace(crystal, cell=STRETCH * crystal.cell, positions=STRETCH * crystal.positions)
    count = max(1, FIRST_ATOMS // len(crystal))
    started = time.perf_counter()
    # The smallest comes first: it is the cheapest to repeat until the model is warm.
    smallest = _sample(engine, [crystal], device)
    others = [_sample(engine, [stretched] * count, device)]
    dense = [smallest]
    if count > 1:
        others, dense = [smallest, *others], [_sample(engine, [crystal] * count, device)]
    while time.perf_counter() - started < BUDGET_SECONDS and _worth_doubling(dense, engine.limits.edges, device):
        count *= 2
        dense.append(_sample(engine, [crystal] * count, device))
    return others + dense


def _worth_doubling(dense: Sequence[Sample], edges: int, device: str) -> bool:
    """Whether a pass of twice the size of the last one fits, and there is still something to be gained."""
    last = dense[-1]
    if 2 * last.edges > MEMORY_SHARE * edges or (device == "cpu" and 2 * last.atoms > MOST_ATOMS):
        return False
    # One that brought nothing can be chance; two cannot.
    before = max((sample.atoms / sample.seconds for sample in dense[:-2]), default=0.0)
    return len(dense) < 3 or max(sample.atoms / sample.seconds for sample in dense[-2:]) > GAIN * before


def _sample(engine: Engine, structures: Sequence[Structure], device: str) -> Sample:
    """The shortest of a few passes, which are repeated until they get no faster.

    The first ones compile, take memory for the first time, or are watched by TorchScript, as MACE's first two are.
    """
    size, engine.size = engine.size, replace(engine.size, full=float("inf"))
    try:
        seconds: list[float] = []
        edges = 0
        while not _settled(seconds):
            if len(seconds) == 1:
                _reset_peak(device)
            jobs = [Job(structure, "", DEFAULT_OUTPUTS) for structure in structures]
            begun = time.perf_counter()
            edges = engine.run(jobs).edges
            seconds.append(time.perf_counter() - begun)
        return Sample(sum(map(len, structures)), edges, min(seconds), _peak(device))
    finally:
        engine.size = size


def _settled(seconds: Sequence[float]) -> bool:
    """Whether two passes in a row have brought nothing over those before, or there have been enough."""
    if len(seconds) >= 2 and min(seconds) >= LONG_SECONDS:
        return True
    if len(seconds) < LEAST_PASSES:
        return False
    return len(seconds) >= MOST_PASSES or min(seconds[-2:]) > SETTLED * min(seconds[:-2])


def fit(samples: Sequence[Sample], engine: Engine) -> Calibration:
    """Cost and pass size that follow from measured passes."""
    rows = np.array([[1.0, sample.atoms, sample.edges] for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    # Relative errors count: a small pass matters as much as a large one.
    per_pass, per_atom, per_edge = (float(value) for value in nnls(rows / seconds[:, None], np.ones(len(samples)))[0])
    packing, limits = engine.variant.packing, engine.limits
    per_byte = [sample.peak / sample.edges for sample in samples if sample.peak and sample.edges]
    bytes_per_edge = max(per_byte) if per_byte else float(packing.bytes_per_edge)
    edges = int(limits.edges * packing.bytes_per_edge / bytes_per_edge) if per_byte else limits.edges
    cost = Cost(per_pass, per_atom, per_edge, bytes_per_edge, max(edges, 10_000))
    usual = max(samples, key=lambda sample: sample.edges / sample.atoms)
    # Atoms with fewer neighbours are faster at any size, so only passes of the same crystal are compared.
    alike = [sample for sample in samples if sample.edges * usual.atoms == usual.edges * sample.atoms]
    # A single small crystal tells what a pass costs. That it was as fast as any would be chance.
    passes = [sample for sample in alike if sample.atoms >= FIRST_ATOMS] or alike
    best = max(sample.atoms / sample.seconds for sample in passes)
    atoms = min(sample.atoms for sample in passes if sample.atoms / sample.seconds * GAIN >= best)
    full = atoms * (per_atom + per_edge * usual.edges / usual.atoms)
    size = PassSize(full, per_atom, per_edge, cost.edges, per_pass) if full > 0 else PassSize(atoms, edges=cost.edges)
    return Calibration(cost, size)


def _torch_on(device: str) -> Any:
    """torch, where the model computes with it on a GPU."""
    return sys.modules.get("torch") if device != "cpu" else None


def _reset_peak(device: str) -> None:
    if (torch := _torch_on(device)) is not None:
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    torch = _torch_on(device)
    return 0 if torch is None else int(torch.cuda.max_memory_allocated(device))
