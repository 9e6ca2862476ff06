"""What a machine needs before the service is started on it in containers, and how to mend what is missing."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from forcefields.catalogue import Variant
from frontend.supervisor.checks import MEMORY_PER_MODEL_GB

DRIVER = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {12: 525, 13: 580}
"""Least NVIDIA driver of a CUDA version, by its minor-version compatibility (CUDA compatibility guide)."""
DISK_GB = {"test": 15, "cpu": 30, "gpu1": 60, "gpu8": 150}
"""For images, environments and weights."""
SHARED_MB = 128

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Finding:
    """What one check found; ``mend`` says what to do where it is not well."""

    check: str
    result: str
    told: str
    mend: str = ""


@dataclass(frozen=True)
class Machine:
    """What is looked at. Programs are run by ``run``: their output, or None where there is none or it failed."""

    run: Callable[[Sequence[str]], str | None]
    driver: Path = DRIVER


def run(command: Sequence[str]) -> str | None:
    """A program's output; None where it is not installed, fails or takes more than ten seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def examine(
    profile: str,
    port: int,
    models: Sequence[Variant],
    repository: Path,
    accepted: Sequence[str],
    machine: Machine,
    cuda: int = 13,
) -> Iterator[Finding]:
    """Every check, in the order in which they matter.

    Args:
        models: that are to be loaded at the start.
        accepted: licences that somebody has accepted here.
    """
    yield engine(machine)
    yield compose(machine)
    if profile.startswith("gpu"):
        yield driver(machine, cuda)
        yield devices(machine, 8 if profile == "gpu8" else 1)
        yield toolkit(machine)
    yield free_port(port)
    yield disk(profile)
    yield memory(len(models))
    yield shared_memory()
    yield checkpoints(models, repository)
    yield licences(models, accepted)
    yield clock(machine)


def engine(machine: Machine) -> Finding:
    """Whether a container engine runs."""
    told = machine.run(["docker", "version", "--format", "{{.Server.Version}}"])
    if told and told.strip():
        return Finding("container engine", OK, f"Docker {told.strip()}")
    return Finding(
        "container engine", FAILED, "docker does not answer",
        "Install Docker Engine 26 or later, start it (systemctl start docker), and put this user into the group docker.",
    )  # fmt: skip


def compose(machine: Machine) -> Finding:
    """Whether docker has its compose plugin."""
    told = (machine.run(["docker", "compose", "version", "--short"]) or "").strip()
    if (found := re.match(r"v?(\d+)\.(\d+)", told)) and (int(found[1]), int(found[2])) >= (2, 24):
        return Finding("compose", OK, told)
    return Finding("compose", FAILED, told or "no compose plugin", "Install docker-compose-plugin 2.24 or later.")


def driver(machine: Machine, cuda: int) -> Finding:
    """Whether the NVIDIA driver is new enough for the CUDA of the images."""
    try:
        found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+)\.([\d.]+)", machine.driver.read_text())
    except OSError:
        found = None
    if found is None:
        return Finding("driver", FAILED, "no NVIDIA driver is loaded", "Install the vendor's driver, or use --profile cpu.")
    version = f"{found[1]}.{found[2]}"
    if int(found[1]) < LEAST_DRIVER[cuda]:
        mend = f"CUDA {cuda} needs {LEAST_DRIVER[cuda]} or later: update it, or set CUDA=12 and an older TRITON_IMAGE."
        return Finding("driver", FAILED, version, mend)
    return Finding("driver", OK, f"{version}, enough for CUDA {cuda}")


def devices(machine: Machine, count: int) -> Finding:
    """Whether there are as many GPUs as the profile wants."""
    lines = (machine.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or "").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    told = ", ".join(names) or "none"
    if len(names) >= count:
        return Finding("GPUs", OK, told)
    return Finding("GPUs", FAILED, f"{len(names)} of {count}: {told}", "Choose the profile that fits: cpu, gpu1.")


