"""A real service under test: ``forcegate serve`` on free ports, with a state folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.service import free_ports as free_ports
from forcefields.catalogue import HERE, load
from frontend.supervisor.process import die_with

ROOT = Path(__file__).parents[1]
REMEMBERED = "FORCEGATE_TEST_REMEMBERED"
"""Names the folder in which the services of one run of all tests leave each other what their models measured."""


@dataclass
class RunningService:
    """Where a service answers, and its processes."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    metrics_port: int
    http_port: int
    state: Path

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        """Address of Triton's gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Triton's metrics."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self.process.pid

    def descendants(self) -> list[psutil.Process]:
        """Every process that the supervisor started, and theirs."""
        return psutil.Process(self.pid).children(recursive=True)

    def tritonserver(self) -> psutil.Process:
        """The server's process."""
        return next(p for p in self.descendants() if p.name() == "tritonserver")

    def gateway(self) -> psutil.Process:
        """The gateway's process."""
        return next(p for p in self.descendants() if "frontend.gateway" in p.cmdline())

    def stub(self, model: str) -> psutil.Process:
        """The process of one model."""
        marker = f"/{model}/1/model.py"
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):  # ended since they were listed
                if process.status() != psutil.STATUS_ZOMBIE and any(a.endswith(marker) for a in process.cmdline()):
                    return process
        raise StopIteration(f"{model} has no process")

    def shared_memory(self) -> list[str]:
        """Names of its shared-memory regions that exist now."""
        return [path.name for path in Path("/dev/shm").glob(f"forcegate_{self.grpc_port}_*")]

    def log(self, name: str) -> str:
        """The text of one log: serve, supervisor, triton or gateway."""
        return (self.state / "logs" / f"{name}.log").read_text(errors="replace")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric of Triton's endpoint over all series that have these labels; 0 where there is none."""
        # Triton counts a request a moment after its answer has been sent: read until two readings agree.
        found = self.metric_now(name, **labels)
        for _ in range(20):
            time.sleep(0.1)
            before, found = found, self.metric_now(name, **labels)
            if found == before:
                break
        return found

    def metric_now(self, name: str, **labels: str) -> float:
        """The same as it stands in this moment."""
        total = 0.0
        for line in httpx.get(self.metrics_url, timeout=10).text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{value_}"' in series for key, value_ in labels.items()):
                total += float(value)
        return total


def environment(state: Path, models: Sequence[str], ports: Sequence[int], **settings: object) -> dict[str, str]:
    """The variables that such a service is started with."""
    names = ("PORT", "GRPC_PORT", "METRICS_PORT", "HTTP_PORT")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")}
    variables |= {f"FORCEGATE_{name}": str(port) for name, port in zip(names, ports, strict=True)}
    variables |= {
        "FORCEGATE_STATE": str(state),
        "FORCEGATE_MODELS": ",".join(models),
        "FORCEGATE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # Tests count what a model was asked, and halt one for as long as they like; those of the heartbeat switch it on.
        "FORCEGATE_HEARTBEAT_SECONDS": "0",
    }
    return variables | {f"FORCEGATE_{key.upper()}": str(value) for key, value in settings.items()}


@contextmanager
def serving(
    state: Path, models: Sequence[str], timeout: float = 300, until: str = "serving after", **settings: object
) -> Iterator[RunningService]:
    """Runs ``forcegate serve`` until the block ends; what is still alive then is ended by its id.

    The block begins when the command has printed ``until``.
    """
    ports = free_ports(4)
    (state / "logs").mkdir(parents=True, exist_ok=True)
    _take_over(state)
    parent = os.getpid()
    with (state / "logs" / "serve.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forcegate.cli", "serve"],
            env=environment(state, models, ports, **settings),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),  # a test run that is killed leaves no service behind
        )
    service = RunningService(process, *ports, state=state)
    try:
        _wait_for(until, service, timeout)
        _leave(state)
        yield service
    finally:
        stop(service)


def _wait_for(line: str, service: RunningService, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while line not in service.log("serve"):
        if service.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service did not start:\n{service.log('serve')}")
        time.sleep(0.1)


def _measured(folder: Path) -> Iterator[Path]:
    """Passed gates and calibrations below a folder, of this repository's models whose bytes are pinned.

    They are of one combination of checkpoint, code, packages and threads, which is in them: a model for which it is another one
    measures anew, and one for which it is the same evaluates its golden structures all the same. Only the first service of a run
    runs the whole gate of a model. Models that tests make or spoil are not among them.
    """
    pinned = {name for name, variant in load([HERE]).variants.items() if variant.checkpoint.source in ("family", "package")}
    for kind in ("gates", "calibrations"):
        yield from (path.relative_to(folder) for path in (folder / kind).glob("*/*.json") if path.stem in pinned)


def _take_over(state: Path) -> None:
    if folder := os.environ.get(REMEMBERED):
        _copy(Path(folder), state)


def _leave(state: Path) -> None:
    if folder := os.environ.get(REMEMBERED):
        _copy(state, Path(folder))


def _copy(source: Path, target: Path) -> None:
    """Files that the target does not have; each is there as a whole or not at all, since two processes run tests."""
    for name in _measured(source):
        path = target / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}")
            shutil.copyfile(source / name, part)
            part.replace(path)


def stop(service: RunningService, patience: float = 60) -> int:
    """SIGTERM, as a process manager sends it; returns the exit status."""
    if service.process.poll() is None:
        children = service.descendants()
        service.process.send_signal(signal.SIGTERM)
        try:
            service.process.wait(patience)
        except subprocess.TimeoutExpired:
            for child in [*children, psutil.Process(service.pid)]:
                child.kill()
            service.process.wait()
    return service.process.returncode


def in_flight(url: str) -> float:
    """Structures that a gateway holds now."""
    found = re.search(r"^forcegate_structures_in_flight ([0-9.]+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def wait_until(condition: object, what: str, seconds: float = 20) -> None:
    """Waits for a condition; what ``what`` says is the failure of one that does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
