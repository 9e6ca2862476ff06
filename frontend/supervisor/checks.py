"""What has to be true before the service starts; what is not is told in one sentence."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import psutil

from forcefields import catalogue as catalogues
from forcegate.errors import SetupError
from frontend.scheduler import profile as profiles
from frontend.security import listening
from frontend.settings import PREFIX, Settings

MEMORY_PER_MODEL_GB = 1.0
"""Resident memory of a loaded model with room for small batches (measured: 0.4 to 0.95 GB, 1.4 for UMA)."""
SHARED_MEMORY_MB = 128
DISK_GB = 0.2


def check_machine(settings: Settings) -> None:
    """Ports, memory, disk, shared memory, and settings that do not fit together.

    Raises:
        SetupError: one of them does not do.
    """
    _own_network(settings)
    listening.check(settings)
    _ports(settings)
    _profile(settings)
    # With the scheduler on, the models of the start are loaded as far as there is room.
    need = MEMORY_PER_MODEL_GB * (min(len(settings.models), 1) if settings.scheduler == "on" else len(settings.models)) + 0.5
    free = psutil.virtual_memory().available / 1e9
    if free < need:
        raise SetupError(
            f"{free:.1f} GB of memory are free, and {len(settings.models)} models need about {need:.1f} GB.",
            f"Load fewer models ({PREFIX}MODELS), or end other programs.",
        )
    settings.state.mkdir(parents=True, exist_ok=True)
    if (disk := shutil.disk_usage(settings.state).free / 1e9) < DISK_GB:
        raise SetupError(
            f"Only {disk:.2f} GB of disk are free at {settings.state}.", f"Make room, or set {PREFIX}STATE to another folder."
        )
    if (shared := shutil.disk_usage("/dev/shm").free / 1e6) < SHARED_MEMORY_MB:
        raise SetupError(
            f"Only {shared:.0f} MB of shared memory (/dev/shm) are free; models need {SHARED_MEMORY_MB} MB.",
            "In a container, start it with --shm-size=1g.",
        )
    if settings.device == "cuda" and not Path("/proc/driver/nvidia/version").exists():
        raise SetupError("The device is set to cuda, and this machine has no NVIDIA driver.", f"Set {PREFIX}DEVICE to cpu or auto.")


def _own_network(settings: Settings) -> None:
    """The embedded server has known holes; one that others may reach has to be a newer one."""
    local = settings.internal_host in ("localhost", "::1") or settings.internal_host.startswith("127.")
    if not local and not settings.tritonserver:
        raise SetupError(
            f"The embedded tritonserver may not listen on {settings.internal_host}: this version has known holes.",
            f"Set {PREFIX}TRITONSERVER to a newer one, such as that of NVIDIA's image from 26.07 on, or leave "
            f"{PREFIX}INTERNAL_HOST out.",
        )
    program = Path(settings.tritonserver) / "bin" / "tritonserver"
    if settings.tritonserver and not program.is_file():
        raise SetupError(f"There is no {program}.", f"Set {PREFIX}TRITONSERVER to the folder that has bin/tritonserver in it.")


def _profile(settings: Settings) -> None:
    """A mistake in the placement profile; whether it is made for the devices of this machine shows when they have been read."""
    if not (name := settings.scheduler_profile):
        return
    if settings.scheduler == "off":
        raise SetupError(
            f"The placement profile {name} needs the scheduler, which is off.", f"Set {PREFIX}SCHEDULER=on, or leave it out."
        )
    profiles.check(profiles.load(name), catalogues.load(), name)


def _ports(settings: Settings) -> None:
    wanted = {"port": (settings.host, settings.port)} if settings.gateways else {}
    wanted |= {
        "grpc_port": (settings.internal_host, settings.grpc_port),
        "metrics_port": (settings.internal_host, settings.metrics_port),
        "http_port": ("127.0.0.1", settings.http_port),
    }
    if settings.worker_metrics_port and settings.workers:
        wanted["worker_metrics_port"] = (settings.internal_host, settings.worker_metrics_port)
    seen: dict[int, str] = {}
    for name, (host, port) in wanted.items():
        if port in seen:
            raise SetupError(f"{name} and {seen[port]} are both {port}.", f"Set {PREFIX}{name.upper()} to another port.")
        seen[port] = name
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise SetupError(
                    f"Port {port} on {host} ({name}) cannot be used: {error.strerror}.",
                    f"End the program that has it, or set {PREFIX}{name.upper()} to another port.",
                ) from None
