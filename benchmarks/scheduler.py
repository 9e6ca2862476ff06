"""``python -m benchmarks.scheduler``: the scheduler that serves, over simulated GPUs, and how long a decision takes.

Writes ``scheduler.json`` and ``scheduler.png`` (residency, utilization and queue over time) into the folder that ``--out`` names.
The exit status is 1 where something that must hold does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scenario import GPU_MB, Outcome, Scenario, backlog_seconds, fluid_end, scenario
from benchmarks.simulation import Simulation
from frontend.scheduler.cluster import Cluster
from frontend.scheduler.device import Device
from frontend.scheduler.placement import Demand, decide
from frontend.scheduler.policy import PRIORITIES, Policy

LEAST_THROUGHPUT = 0.9
DECISION_MS = 1.0
NOISE = 1.1
"""Where nobody waits for others all priorities wait for loads alone, and their means differ by chance."""


def main(arguments: list[str] | None = None) -> int:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("var/scheduler"))
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=0.95, help="work that arrives, over what all devices can do")
    parser.add_argument("--slots", type=int, default=64, help="tasks that all workers together carry out at once")
    parser.add_argument("--instances", type=int, default=4, help="the most that a model may have")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    made = scenario(tasks=options.tasks, load=options.load, failures=max(2, round(12 * options.tasks / 10_000)), seed=options.seed)
    logging.getLogger("frontend.scheduler").setLevel(logging.CRITICAL)  # devices that fail are what is simulated
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcome = Simulation(made, Path(folder), Policy(instances=options.instances), options.slots).run()
    asked = {"load": options.load, "slots": options.slots, "instances": options.instances, "seed": options.seed}
    result = {"simulation": asked | summary(made, outcome) | {"cpu_seconds": round(time.process_time() - begun, 1)}}
    result["decisions_1000_gpus"] = decision_times()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scheduler.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(made, outcome, options.out / "scheduler.png")
    print(json.dumps(result, indent=1))
    failed = failures(result)
    print("\n".join(failed) or "everything that must hold holds")
    return int(bool(failed))


def summary(made: Scenario, outcome: Outcome) -> dict[str, Any]:
    """What a run says, in numbers."""
    waits = {
        name: [outcome.waits[task.id] for task in made.tasks if task.priority == level] for level, name in enumerate(PRIORITIES)
    }
    return {
        "devices": made.devices,
        "models": len(made.models),
        "tasks": len(made.tasks),
        "ended": len(outcome.ends),
        "device_failures": len(made.failures),
        "calls_that_lost_their_device": outcome.lost,
        "loads": outcome.loads,
        "evictions": outcome.evictions,
        "loads_per_task": round(outcome.loads / len(made.tasks), 3),
        "hours": round(outcome.end / 3600, 2),
        "throughput_over_fluid_bound": round(fluid_end(made) / outcome.end, 4),
        "longest_wait_seconds": round(max(outcome.waits.values())),
        "longest_wait_bound_seconds": round(starvation_bound(made)),
        "wait_seconds": {
            name: {"mean": round(float(np.mean(values)), 1), "p99": round(float(np.percentile(values, 99)), 1)}
            for name, values in waits.items()
            if values
        },
        "violations": len(outcome.violations),
        "first_violations": outcome.violations[:5],
    }


def in_order(means: Sequence[float]) -> bool:
    """Whether mean waits do not fall from one priority to the next lower one, but by noise."""
    return all(one <= NOISE * other for one, other in itertools.pairwise(means))


def starvation_bound(made: Scenario) -> float:
    """The longest that a task may wait, in s: until it has come to the highest priority, and then for what was there before it."""
    return (len(PRIORITIES) - 1) * Policy().ageing_seconds + backlog_seconds(made)


@dataclass
class _Timed:
    """Seconds of CPU of each decision, by what was decided."""

    seconds: dict[str, list[float]]

    def percentile(self, part: float) -> float:
        """ms over all decisions."""
        return float(np.percentile([value for values in self.seconds.values() for value in values], part) * 1e3)


def decision_times(devices: int = 1000, models: int = 1500, decisions: int = 20_000, seed: int = 0) -> dict[str, Any]:
    """How long one decision takes over many devices that fill up and stay full, in ms of CPU time."""
    random = np.random.default_rng(seed)
    cluster = Cluster(
        [
            Device(f"gpu-{n:04d}", n, "gpu", "simulated", GPU_MB, 0, float(random.uniform(0, 100)), float(random.uniform(30, 80)))
            for n in range(devices)
        ],
        Policy(),
    )
    timed = _Timed({})
    for now in range(decisions):
        model = f"model-{int(random.zipf(1.2)) % models}"
        work = int(min(random.lognormal(8, 1), 40_000))
        demand = Demand(model, int(random.uniform(1000, 30_000)), work, replica=bool(random.random() < 0.3))
        begun = time.thread_time()
        decision = decide(demand, cluster, float(now))
        timed.seconds.setdefault(decision.action, []).append(time.thread_time() - begun)
        for victim in decision.evictions:
            cluster.remove(victim, decision.at)
        if decision.action in ("load", "evict"):
            cluster.load(model, decision.at, demand.base_mb, float(now), ready=True)
        elif decision.action == "use" and random.random() < 0.3:
            cluster.start(model, decision.at, demand.work_mb, float(now))
    return {
        "devices": devices,
        "decisions": {action: len(values) for action, values in timed.seconds.items()},
        "p50_ms": round(timed.percentile(50), 4),
        "p99_ms": round(timed.percentile(99), 4),
        "p99_ms_by_action": {action: round(float(np.percentile(values, 99)) * 1e3, 4) for action, values in timed.seconds.items()},
    }


def failures(result: dict[str, Any]) -> list[str]:
    """What must hold and does not, in sentences."""
    run, times = result["simulation"], result["decisions_1000_gpus"]
    means = [values["mean"] for values in run["wait_seconds"].values()]
    checks = {
        "not every task has ended": run["ended"] == run["tasks"],
        "a device held more than it may, or a model was unloaded with work in flight": not run["violations"],
        f"throughput is below {LEAST_THROUGHPUT} of the bound": run["throughput_over_fluid_bound"] >= LEAST_THROUGHPUT,
        "a task waited for too long": run["longest_wait_seconds"] <= run["longest_wait_bound_seconds"],
        "a lower priority waited less than a higher one": in_order(means),
        f"a decision takes more than {DECISION_MS} ms at p99": times["p99_ms"] < DECISION_MS,
    }
    return [what for what, holds in checks.items() if not holds]


def plot(made: Scenario, outcome: Outcome, path: Path) -> None:
    """Which model was where, how busy the devices were, and how many tasks waited, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (where, memory, busy) = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, height_ratios=(3, 1, 1))
    colours = pyplot.get_cmap("nipy_spectral")
    number = {model.name: n for n, model in enumerate(made.models)}
    lanes: dict[int, list[float]] = {}
    for at, model, begun, ended in sorted(outcome.stays, key=lambda stay: stay[2]):
        ends = lanes.setdefault(at, [0.0] * Policy().models_per_device)
        lane = next((n for n, end in enumerate(ends) if end <= begun + 1e-6), 0)
        ends[lane] = ended
        height = 0.8 / len(ends)
        bar = where.barh(at - 0.4 + height * (lane + 0.5), (ended - begun) / 3600, height, begun / 3600)
        bar[0].set_color(colours(number[model] / len(made.models)))
    for failure in made.failures:
        where.barh(failure.device, failure.seconds / 3600, 0.9, failure.at / 3600, color="none", edgecolor="black", hatch="///")
    where.set(ylabel="GPU", title=f"{len(made.models)} models (colours) on {made.devices} GPUs; hatched: lost")
    hours = [sample[0] / 3600 for sample in outcome.samples]
    held = [100 * sum(sample[2]) / (GPU_MB * made.devices) for sample in outcome.samples]
    memory.plot(hours, held, linewidth=0.8)
    memory.set(ylabel="memory, %", ylim=(0, 100))
    share = np.array([100 * np.mean(sample[1]) for sample in outcome.samples])
    window = np.ones(15) / 15
    busy.plot(hours, np.convolve(share, window, "same"), linewidth=0.8, label="busy GPUs, %")
    waiting = busy.twinx()
    waiting.plot(hours, [sample[3] for sample in outcome.samples], linewidth=0.8, color="tab:orange")
    waiting.set_ylabel("tasks waiting", color="tab:orange")
    busy.set(xlabel="hours", ylabel="busy GPUs, %", ylim=(0, 105))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
