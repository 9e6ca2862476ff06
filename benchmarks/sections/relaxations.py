"""Relaxations: 200 rattled crystals to 0.05 eV/A with their cells, by ``forcegate relax`` and by ASE's FIRE one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from benchmarks import report, structures
from benchmarks.plan import MODELS, Plan, variant_of
from benchmarks.service import say
from benchmarks.worker import Commanded, Worker, python_of
from forcegate.relaxation import relax_many
from forcegate.relaxation.driver import Evaluated
from forcegate.relaxation.many import AT_ONCE
from forcegate.structure import Structure, from_atoms
from frontend.settings import Settings
from frontend.supervisor import triton

NAME = "relaxations"
TITLE = (
    "Relaxations of 8-atom cells to 0.05 eV/A, structures an hour over ASE one by one (aim: 2 for CHGNet) "
    "and over what their force evaluations alone allow (aim: 0.9)"
)
FMAX = 0.05
STEPS = 300
MANY, FEW = 200, 16
"""All at once, and of these one by one: the first ones, which hold as many of each crystal."""
RATTLE = 0.1
"""A, on top of the strain of 1 %: about 40 steps of FIRE."""


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model."""
    if not _there():
        reason = "this version of Forcegate has no `forcegate relax`"
        say(f"{NAME}: {reason}")
        return [{"skipped": reason}]
    rows = []
    for model in plan.models(*MODELS):
        with plan.serving(model) as settings:
            rows.append(compare(settings, variant_of(model).name, *((32, 8) if plan.quick else (MANY, FEW))))
    return rows


def compare(settings: Settings, model: str, many: int, few: int) -> dict[str, Any]:
    """``many`` at once through the service; the same in step over the runtime in process, of which only the force evaluations are
    timed, ``AT_ONCE`` in a call: no server can need less; the first ``few`` of them one by one by the package's own calculator.

    The minima are compared too: two ways that end in different ones have not done the same work.
    """
    given = rattled(model, many)
    with Worker(model, settings) as worker:
        needed, evaluations = _needed(worker, given)
    served, found = _served(settings, model, given)
    with Commanded(
        [str(python_of(model, settings)), "-m", "benchmarks.relax_one_by_one", model],
        triton.environment(settings),
        settings.state / f"one-by-one-{model}.log",
    ) as alone:
        written = settings.state / "to-relax.extxyz"
        write(written, given[:few])
        one_by_one = alone.ask(file=str(written), fmax=FMAX, steps=STEPS)
    differences = [abs(a - b) / len(atoms) for a, b, atoms in zip(one_by_one["energies"], found, given, strict=False)]
    each = {"served": served / many, "one_by_one": one_by_one["seconds"] / few}
    row = {
        "model": model,
        "structures": many,
        "one_by_one": few,
        "served_over_evaluations": needed / served,
        "evaluations": evaluations,
        "served_over_one_by_one": each["one_by_one"] / each["served"],
        "an_hour": {way: 3600.0 / seconds for way, seconds in each.items()},
        "largest_difference_ev_per_atom": max(differences, default=float("nan")),
    }
    say(
        f"{model}: {row['an_hour']['served']:.0f} an hour, {row['served_over_one_by_one']:.2f} times ASE one by one, "
        f"{row['served_over_evaluations']:.2f} of what their force evaluations alone allow"
    )
    return row


def rattled(model: str, count: int) -> list[Atoms]:
    """Crystals of 8 atoms, strained, and with every atom moved."""
    made = structures.crystals(variant_of(model), 8, count)
    generator = np.random.default_rng(8)
    for atoms in made:
        atoms.positions += generator.normal(0.0, RATTLE, atoms.positions.shape)
    return made


def _needed(worker: Worker, given: list[Atoms]) -> tuple[float, int]:
    """Seconds of the force evaluations of all relaxations, ``AT_ONCE`` of them in step, and how many these are."""
    worker.evaluate([from_atoms(atoms) for atoms in given[:AT_ONCE]])
    seconds, evaluations = 0.0, 0

    def evaluate(batch: Sequence[Structure]) -> list[Evaluated]:
        nonlocal seconds, evaluations
        taken, answers = worker.evaluate(batch)
        seconds += taken
        evaluations += len(batch)
        return answers

    relax_many(given, evaluate, fmax=FMAX, max_steps=STEPS, in_flight=AT_ONCE)
    return seconds, evaluations


def _served(settings: Settings, model: str, given: list[Atoms]) -> tuple[float, list[float]]:
    """Seconds of ``forcegate relax`` on a file with all of them, and the energies in eV that it wrote, in order."""
    with tempfile.TemporaryDirectory(dir=settings.state) as folder:
        source, target = Path(folder) / "rattled.extxyz", Path(folder) / "relaxed.extxyz"
        write(source, given)
        command = [sys.executable, "-m", "forcegate.cli", "relax", str(source), "-m", model, "-o", str(target)]
        command += ["--fmax", str(FMAX), "--max-steps", str(STEPS)]
        variables = os.environ | {
            "FORCEGATE_GRPC": settings.grpc_address,
            "FORCEGATE_URL": f"http://{settings.host}:{settings.port}",
        }
        started = time.perf_counter()
        subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        return seconds, [float(atoms.get_potential_energy()) for atoms in read(target, ":")]


def _there() -> bool:
    """Whether ``forcegate`` has the command."""
    asked = [sys.executable, "-m", "forcegate.cli", "relax", "--help"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio first."""
    header = [
        "model",
        "over ASE one by one",
        "over their evaluations alone",
        "evaluations",
        "an hour",
        "ASE, an hour",
        "structures",
        "of these one by one",
        "minima differ, eV/atom",
    ]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, width=len(header)))
            continue
        rates = [f"{row['an_hour'][way]:.0f}" for way in ("served", "one_by_one")]
        counts = [row["structures"], row["one_by_one"], f"{row['largest_difference_ev_per_atom']:.1e}"]
        ratios = [f"**{row[f'served_over_{way}']:.2f}**" for way in ("one_by_one", "evaluations")]
        cells.append([row["model"], *ratios, row["evaluations"], *rates, *counts])
    return report.table(header, cells)
