"""The service that is measured: the one that runs, or one of our own on free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks.processes import cpu_seconds_of
from forcegate.errors import SetupError
from frontend import settings as all_settings
from frontend.settings import PREFIX, Settings

START_SECONDS = 1800.0
SETTLE_SECONDS = 30.0
"""Time that a first start may take, installing included."""

Say = Callable[[str], None]


def say(line: str) -> None:
    """One line of progress on the terminal."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def end_on_sigterm() -> None:
    """SIGTERM ends this program as Ctrl-C does: what it started is stopped first."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))


def serves(settings: Settings, models: Sequence[str]) -> bool:
    """Whether a service on the ports of ``settings`` answers for all these models."""
    client = InferenceServerClient(settings.grpc_address)
    try:
        return all(client.is_model_ready(name, client_timeout=2.0) for name in models)
    except InferenceServerException:
        return False
    finally:
        client.close()


@contextmanager
def running_or_own(models: Sequence[str], state: Path) -> Iterator[Settings]:
    """The service on the configured ports where it serves ``models``; else one of our own until the block ends."""
    configured = all_settings.load()
    if serves(configured, models):
        say(f"using the service that runs at {configured.grpc_address}")
        yield configured
        return
    with own(models, state, configured) as settings:
        yield settings


@contextmanager
def own(models: Sequence[str], state: Path, configured: Settings, **overrides: object) -> Iterator[Settings]:
    """``forcegate serve`` on free ports, stopped at the end. It installs what is missing, as it does for a user.

    Args:
        state: folder for its logs and reports.
        overrides: settings of it that differ from ``configured``.

    Raises:
        SetupError: it did not start; the message holds the end of what it said.
    """
    names = ("port", "grpc_port", "metrics_port", "http_port")
    chosen = dict(zip(names, free_ports(len(names)), strict=True)) | {"models": tuple(models), "state": state, "host": "127.0.0.1"}
    # No worker: what is measured are requests, and tasks have a section that starts its own.
    settings = configured.model_copy(update=chosen | {"workers": 0} | overrides)
    state.mkdir(parents=True, exist_ok=True)
    log = state / "serve.log"
    say(f"starting a service of our own for {', '.join(models)} (its words are in {log})")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forcegate.cli", "serve"],
            env=environment(settings),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_serving(settings, process, log)
        _settle(psutil.Process(process.pid))
        yield settings
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(settings.drain_seconds * 2 + 30)


def environment(settings: Settings) -> dict[str, str]:
    """The variables that a service with these settings is started with."""
    return {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)} | settings.as_environment()


def wait_until_serving(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when all its models answer.

    Raises:
        SetupError: it ended, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not (answers(settings) and serves(settings, settings.models)):
        if process.poll() is not None or time.monotonic() > deadline:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise SetupError("The service to measure did not start.", f"The end of {log}:\n{end}")
        time.sleep(0.2)


def _settle(supervisor: psutil.Process) -> None:
    """Waits until the processes are at rest: a gateway that is ready still opens the database of the tasks, which takes seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    before = _cpu_seconds(supervisor)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        after = _cpu_seconds(supervisor)
        if after - before < 0.05:  # a tenth of a core
            return
        before = after


def _cpu_seconds(supervisor: psutil.Process) -> float:
    return sum(cpu_seconds_of(child.pid) for child in supervisor.children(recursive=True))


def answers(settings: Settings) -> bool:
    """Whether the gateway of ``settings`` says that it is ready."""
    try:
        return httpx.get(f"http://{settings.host}:{settings.port}/ready", timeout=2.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
