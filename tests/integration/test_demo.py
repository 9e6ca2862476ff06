"""``forcegate demo`` starts a service where there is none and leaves nothing behind; one that is starting it waits for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.service import ROOT, environment, free_ports, serving

MODEL = "chgnet-0.3.0"
"""The quicker of the demo's two models: both take the same way."""


@dataclass
class FirstRun:
    """A demo on an empty state folder: what it printed, what it left, and the report of the model that it started."""

    state: Path
    ports: list[int]
    done: subprocess.CompletedProcess[str]
    left: list[str]
    report: dict[str, Any]


def demo(variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forcegate.cli", "demo", "-m", MODEL, *arguments],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def left_behind(state: Path, grpc_port: int) -> list[str]:
    """Processes whose variables name the state folder, and regions of shared memory."""
    found = [path.name for path in Path("/dev/shm").glob(f"forcegate_{grpc_port}_*")]
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(state) in process.environ().values():
                found.append(str(process))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    state, ports = tmp_path_factory.mktemp("demo"), free_ports(4)
    done = demo(environment(state, [MODEL], ports))
    return FirstRun(state, ports, done, left_behind(state, ports[1]), json.loads((state / "reports" / f"{MODEL}.json").read_text()))


def test_the_demo_starts_a_service_and_leaves_nothing_behind(first: FirstRun) -> None:
    assert first.done.returncode == 0, first.done.stdout + first.done.stderr
    for words in ("starting tritonserver", "Rock salt", "Perovskite", "Copper", "stopped, nothing is left behind"):
        assert words in first.done.stdout
    assert first.left == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{first.ports[0]}/live")


def test_a_second_start_is_quick_and_a_demo_meanwhile_waits_for_it(first: FirstRun) -> None:
    """The service got its ports as variables that the demo does not have: it finds them in the state folder."""
    assert first.report["gate"]["mode"] == "full"
    with serving(first.state, [MODEL], until="starting tritonserver") as service:
        assert "serving after" not in service.log("serve")
        done = demo(environment(first.state, [MODEL], free_ports(4)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "starting already" in done.stderr
        assert "starting tritonserver" not in done.stdout
        assert done.stdout.count("energy per atom") >= 3
        assert service.process.poll() is None
        assert httpx.get(f"{service.url}/ready").status_code == 200, "it was started by somebody else, who stops it"
        assert "(golden now)" in service.log("serve")
        said = service.log("serve")
    assert json.loads((first.state / "reports" / f"{MODEL}.json").read_text())["gate"]["mode"] == "golden"
    seconds = re.search(r"serving after (\S+) s", said)
    assert "installing" not in said
    assert seconds is not None
    # About 6 s on two busy cores; the full gate of this model takes too little of that to compare two starts by.
    assert float(seconds[1]) < 60


def test_a_demo_that_is_killed_takes_its_service_with_it(first: FirstRun) -> None:
    ports = free_ports(4)
    process = subprocess.Popen(
        [sys.executable, "-m", "forcegate.cli", "demo", "-m", MODEL],
        env=environment(first.state, [MODEL], ports),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any("starting tritonserver" in line for line in process.stdout)
    assert left_behind(first.state, ports[1])
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    deadline = time.monotonic() + 60
    while (left := left_behind(first.state, ports[1])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def test_no_service_is_started_for_an_address_elsewhere(first: FirstRun) -> None:
    done = demo(environment(first.state, [MODEL], free_ports(4)), "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "No service is ready at http://127.0.0.1:9." in done.stderr
    assert "starting tritonserver" not in done.stdout
