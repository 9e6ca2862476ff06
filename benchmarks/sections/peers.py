"""Forcegate over what other people run, with the same model and structures, taking turns in one run.

A plain FastAPI server with one ASE calculator behind a lock, in the family's environment; fairchem's InferenceBatcher on Ray Serve
with the same checkpoint; torch-sim in process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from benchmarks import report, structures
from benchmarks.clients import Run, closed_loop, grpc_closed_loop, over_rest, rest_closed_loop
from benchmarks.plan import Plan, variant_of
from benchmarks.service import free_ports, say
from benchmarks.statistics import median, ratio, take_turns
from benchmarks.worker import Commanded, python_of
from exporters import environments
from exporters.environments import Environment
from forcegate.errors import ForcegateError, SetupError
from forcegate.structure import Structure, from_atoms, to_mapping
from frontend.settings import Settings
from frontend.supervisor import triton

NAME = "peers"
TITLE = "Over other ways to serve (aims: 1.5 times InferenceBatcher at 32 clients, 3 for a lone one; 1.5 times locked FastAPI)"
LOCKED = ("chgnet-0.3.0", "sevennet-0", "tiny-mace", "tiny-uma")
RAY = ("tiny-uma", "tiny-esen")
TORCH_SIM = ("tiny-mace",)
CLIENTS = 32
ATOMS = 8
WAIT = "0.01"
"""s, a tenth of the default: 32 threads have all sent theirs by then, and longer waits only cost."""
REQUIREMENTS = Path(__file__).parents[1] / "peers"


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model and peer. A peer that cannot be installed or started is noted with the reason."""
    rows: list[dict[str, Any]] = []
    for model in plan.models(*dict.fromkeys((*LOCKED, *RAY, *TORCH_SIM))):
        variant = variant_of(model)
        kinds: dict[str, Callable[[Settings, str, Plan], list[dict[str, Any]]]] = {"locked FastAPI": locked}
        if variant.family == "fairchem":
            kinds["InferenceBatcher"] = ray
        if variant.family == "mace":
            kinds["torch-sim"] = torch_sim
        with plan.serving(variant.name) as settings:
            for peer, kind in kinds.items():
                try:
                    rows += kind(settings, variant.name, plan)
                except ForcegateError as error:
                    say(f"{peer}: {error}")
                    rows.append({"model": variant.name, "peer": peer, "skipped": str(error)})
    return rows


def locked(settings: Settings, model: str, plan: Plan) -> list[dict[str, Any]]:
    """32 clients and a lone one of both, over REST with JSON; Forcegate's gRPC beside it."""
    rows = []
    with _fastapi(settings, model) as port:

        def peer(given: list[Structure], clients: int) -> Run:
            bodies = [orjson.dumps(to_mapping(structure)) for structure in given]

            async def run() -> Run:
                async with over_rest("127.0.0.1", port, bodies, path="/calculate") as connect:
                    return await closed_loop(connect, given, clients)

            return asyncio.run(run())

        for clients in (CLIENTS, 1):
            seconds = plan.seconds(8.0, 2.0) * (1.0 if clients > 1 else 0.5)
            given = _structures(model, max(2 * clients, 8 * round(seconds * _rate(settings, model) / 8)))
            ways = _ours(settings, model, given, clients)
            ways["peer"] = lambda given=given, clients=clients: peer(given, clients).structures_per_second  # type: ignore[misc]
            rows.append(_row(model, "locked FastAPI", clients, ways, plan, "rest"))
    return rows


def ray(settings: Settings, model: str, plan: Plan) -> list[dict[str, Any]]:
    """32 clients with the wait that suits them, then a lone client with everything at the package's defaults."""
    _install("peer-ray", "requirements-ray.txt")
    rows = []
    for clients, wait in ((CLIENTS, WAIT), (1, "default")):
        command = [str(settings.environments.resolve() / "peer-ray" / "bin" / "python"), "-m", "benchmarks.peers.ray_batcher"]
        command += [model, wait, str(clients)]
        with Commanded(command, triton.environment(settings), settings.state / f"ray-{model}.log") as batcher:
            count = max(2 * clients, 8 * round(plan.seconds(8.0, 2.0) * _rate(settings, model) / 8)) if clients > 1 else 24
            given = _structures(model, count)
            batcher.ask(atoms=ATOMS, count=2 * clients)  # warm-up
            ways = _ours(settings, model, given, clients)
            ways["peer"] = lambda batcher=batcher, count=count: count / batcher.ask(atoms=ATOMS, count=count)["seconds"]  # type: ignore[misc]
            row = _row(model, "InferenceBatcher" + (", defaults" if wait == "default" else ""), clients, ways, plan, "grpc")
            rows.append(row)
    return rows


