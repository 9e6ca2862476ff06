"""A real Prometheus scrapes the three parts, and evaluates every query of rules and dashboards."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import psutil
import pytest
import yaml

from docs.prometheus import started
from frontend.admission.queue import WINDOW_STRUCTURES
from tests.deploy.conftest import Parts, begun
from tests.deploy.test_parts import ARGON
from tests.deploy.test_rules import FOLDER, expressions, metrics, rules
from tests.deploy.tools import tool
from tests.service import wait_until

ELSEWHERE = ("DCGM_", "probe_", "nv_gpu_")
"""Begin the names of metrics of exporters that do not run here."""
WAITING = 64
"""Structures that wait behind those that Triton holds. A request has 32 of them: 2 of 18 requests wait, and p95 is theirs."""


@pytest.fixture(scope="module")
def prometheus(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus with the checked-in jobs and rules, every address and interval in them replaced by ours."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    ports = {"gateway": "PORT", "triton": "METRICS_PORT", "worker": "WORKER_METRICS_PORT"}
    jobs = [job for job in config["scrape_configs"] if job["job_name"] in ports]
    assert len(jobs) == len(ports)
    for job in jobs:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [parts.url(ports[job["job_name"]]).removeprefix("http://")]}]
    config |= {"scrape_configs": jobs, "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}}
    for name in config["rule_files"]:
        found = yaml.safe_load((FOLDER / name).read_text())
        for rule in (rule for group in found["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = "2s"  # the expressions stay as they are
        (folder / name).write_text(yaml.safe_dump(found))
    with started(tool("prometheus"), config, folder) as url:
        yield url


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """The series of an expression now."""
    response = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=10, trust_env=False)
    if response.status_code == 503:  # it reads its log of before and is not ready yet: words, not JSON
        response.raise_for_status()
    answer = response.json()
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]  # type: ignore[no-any-return]


def test_every_metric_of_rules_and_dashboards_is_exported_and_every_query_runs(parts: Parts, prometheus: str) -> None:
    wanted = {name for expression in expressions() for name in metrics(expression) if not name.startswith(ELSEWHERE)}
    recorded = {
        name
        for name, expression in rules("record").items()
        if not any(metric.startswith(ELSEWHERE) for metric in metrics(expression)) and "errors" not in name
    }

    def missing() -> set[str]:
        names = httpx.get(f"{prometheus}/api/v1/label/__name__/values", timeout=10, trust_env=False).json()["data"]
        return wanted - set(names) | {name for name in recorded if not query(prometheus, name)}

    # Each part is scraped, and each rule evaluated, at moments of its own: one that is there says nothing of another.
    deadline = time.monotonic() + 30
    while lacking := missing() or not query(prometheus, "forcegate:batch:mean5m > 0"):
        assert time.monotonic() < deadline, f"not exported, not recorded, or without a batch: {lacking}"
        assert httpx.post(f"{parts.url()}/api/v1/single_point", json=ARGON, timeout=30).status_code == 200
    for expression in expressions():
        query(prometheus, expression)
    firing = query(prometheus, 'ALERTS{alertstate="firing"}')
    assert firing == [], "a service that is well alarms nobody"


def faults(url: str) -> set[str]:
    """The alerts that fire now."""
    return {series["metric"]["alertname"] for series in query(url, 'ALERTS{alertstate="firing"}')}


def _asked(parts: Parts, structures: int = 1) -> int:
    """The status of a single point or, for several structures, of a batch whose every structure has a result."""
    if structures == 1:
        return httpx.post(f"{parts.url()}/api/v1/single_point", json=ARGON, timeout=90).status_code
    body = ARGON | {"atoms": [ARGON["atoms"]] * structures}
    answer = httpx.post(f"{parts.url()}/api/v1/batch", json=body, headers={"X-Forcegate-Timeout": "85"}, timeout=90)
    assert not answer.is_success or answer.json()["succeeded"] == structures, answer.text[:1000]
    return answer.status_code


@contextmanager
def locked(parts: Parts) -> Iterator[None]:
    """The database of the tasks, in which nobody else can write meanwhile."""
    with closing(sqlite3.connect(parts.state / "tasks.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def hung(parts: Parts) -> Iterator[None]:
    """Triton, which answers nobody meanwhile, as when its machine swaps."""
    server = next(
        process
        for process in psutil.Process(parts.processes["triton"].pid).children(recursive=True)
        if process.name() == "tritonserver"
    )
    server.suspend()
    try:
        yield
    finally:
        server.resume()


BATCHES = 'forcegate_request_seconds_count{route="/api/v1/batch"} > 0'
STOOD = 'forcegate_queue_structures{class="bulk"} == %d and forcegate_queue_structures{class="bulk"} offset 31s == %d'
"""A queue in which so many structures wait, and waited 31 s ago. QueueWait and SlowRequests begin at 30."""


def test_alerts_fire_when_their_fault_is_there_and_end_with_it(parts: Parts, prometheus: str) -> None:
    """ServiceDown and ModelUnavailable by a Triton that hangs, QueueWait and SlowRequests by a batch that waits for it meanwhile,
    ErrorRate by a model that is gone while it is asked for, WorkerStuck by a database that a worker cannot write to for 2 min, so
    that it gives no sign, NoWorker by a worker that was stopped. All but the last are within those 2 min."""
    model = f"{parts.url()}/api/v1/models/lj-argon"

    def told(*names: str) -> None:
        wait_until(lambda: faults(prometheus) >= set(names), f"nobody is told: {names}", 60)

    def over(*names: str, structures: int = 1) -> None:
        deadline = time.monotonic() + 120
        while still := faults(prometheus) & set(names):
            assert time.monotonic() < deadline, still
            # Five minutes are looked at: what goes well now has to outnumber what went wrong by twenty.
            _asked(parts, structures)

    # A counter whose first value is 1 has increased for nobody: the slow batch must not be the first.
    assert _asked(parts, 2) == 200
    wait_until(lambda: query(prometheus, BATCHES), "the first batch is not counted", 30)
    wait_until(lambda: not faults(prometheus), "something fires before there is a fault", 60)
    with locked(parts):
        with ThreadPoolExecutor(1) as caller:
            with hung(parts):
                # Triton is given what fills its window, and the rest stands in the gateway.
                batch = caller.submit(_asked, parts, WINDOW_STRUCTURES + WAITING)
                told("ServiceDown", "ModelUnavailable")
                wait_until(lambda: query(prometheus, STOOD % (WAITING, WAITING)), "no queue stands", 60)
            told("QueueWait", "SlowRequests")
            assert batch.result(30) == 200
        over("ServiceDown", "ModelUnavailable")
        over("QueueWait", "SlowRequests", structures=2)
        assert httpx.post(f"{model}/unload", timeout=30).is_success
        wait_until(lambda: _asked(parts) == 503 and "ErrorRate" in faults(prometheus), "nobody is told of 503", 60)
        assert httpx.post(f"{model}/load", timeout=60).is_success
        over("ErrorRate", "ModelUnavailable")
        wait_until(lambda: "WorkerStuck" in faults(prometheus), "nobody is told of a worker that gives no sign", 150)
    over("WorkerStuck")
    assert parts.stop("worker") == 0
    assert httpx.post(f"{parts.url()}/api/v1/tasks/optimization", json=ARGON, timeout=30).status_code == 202
    told("NoWorker", "ServiceDown")
    begun(parts, "worker")
    over(*rules("alert"))
