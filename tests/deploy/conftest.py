"""Parts of the service as containers run them: installed in a clean folder by docker/install, begun by docker/entrypoint."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest

from frontend.supervisor.process import die_with
from tests.service import ROOT, free_ports, wait_until

COPIED = ("docker", "exporters", "forcefields", "forcegate", "frontend", "model_repository", "requirements", "triton_configs")
FILES = ("Makefile", "README.md", "LICENSE", "pyproject.toml")
"""What the Dockerfiles copy; tests/deploy/test_images.py compares."""
SEPARATE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Begins a process whose ids are no others', as in a container; needs root."""


@dataclass
class Parts:
    """Triton, gateway and worker, begun one by one, with nothing in common but ports and the state folder."""

    root: Path
    state: Path
    variables: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def url(self, port: str = "PORT") -> str:
        """Where one of them answers HTTP."""
        return f"http://127.0.0.1:{self.variables[f'FORCEGATE_{port}']}"

    def start(self, part: str, *arguments: str) -> None:
        """Begins one of them."""
        own = SEPARATE if part == "triton" and os.geteuid() == 0 else ()
        parent = os.getpid()
        with (self.state / f"{part}.log").open("ab") as output:
            self.processes[part] = subprocess.Popen(
                [*own, str(self.root / "docker" / "entrypoint"), part, *arguments],
                env=self.variables,
                cwd="/",
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )

    def stop(self, part: str, number: int = signal.SIGTERM) -> int:
        """Ends one of them; its exit status."""
        process = self.processes.pop(part)
        if process.poll() is None:
            # Behind unshare is the first process of a container, which gets the signal.
            inner = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(inner[0]) if part == "triton" and os.geteuid() == 0 and inner else process.pid, number)
        return process.wait(60)

    def log(self, part: str) -> str:
        """What it has written."""
        return (self.state / f"{part}.log").read_text(errors="replace")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Another command of the entry point, to its end."""
        command = [str(self.root / "docker" / "entrypoint"), *arguments]
        return subprocess.run(command, env=self.variables | variables, cwd="/", capture_output=True, text=True, timeout=60)


def begun(parts: Parts, *names: str) -> None:
    """Begins the named parts and waits until each does its work."""
    for name in names:
        parts.start(name)
    for name in names:
        wait_until(partial(_works_or_ended, parts, name), f"{name} does not begin: {parts.log(name)}", 90)
        assert parts.processes[name].poll() is None, parts.log(name)


def _works_or_ended(parts: Parts, name: str) -> bool:
    if parts.processes[name].poll() is not None:
        return True
    if name == "gateway":
        return _answers(parts.url() + "/ready")
    return {"triton": "serving after", "worker": "worker is ready"}[name] in parts.log(name)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the images hold, with Lennard-Jones for its family and the embedded server in place of the vendor's."""
    root = tmp_path_factory.mktemp("image") / "opt" / "forcegate"
    root.mkdir(parents=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *COPIED, *FILES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    # Nobody here starts often enough for what compiling all of torch costs, and these processes may write beside the code.
    own = {"PYTHON": sys._base_executable, "UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "0"}  # type: ignore[attr-defined]
    for arguments in (("service",), ("families", "triton", "lennard_jones")):
        command = [str(root / "docker" / "install"), *arguments]
        done = subprocess.run(command, env=_plain() | own, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return root


def _plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("FORCEGATE_", "VIRTUAL_ENV", "PYTHON"))}


@contextmanager
def parts_of(root: Path, state: Path, **settings: object) -> Iterator[Parts]:
    """Variables for parts on free ports; those that run are ended with the block."""
    names = ("PORT", "GRPC_PORT", "METRICS_PORT", "HTTP_PORT", "WORKER_METRICS_PORT")
    given: dict[str, object] = dict(zip(names, free_ports(len(names)), strict=True))
    given |= {
        "STATE": state,
        "MODELS": "lj-argon",
        "THREADS": 1,
        "LOG_TO": "stderr",
        "DRAIN_SECONDS": 2,
        "TRITON_HOST": "127.0.0.1",
    } | settings
    variables = _plain() | {"OMP_NUM_THREADS": "1"} | {f"FORCEGATE_{name}": str(value) for name, value in given.items()}
    parts = Parts(root, state, variables)
    with ExitStack() as stack:
        for name in ("triton", "gateway", "worker"):
            stack.callback(lambda name=name: name in parts.processes and parts.stop(name))
        yield parts


@pytest.fixture(scope="session")
def parts(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """All three, running. Triton may be halted for half a minute, and the heartbeat ends no model for it."""
    with parts_of(installed, tmp_path_factory.mktemp("state"), HEARTBEAT_DEAD_SECONDS=120) as running:
        begun(running, "triton", "gateway", "worker")
        yield running
