"""Gateways of a test's own, in front of the Triton of a running service."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.service import ROOT, RunningService, environment, free_ports


@dataclass
class OwnGateway:
    """One gateway process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def log_text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")


@contextmanager
def gateway_beside(service: RunningService, folder: Path, **settings: object) -> Iterator[OwnGateway]:
    """Runs ``python -m frontend.gateway`` with settings of its own until the block ends."""
    (port,) = free_ports(1)
    grpc_port = service.grpc.rpartition(":")[2]
    variables = environment(service.state, ("lj-argon",), (port, int(grpc_port), *free_ports(2)), **settings)
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "frontend.gateway"], env=variables, cwd=ROOT, stderr=output)
    gateway = OwnGateway(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait(gateway)
        yield gateway
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def _wait(gateway: OwnGateway) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{gateway.url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert gateway.process.poll() is None, gateway.log_text()
        assert time.monotonic() < deadline, gateway.log_text()
        time.sleep(0.1)
