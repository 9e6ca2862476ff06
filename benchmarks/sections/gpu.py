"""On a GPU: microseconds for each atom and step, served and in process, for architectures in real size, and how busy the GPU was.

One client asks for the same structure again and again, as molecular dynamics does; then 32 clients send structures of 32 atoms.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from shutil import which
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from benchmarks import report, structures
from benchmarks.clients import grpc_closed_loop
from benchmarks.plan import Plan, variant_of
from benchmarks.sections import families
from benchmarks.service import say
from benchmarks.worker import Refused, Worker
from forcegate.structure import from_atoms
from frontend.settings import Settings

NAME = "gpu"
TITLE = "On a GPU (NVIDIA's BGR NIM: 3.02 us for each atom and step of MACE-MP-0b2 large on an H100)"
MODELS = (
    "random-mace-mp-0b2-large",
    "random-orb-v3-conservative-inf-omat",
    "sevennet-0",
    "random-uma-s-1p2",
)
SIZES = (512, 1000, 4096, 8000)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model and size, or one that says why there is none."""
    if not which("nvidia-smi") or not _smi("name"):
        say(f"{NAME}: there is no GPU here")
        return [{"skipped": "there is no GPU on this machine"}]
    plan = replace(plan, device="cuda", overrides=plan.overrides | {"device": "cuda", "memory_gb": 0.0})
    rows = []
    for model in plan.models(*MODELS):
        name = variant_of(model).name
        with plan.serving(name) as settings, Worker(name, settings) as worker:
            for atoms in SIZES[:2] if plan.quick else SIZES:
                try:
                    rows.append(steps(settings, worker, name, atoms, plan.seconds(10.0, 2.0)))
                except (Refused, InferenceServerException) as error:
                    rows.append({"model": name, "atoms": atoms, "skipped": str(error)})
            packs = (1024, 4096, 16384, 65536)
            effort = families.Effort(rounds=2 if plan.quick else 4, pack_atoms=packs)
            with busy() as shares:
                row = families.compare(settings, worker, name, 32, effort, plan.seconds(10.0, 2.0))
            rows.append(
                {"model": name, "atoms": 32, "gpu": _smi("name"), "throughput": row, "utilisation": float(np.mean(shares or [0.0]))}
            )
    return rows


def steps(settings: Settings, worker: Worker, model: str, atoms: int, seconds: float) -> dict[str, Any]:
    """Median time of one evaluation of one structure, over its atoms."""
    [made] = structures.crystals(variant_of(model), atoms, 1)
    given = from_atoms(made)
    alone = float(np.median(worker.single(atoms, 5)[2:]))
    calls = max(5, min(500, int(seconds / alone)))
    alone = float(np.median(worker.single(atoms, calls)))
    grpc_closed_loop(settings.grpc_address, model, [given] * 3, 1)
    with busy() as shares:
        run = grpc_closed_loop(settings.grpc_address, model, [given] * calls, 1)
    served = float(np.median(run.latencies))
    row = {
        "model": model,
        "atoms": atoms,
        "gpu": _smi("name"),
        "served_over_in_process": alone / served,
        "us_per_atom": {"served": 1e6 * served / atoms, "in_process": 1e6 * alone / atoms},
        "utilisation": float(np.mean(shares or [0.0])),
        "calls": calls,
    }
    say(f"{model}, {atoms} atoms: {row['us_per_atom']['served']:.2f} us for each atom and step")
    return row


@contextmanager
def busy() -> Iterator[list[float]]:
    """The utilisation of the first GPU in percent, sampled a few times a second until the block ends."""
    shares: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            shares.append(float(_smi("utilization.gpu") or 0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield shares
    finally:
        over.set()
        thread.join()


def _smi(what: str) -> str:
    asked = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio first."""
    header = [
        "model",
        "atoms",
        "served over in process",
        "us per atom and step",
        "in process",
        "32 clients, structures/s",
        "GPU busy",
    ]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", "atoms", width=len(header)))
        elif "throughput" in row:
            found = row["throughput"]
            rate = f"{found['structures_per_second']['served']:.1f}"
            over = f"**{found['served_over_in_process_best']:.2f}**"
            cells.append([row["model"], row["atoms"], over, "", "", rate, f"{row['utilisation']:.0f} %"])
        else:
            figures = [f"{row['us_per_atom'][way]:.2f}" for way in ("served", "in_process")]
            over = f"**{row['served_over_in_process']:.2f}**"
            cells.append([row["model"], row["atoms"], over, *figures, "", f"{row['utilisation']:.0f} %"])
    return report.table(header, cells)
