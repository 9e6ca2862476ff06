"""A load on one model of a service, and everything that is to be known of how it was carried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import metrics, stalls
from benchmarks.clients import Run, grpc_closed_loop
from benchmarks.processes import MODEL, Processes, since
from forcegate.structure import Structure
from frontend.settings import Settings


@dataclass(frozen=True)
class Observed:
    """What the service has done until one moment: its metrics and its processor time."""

    settings: Settings
    model: str
    counters: metrics.Counters
    processes: Processes
    cpu: dict[str, float]

    @classmethod
    def now(cls, settings: Settings, model: str) -> Observed:
        """The state now."""
        processes = Processes.of(settings)
        return cls(settings, model, metrics.read(metrics_url(settings), model), processes, processes.cpu_seconds(model))

    def since(self, run: Run) -> dict[str, float]:
        """What it did in ``run``: shares of time, sizes of batches, ms of processor time for each structure, the longest stall."""
        grown = metrics.settled(metrics_url(self.settings), self.model).since(self.counters)
        cpu = since(self.cpu, self.processes.cpu_seconds(self.model))
        each = {f"cpu_ms_{kind}": 1e3 * seconds / len(run.latencies) for kind, seconds in cpu.items()}
        stall = stalls.longest(log_of(self.settings), self.model, run.sent, run.latencies)
        busy = {"model_cpu_share": cpu[MODEL] / run.seconds}
        return metrics.summary(grown, run.seconds) | each | busy | ({} if stall is None else {"longest_stall_ms": 1e3 * stall})


def watched(settings: Settings, model: str, load: Callable[[], Run]) -> tuple[Run, dict[str, float]]:
    """Runs a load and tells what the service did meanwhile: see ``Observed.since``."""
    before = Observed.now(settings, model)
    run = load()
    return run, before.since(run)


def over_grpc(settings: Settings, model: str, given: Sequence[Structure], clients: int) -> tuple[Run, dict[str, float]]:
    """The same for a closed loop over gRPC."""
    return watched(settings, model, lambda: grpc_closed_loop(settings.grpc_address, model, given, clients))


def row_of(model: str, run: Run, seen: dict[str, float]) -> dict[str, Any]:
    """What every section with a load says of it."""
    return {
        "model": model,
        "structures": len(run.latencies),
        "structures_per_second": run.structures_per_second,
        "atoms_per_second": run.atoms_per_second,
        **run.waits,
        "service": seen,
    }


def cells_of(row: dict[str, Any]) -> list[str]:
    """The same as the cells of a table under ``HEADER``."""
    seen = row["service"]
    stall = f"{seen['longest_stall_ms']:.0f}" if "longest_stall_ms" in seen else ""
    return [
        f"{row['structures_per_second']:.1f}",
        f"{row['atoms_per_second']:.0f}",
        f"{seen['edges_per_second']:.0f}",
        *(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "longest_ms")),
        f"{seen['mean_batch_structures']:.1f}",
        *(f"{seen[f'cpu_ms_{kind}']:.2f}" for kind in ("model", "tritonserver", "gateway")),
        stall,
        str(row["structures"]),
    ]


HEADER = ["structures/s", "atoms/s", "edges/s", "p50, ms", "p95, ms", "p99, ms", "longest, ms", "mean batch"]
HEADER += ["CPU model, ms", "CPU Triton, ms", "CPU gateway, ms", "stall, ms", "requests"]


def metrics_url(settings: Settings) -> str:
    """Triton's metrics."""
    return f"http://127.0.0.1:{settings.metrics_port}/metrics"


def log_of(settings: Settings) -> Path:
    """The log that model processes write to."""
    return settings.state / "logs" / "triton.log"
