"""What one forward pass of a loaded model costs on this device: measured, and kept as long as nothing it depends on changes.

A few passes over crystals of known size are timed, and ``seconds = per_pass + per_atom * atoms + per_edge * edges`` is fitted to
them without negative terms. A pass is then full when it takes as long as one over ``packing.atoms`` atoms (family.toml) of the
densest crystal: molecules, with their few neighbours, make longer ones. On a GPU the passes are made larger until that brings
nothing more or takes the memory that there is, which gives their size, and torch's own peak the bytes of a pair.
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

BUDGET_SECONDS = 4.0
"""Time after which no further pass is measured."""
MOST = 64
"""Structures in a measured pass, at most, on a CPU: enough to tell what one more costs."""
STRETCH = 1.12
"""Factor on the lattice of every other measured crystal: the same atoms with fewer neighbours, which tells the two apart."""
GAIN = 1.05
"""A pass of twice the size has to bring this much more to be worth its delay, on a GPU."""
MEMORY_SHARE = 0.6
"""Part of a GPU's memory limit that a pass may take: what is measured on one kind of crystal holds only roughly for another."""


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
    """Times passes of growing size, dense and stretched in turn."""
    crystal = next(s for s in golden.structures(engine.variant).values() if s.pbc.all())
    stretched = replace(crystal, cell=STRETCH * crystal.cell, positions=STRETCH * crystal.positions)
    full = engine.variant.packing.atoms
    most = min(max(1, full // len(crystal)), MOST)
    counts = sorted({1, max(1, most // 2), most})
    samples: list[Sample] = []
    started = time.perf_counter()
    for count in counts:
        for structure in (crystal, stretched):
            if samples and time.perf_counter() - started > BUDGET_SECONDS:
                return samples
            samples.append(_sample(engine, [structure] * count, device))
    while device != "cpu" and _worth_doubling(samples, engine.limits.edges):
        counts.append(2 * counts[-1])
        samples.append(_sample(engine, [crystal] * counts[-1], device))
    return samples


def _worth_doubling(samples: Sequence[Sample], edges: int) -> bool:
    """Whether a pass of twice the size of the last one fits, and the last doubling was worth it."""
    dense = sorted(samples, key=lambda sample: sample.atoms)
    last, before = dense[-1], [sample for sample in dense if sample.atoms < dense[-1].atoms]
    if 2 * last.edges > MEMORY_SHARE * edges:
        return False
    rate = [max(sample.atoms / sample.seconds for sample in group) for group in ([last], before) if group]
    return len(rate) == 1 or rate[0] > GAIN * rate[1]


def _sample(engine: Engine, structures: Sequence[Structure], device: str) -> Sample:
    """The shorter of two passes, after one that is not counted: it compiles, or takes memory for the first time."""
    size, engine.size = engine.size, replace(engine.size, full=float("inf"))
    try:
        engine.run([Job(structure, "", DEFAULT_OUTPUTS) for structure in structures])
        _reset_peak(device)
        seconds, edges = [], 0
        for _ in range(2):
            jobs = [Job(structure, "", DEFAULT_OUTPUTS) for structure in structures]
            begun = time.perf_counter()
            edges = engine.run(jobs).edges
            seconds.append(time.perf_counter() - begun)
        return Sample(sum(map(len, structures)), edges, min(seconds), _peak(device))
    finally:
        engine.size = size


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
    dense = max(samples, key=lambda sample: (sample.edges / sample.atoms, sample.atoms))
    atoms = packing.atoms
    if per_byte:
        best = max(sample.atoms / sample.seconds for sample in samples)
        atoms = min(sample.atoms for sample in samples if sample.atoms / sample.seconds * GAIN >= best)
    full = atoms * (per_atom + per_edge * dense.edges / dense.atoms)
    size = PassSize(full, per_atom, per_edge, cost.edges) if full > 0 else PassSize(atoms, edges=cost.edges)
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
