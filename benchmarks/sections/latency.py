"""What a lone caller waits for: the runtime in process, the same through gRPC, the same through REST."""

from __future__ import annotations

import time
from typing import Any

import httpx
import numpy as np
import orjson
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks import report, structures
from benchmarks.clients import CHANNEL_OPTIONS, body, grpc_latencies
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.service import say
from benchmarks.worker import Refused, Worker
from forcegate.structure import Structure, from_atoms
from frontend.settings import Settings

HEADERS = {"Content-Type": "application/json", "X-Forcegate-Timeout": "300"}
NAME = "latency"
TITLE = "Latency of one caller (aims for 8 atoms: gRPC adds 1.5 ms, REST 3.0 ms more)"
SIZES = (8, 64, 216, 512, 1000)
BLOCK = 5
"""Calls of one kind in a row, before the next kind has its turn."""


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model and size."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings, Worker(variant_of(model).name, settings) as worker:
            caller = Caller(settings, worker, model)
            try:
                rows += by_size(caller, SIZES[:2] if plan.quick else SIZES, plan.seconds(6.0, 2.0))
            finally:
                caller.close()
    return rows


class Caller:
    """One caller of the service, with kept-alive connections, and the in-process evaluation beside it."""

    def __init__(self, settings: Settings, worker: Worker, model: str) -> None:
        self.variant = variant_of(model)
        self._worker = worker
        self._url = f"http://{settings.host}:{settings.port}/api/v1/single_point"
        self._grpc = triton.InferenceServerClient(settings.grpc_address, channel_args=CHANNEL_OPTIONS)
        self._http = httpx.Client(timeout=300.0, trust_env=False)

    def close(self) -> None:
        """Ends the connections."""
        self._grpc.close()
        self._http.close()

    def in_process(self, structure: Structure, calls: int) -> list[float]:
        """Seconds of calls of the runtime."""
        return self._worker.single(len(structure), calls)

    def grpc(self, structure: Structure, calls: int) -> list[float]:
        """Seconds of gRPC calls with the plain synchronous client, from the structure to numpy arrays."""
        return grpc_latencies(self._grpc, self.variant.name, structure, calls)

    def rest(self, structure: Structure, calls: int) -> list[float]:
        """Seconds of REST calls with httpx, from the structure to the parsed answer."""
        latencies = []
        for _ in range(calls):
            started = time.perf_counter()
            answer = self._http.post(self._url, content=body(structure, self.variant.name), headers=HEADERS)
            answer.raise_for_status()
            orjson.loads(answer.content)
            latencies.append(time.perf_counter() - started)
        return latencies

    def structure(self, atoms: int) -> Structure:
        """The structure that ``Worker.single`` evaluates."""
        [atoms_] = structures.crystals(self.variant, atoms, 1)
        return from_atoms(atoms_)


def added(caller: Caller, atoms: int, seconds: float) -> dict[str, Any]:
    """Median latencies of one structure, measured in turns, and what gRPC and REST add.

    Args:
        seconds: about how long to measure.

    Raises:
        Refused: the structure does not fit into memory, or takes so long that few calls fit into ``seconds``.
    """
    structure = caller.structure(atoms)
    kinds = {"in_process": caller.in_process, "grpc": caller.grpc, "rest": caller.rest}
    for call in kinds.values():
        call(structure, 1)  # memory for this size, connections, caches
    latencies = {name: call(structure, 1) for name, call in kinds.items()}
    once = sum(values[0] for values in latencies.values())
    if once * BLOCK > seconds:
        raise Refused(f"a call takes {latencies['in_process'][0]:.1f} s: what the way to the model adds is lost in its noise")
    for _ in range(min(60, int(seconds / (once * BLOCK)))):
        for name, call in kinds.items():
            latencies[name] += call(structure, BLOCK)
    p50 = {name: float(np.median(values)) * 1e3 for name, values in latencies.items()}
    result = {
        "model": caller.variant.name,
        "atoms": atoms,
        "calls": len(latencies["grpc"]),
        "p50_ms": p50,
        "grpc_over_in_process_ms": p50["grpc"] - p50["in_process"],
        "rest_over_grpc_ms": p50["rest"] - p50["grpc"],
    }
    say(
        f"{caller.variant.name}, {atoms} atoms, one caller: in process {p50['in_process']:.2f} ms, "
        f"gRPC adds {result['grpc_over_in_process_ms']:.2f} ms, REST {result['rest_over_grpc_ms']:.2f} ms more"
    )
    return result


def by_size(caller: Caller, sizes: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """``added`` for structures of growing size; one that is refused is noted with the reason."""
    results: list[dict[str, Any]] = []
    for atoms in sizes:
        try:
            results.append(added(caller, atoms, seconds))
        except (Refused, InferenceServerException, httpx.HTTPStatusError) as error:
            say(f"{caller.variant.name}, {atoms} atoms: {error}")
            results.append({"model": caller.variant.name, "atoms": atoms, "skipped": str(error)})
    return results


def table(rows: list[dict[str, Any]]) -> str:
    """What gRPC and REST add first."""
    header = [
        "model",
        "atoms",
        "gRPC adds, ms",
        "REST adds to gRPC, ms",
        "in process p50, ms",
        "gRPC p50, ms",
        "REST p50, ms",
        "calls",
    ]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", "atoms", width=len(header)))
            continue
        p50 = [f"{row['p50_ms'][way]:.2f}" for way in ("in_process", "grpc", "rest")]
        adds = [f"**{row['grpc_over_in_process_ms']:.2f}**", f"**{row['rest_over_grpc_ms']:.2f}**"]
        cells.append([row["model"], row["atoms"], *adds, *p50, row["calls"]])
    return report.table(header, cells)