def toolkit(machine: Machine) -> Finding:
    """Whether docker can hand GPUs to containers."""
    told = machine.run(["docker", "info", "--format", "{{json .Runtimes}}"]) or ""
    if "nvidia" in told or machine.run(["nvidia-ctk", "--version"]):
        return Finding("container toolkit", OK, "found")
    mend = "Install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker; systemctl restart docker."
    return Finding("container toolkit", FAILED, "docker knows no runtime of NVIDIA", mend)


def free_port(port: int) -> Finding:
    """Whether the gateway's port can be published."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            return Finding("port", FAILED, f"{port}: {error.strerror}", "End what has it, or set FORCEGATE_PUBLISH.")
    return Finding("port", OK, f"{port} is free")


def disk(profile: str) -> Finding:
    """Whether images and weights fit."""
    folder = Path("/var/lib/docker") if Path("/var/lib/docker").is_dir() else Path("/")
    free, need = shutil.disk_usage(folder).free / 1e9, DISK_GB[profile]
    told = f"{free:.0f} GB free at {folder}"
    return (
        Finding("disk", OK, told) if free > need else Finding("disk", FAILED, told, f"{need} GB are needed: docker system prune.")
    )


def memory(models: int) -> Finding:
    """Whether the models fit."""
    free, need = psutil.virtual_memory().available / 1e9, MEMORY_PER_MODEL_GB * models + 2
    told = f"{free:.0f} GB free, about {need:.0f} GB needed"
    return Finding("memory", OK, told) if free > need else Finding("memory", FAILED, told, "Fewer FORCEGATE_MODELS.")


def shared_memory() -> Finding:
    """Whether /dev/shm has room; containers get their own (shm_size), a service without them uses this one."""
    free = shutil.disk_usage("/dev/shm").free / 1e6
    if free > SHARED_MB:
        return Finding("/dev/shm", OK, f"{free:.0f} MB free")
    return Finding("/dev/shm", WARNING, f"{free:.0f} MB free", "mount -o remount,size=2G /dev/shm; in a container --shm-size=1g.")


def checkpoints(models: Sequence[Variant], repository: Path) -> Finding:
    """Whether the weights are there or will be; the export job brings them into the volume."""
    fetched = [
        model.name
        for model in models
        if model.checkpoint.source == "download" and not (repository / model.name / "1" / model.checkpoint.file).exists()
    ]
    if not fetched:
        return Finding("checkpoints", OK, "in place, or in packages")
    return Finding("checkpoints", WARNING, f"to be fetched: {', '.join(fetched)}", "forcegate deploy export MODEL fetches them.")


def licences(models: Sequence[Variant], accepted: Sequence[str]) -> Finding:
    """Whether the licences that have to be accepted have been."""
    asked = [model.name for model in models if model.consent and model.name not in accepted]
    if not asked:
        return Finding("licences", OK, "nothing to accept")
    mend = "Read it (docs/models.md), then: forcegate deploy export MODEL --accept-licence, with HF_TOKEN for gated weights."
    return Finding("licences", WARNING, f"to be accepted: {', '.join(asked)}", mend)


def clock(machine: Machine) -> Finding:
    """Whether the clock is kept right: keys, leases of tasks and certificates depend on it."""
    told = machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if told is not None and told.strip() == "yes":
        return Finding("clock", OK, "synchronised")
    year = time.gmtime().tm_year
    if year < 2026:
        return Finding("clock", FAILED, f"the year is {year}", "Set the clock, and install chrony.")
    return Finding("clock", WARNING, "nothing says that it is synchronised", "Install chrony or systemd-timesyncd.")


def containers(text: str) -> list[dict[str, str]]:
    """What ``docker compose ps --format json`` tells: one object a line, or one list, by its version."""
    text = text.strip()
    found = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{"service": c["Service"], "state": c["State"], "health": c.get("Health") or "-"} for c in found]
