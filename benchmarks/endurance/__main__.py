"""The command; see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import service
from benchmarks.bench import machine
from benchmarks.endurance import clients, faults, figures, ledger, references
from benchmarks.endurance.memory import Sampler
from benchmarks.endurance.running import Running, kept_running
from benchmarks.endurance.seen import Seen
from benchmarks.plan import ANALYTIC
from benchmarks.service import say
from benchmarks.statistics import rounded, waits
from forcegate.client import Client
from frontend import settings as all_settings
from frontend.settings import Settings
from frontend.supervisor import triton

TASKS = ("relaxation", "dynamics")
LAST_SECONDS = references.PATIENCE_SECONDS + 60.0
"""For what is under way when the time is over."""
LOOK_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; the exit status is 0 where nothing was lost, wrong or done twice."""
    options = _options(arguments)
    service.end_on_sigterm()
    models = tuple(options.models.split(","))
    results = measure(models, options)
    name = options.name or f"{results['machine']['date']}-{results['machine']['cores']}-cores-endurance"
    options.output.mkdir(parents=True, exist_ok=True)
    results = rounded(figures.thinned(results))
    picture = options.output / f"{name}.png"
    (options.output / f"{name}.json").write_text(json.dumps(results) + "\n")
    (options.output / f"{name}.md").write_text(text := figures.markdown(results, picture.name))
    figures.plot(results, picture)
    print(text)
    return 0 if faultless(results) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long the load lasts")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--models", default=f"{ANALYTIC},chgnet-0.3.0", help=f"separated by commas; {ANALYTIC} has to be one")
    parser.add_argument("--every", type=float, default=60.0, help="mean seconds between two kills")
    parser.add_argument("--pause", type=float, default=10.0, help="mean seconds of a client between two requests")
    parser.add_argument("--sample", type=float, default=5.0, help="seconds between two looks at memory")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--state", type=Path, default=Path("var/endurance"), help="state folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="", help="name of the files, in place of date and cores")
    parser.add_argument("--remark", default="", help="a sentence for the results, such as what else the machine did")
    return parser.parse_args(arguments)


def settings_of(models: tuple[str, ...], options: argparse.Namespace) -> Settings:
    """The service: free ports, nothing but what is needed to have several of each process."""
    names = ("port", "grpc_port", "metrics_port", "http_port")
    chosen = dict(zip(names, service.free_ports(len(names)), strict=True)) | {"host": "127.0.0.1", "threads": 1}
    further = {"models": models, "state": options.state, "gateways": options.gateways, "workers": options.workers}
    # On a busy machine a service that starts from nothing takes longer than the 60 s of the default.
    further["deadline_seconds"] = clients.TIMEOUT_SECONDS
    return all_settings.load(**chosen, **further)


def measure(models: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """The run, and all that was counted."""
    options.state.mkdir(parents=True, exist_ok=True)
    settings, results = settings_of(models, options), {"machine": machine()}
    with kept_running(settings) as running:
        service.wait_until_serving(settings, running.process, running.log)
        asked = _asked(settings, models)
        say(f"references are there; {options.clients} clients for {options.seconds:.0f} s")
        seen, results = _loaded(running, asked, models, options, results)
    results["shared_memory"]["left"] = len(triton.regions(settings))
    results["tasks"] = ledger.audit(settings, seen.tasks)
    return results


def _asked(settings: Settings, models: tuple[str, ...]) -> clients.Asked:
    pools = {model: references.singles(model, settings.grpc_address) for model in models}
    with Client(f"http://{settings.host}:{settings.port}") as client:
        return clients.Asked(settings, pools, *references.tasks(models, client))


def _loaded(
    running: Running, asked: clients.Asked, models: tuple[str, ...], options: argparse.Namespace, results: dict[str, Any]
) -> tuple[Seen, dict[str, Any]]:
    seen, sampled = Seen(), threading.Event()
    sampler = Sampler(running, options.sample, sampled)
    threads = clients.start(asked, seen, options.clients, options.pause)
    killer = faults.Killer(running, options.every, models, seen.over, options.seed)
    load = _wait(seen, options.seconds)
    seen.over.set()
    killer.join()
    lasted, deadline = time.monotonic() - seen.started, time.monotonic() + LAST_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for thread in threads:
        if thread.is_alive():
            seen.lost.append({"client": thread.name, "code": "never answered", "after_s": LAST_SECONDS})
    sampled.set()
    sampler.join()
    requests = [kind for kind in seen.spans if kind not in TASKS]
    kills = [(fault.at - seen.started, fault.target) for fault in killer.faults]
    return seen, results | {
        "run": {
            "seconds": lasted,
            "clients": len(threads),
            "models": list(models),
            "kills": kills,
            "starts_of_the_service": running.starts,
            "mean_load": load,
            "remark": options.remark,
        },
        "answers": dict(seen.answers),
        "refused": dict(seen.refused),
        "lost": seen.lost,
        "wrong": seen.wrong,
        "waits": {kind: {"calls": len(spans)} | waits(_durations(spans)) for kind, spans in seen.spans.items()},
        "faults": faults.told(killer.faults, seen.spans, requests),
        "memory": sampler.rows(),
        "shared_memory": _shared(sampler.regions),
    }


def _durations(spans: Sequence[tuple[float, float]]) -> np.ndarray:
    return np.array([ended - began for began, ended in spans])


def _wait(seen: Seen, seconds: float) -> float:
    """Tells how it goes once a minute; returns the mean load average."""
    loads = [os.getloadavg()[0]]
    while (left := seen.started + seconds - time.monotonic()) > 0:
        time.sleep(min(LOOK_SECONDS, left))
        loads.append(os.getloadavg()[0])
        answers, refused = sum(seen.answers.values()), sum(seen.refused.values())
        say(f"{answers} answers, {refused} refused, {len(seen.tasks)} tasks sent, {len(seen.lost)} lost, {len(seen.wrong)} wrong")
    return float(np.mean(loads))


def _shared(regions: Sequence[tuple[float, int, float]]) -> dict[str, Any]:
    third = max(1, len(regions) // 3)
    first, last = (float(np.median([count for _, count, _ in part])) for part in (regions[:third], regions[-third:]))
    return {"first_regions": first, "last_regions": last, "most_mb": max(size for _, _, size in regions)}


def faultless(results: dict[str, Any]) -> bool:
    """Whether nothing was lost, wrong, done twice or left behind."""
    tasks = results["tasks"]
    return not (results["lost"] or results["wrong"] or tasks["lost"] or tasks["double"] or results["shared_memory"]["left"])


if __name__ == "__main__":
    sys.exit(main())