def torch_sim(settings: Settings, model: str, plan: Plan) -> list[dict[str, Any]]:
    """32 clients of the service over torch-sim without any server, in its best size of pass."""
    _install("peer-torch-sim", "requirements-torch-sim.txt")
    command = [
        str(settings.environments.resolve() / "peer-torch-sim" / "bin" / "python"),
        "-m",
        "benchmarks.peers.torch_sim_mace",
        model,
    ]
    with Commanded(command, triton.environment(settings), settings.state / f"torch-sim-{model}.log") as simulator:
        count = max(64, 8 * round(plan.seconds(8.0, 2.0) * _rate(settings, model) / 8))
        simulator.ask(atoms=ATOMS, count=16, pack=16)
        tried = {pack: 32 / simulator.ask(atoms=ATOMS, count=32, pack=pack) for pack in (4, 8, 16, 32)}
        best = max(tried, key=lambda pack: tried[pack])
        ways = _ours(settings, model, _structures(model, count), CLIENTS)
        ways["peer"] = lambda: 32 / simulator.ask(atoms=ATOMS, count=32, pack=best)
        return [_row(model, f"torch-sim in process, {best * ATOMS} atoms a pass", CLIENTS, ways, plan, "grpc")]


def _ours(settings: Settings, model: str, given: list[Structure], clients: int) -> dict[str, Callable[[], float]]:
    grpc_closed_loop(settings.grpc_address, model, given[: 2 * clients], clients)
    return {
        "grpc": lambda: grpc_closed_loop(settings.grpc_address, model, given, clients).structures_per_second,
        "rest": lambda: rest_closed_loop(settings.host, settings.port, model, given, clients).structures_per_second,
    }


def _row(model: str, peer: str, clients: int, ways: dict[str, Callable[[], float]], plan: Plan, like: str) -> dict[str, Any]:
    """All ways take turns; ``like`` is the one of ours that the peer is compared with."""
    ways["peer"]()  # warm-up
    rounds = take_turns(ways, 2 if plan.quick else 4)
    row = {
        "model": model,
        "peer": peer,
        "clients": clients,
        "over_peer": ratio(rounds, like, "peer"),
        **{f"{way}_over_peer": ratio(rounds, way, "peer") for way in ("grpc", "rest")},
        "structures_per_second": {way: median(rounds, way) for way in ways},
        "rounds": rounds,
    }
    say(f"{model}, {clients} clients: {row['over_peer']:.2f} times {peer}")
    return row


@contextmanager
def _fastapi(settings: Settings, model: str) -> Iterator[int]:
    """The port of a plain server, until the block ends."""
    _install("peer-fastapi", "requirements-fastapi.txt")
    packages = (
        settings.environments.resolve() / "peer-fastapi" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    )
    (port,) = free_ports(1)
    log = settings.state / f"fastapi-{model}.log"
    command = [str(python_of(model, settings)), "-m", "benchmarks.peers.locked_fastapi", model, str(port), str(packages)]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, env=triton.environment(settings), stdout=output, stderr=output)
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        deadline = time.monotonic() + 300
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SetupError(f"The plain server did not start: {log.read_text(errors='replace')[-400:]}", "")
            time.sleep(0.2)
        yield port


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=5.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _install(name: str, requirements: str) -> None:
    """Builds a peer's environment, once."""
    environments.ensure(Environment(name, REQUIREMENTS / requirements, project=True), Path(), say)


def _rate(settings: Settings, model: str) -> float:
    """Structures a second of 32 clients, roughly."""
    return grpc_closed_loop(settings.grpc_address, model, _structures(model, 2 * CLIENTS), CLIENTS).structures_per_second


def _structures(model: str, count: int) -> list[Structure]:
    return [from_atoms(atoms) for atoms in structures.crystals(variant_of(model), ATOMS, count)]


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio first: REST with JSON over the plain server's, gRPC over the others."""
    header = ["model", "peer", "clients", "Forcegate over peer", "gRPC over peer", "gRPC /s", "REST /s", "peer /s"]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", "peer", width=len(header)))
            continue
        rates = [f"{row['structures_per_second'][way]:.1f}" for way in ("grpc", "rest", "peer")]
        over = [f"**{row['over_peer']:.2f}**", f"{row['grpc_over_peer']:.2f}"]
        cells.append([row["model"], row["peer"], row["clients"], *over, *rates])
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The ratios as bars."""
    rows = [row for row in rows if "skipped" not in row]
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.35 * len(rows)), layout="constrained")
    bars = axes.barh(-np.arange(len(rows)), [row["over_peer"] for row in rows], 0.7)
    axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    labels = [f"{row['model']} over {row['peer']}, {row['clients']} clients" for row in rows]
    axes.set_yticks(-np.arange(len(rows)), labels, fontsize=7)
    axes.set(xscale="log", xlabel="throughput of Forcegate over the peer's")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=110)
    plt.close(figure)
