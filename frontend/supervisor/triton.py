"""The embedded tritonserver: its command line, its model processes, and what it leaves behind when it is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from forcefields.runtime.settings import ModelSettings
from frontend.settings import Settings
from frontend.triton import restriction

STUB = "triton_python_backend_stub"
SHARED_MEMORY = Path("/dev/shm")

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc otherwise gives the pages of every forward pass back and takes them again: up to three times the run time. The price is
that a model's resident memory stays at its peak."""
WAITING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP's threads otherwise wait for each other in a loop for some ms, which takes the core from whoever computes: two models that
are busy at once, with two threads each on two cores, did an eighth over REST. Who sets the variable has it otherwise."""


def command(settings: Settings, foreign: Path) -> list[str]:
    """The command line of tritonserver; ``foreign`` is the repository of families from elsewhere."""
    program, backends = _server(settings)
    repositories = [settings.repository] + ([foreign] if foreign.is_dir() else [])
    return [
        str(program.resolve()),
        *(f"--model-repository={path.resolve()}" for path in repositories),
        f"--backend-directory={backends.resolve()}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=false",
        # The embedded server is known to have holes in its network interfaces: checks.py keeps it on loopback.
        f"--grpc-address={settings.internal_host}",
        f"--grpc-port={settings.grpc_port}",
        "--http-address=127.0.0.1",
        f"--http-port={settings.http_port}",
        f"--metrics-address={settings.internal_host}",
        f"--metrics-port={settings.metrics_port}",
        "--metrics-config=summary_latencies=true",
        f"--exit-timeout-secs={max(1, round(settings.drain_seconds))}",
        f"--backend-config=python,shm-region-prefix-name={prefix(settings)}",
        # gRPC's ping policy would end the connections of clients that keep an idle channel alive.
        "--grpc-http2-max-pings-without-data=0",
        "--grpc-http2-min-recv-ping-interval-without-data=5000",
        *restriction.options(restriction.key_of(settings)),
        *_tls(settings),
        *_traces(settings),
    ]


def _server(settings: Settings) -> tuple[Path, Path]:
    """The program and its folder of backends: the vendor's own installation, or the wheel with our arrangement of its backend."""
    if settings.tritonserver:
        return Path(settings.tritonserver) / "bin" / "tritonserver", Path(settings.tritonserver) / "backends"
    environment = settings.environments / "triton"
    wheel = next((environment / "lib").glob("python3*/site-packages/pytriton/tritonserver"))
    return wheel / "bin" / "tritonserver", environment / "backends"


def _tls(settings: Settings) -> list[str]:
    if not settings.grpc_server_certificate:
        return []
    given = {"cert": settings.grpc_server_certificate, "key": settings.grpc_server_key}
    # Without mutual TLS it refuses to be told of certificates that it does not need.
    if settings.grpc_mutual:
        return [
            "--grpc-use-ssl-mutual=true",
            *(f"--grpc-server-{name}={Path(path).resolve()}" for name, path in given.items()),
            f"--grpc-root-cert={Path(settings.grpc_ca).resolve()}",
        ]
    return ["--grpc-use-ssl=true", *(f"--grpc-server-{name}={Path(path).resolve()}" for name, path in given.items())]


def _traces(settings: Settings) -> list[str]:
    """Triton's own spans, of requests that came with a ``traceparent`` and of no others: the gateway has chosen them."""
    if not settings.traces:
        return []
    of_all = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=0", "count=-1")
    resource = {"service.name": "forcegate-triton", "service.namespace": "forcegate"}
    return [
        *(f"--trace-config={setting}" for setting in of_all),
        f"--trace-config=opentelemetry,url={settings.traces_url}",
        "--trace-config=opentelemetry,bsp_schedule_delay=1000",
        *(f"--trace-config=opentelemetry,resource={name}={value}" for name, value in resource.items()),
    ]


def environment(settings: Settings) -> dict[str, str]:
    """The variables of tritonserver, which its model processes inherit."""
    model = ModelSettings(
        state=settings.state.resolve(),
        gate=settings.gate,
        watchdog_seconds=settings.watchdog_seconds,
        max_atoms=settings.max_atoms,
        memory_gb=settings.memory_gb,
        log_level=settings.log_level,
        matmul_precision=settings.matmul_precision,
        cuequivariance=settings.cuequivariance,
        compile=settings.compile,
        neighbours=settings.neighbours,
        traces=settings.traces_url,
        traces_ca=str(Path(settings.traces_ca).resolve()) if settings.traces_ca else "",
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FORCEGATE_", "PYTHON", "VIRTUAL_ENV"))}
    variables = WAITING_THREADS | inherited | ALLOCATOR | model.as_environment()
    variables |= {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    if not settings.tritonserver:
        libraries = next((settings.environments / "triton" / "lib").glob("python3*/site-packages/nvidia_pytriton.libs"))
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries.resolve()), inherited.get("LD_LIBRARY_PATH")]))
    variables["FORCEGATE_FAMILIES"] = settings.families
    variables["PYTHONUNBUFFERED"] = "1"
    if settings.device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def prefix(settings: Settings) -> str:
    """Begins the name of every shared-memory region of this service, and of no other: two cannot share a gRPC port."""
    return f"forcegate_{settings.grpc_port}_"


def model_processes(server: int) -> dict[int, str]:
    """The model processes of a running server: process id -> model name."""
    found = {}
    try:
        children = psutil.Process(server).children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    for child in children:
        try:
            if child.name()[:15] == STUB[:15] and child.status() != psutil.STATUS_ZOMBIE and (model := model_of(child.cmdline())):
                found[child.pid] = model
        except psutil.Error:
            continue
    return found


def regions(settings: Settings) -> list[str]:
    """Paths of the shared-memory regions of this service that exist."""
    return [str(path) for path in SHARED_MEMORY.glob(f"{prefix(settings)}*")]


def regions_in_use(server: int) -> dict[str, str]:
    """The arguments of the server's living processes, each with the process's model; names of regions are among them."""
    named: dict[str, str] = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(server).children(recursive=True):
            with suppress(psutil.Error):
                arguments = child.cmdline()
                named |= dict.fromkeys(arguments, model_of(arguments) or "")
    return named


def model_of(arguments: Iterable[str]) -> str | None:
    """The model's name, from the path of its model.py in the arguments of its process; None for another process."""
    for argument in arguments:
        path = Path(argument)
        if path.name == "model.py":
            return path.parent.parent.name
    return None


def clean_up(settings: Settings, processes: Iterable[int]) -> list[str]:
    """Ends the model processes of a server that has died, and removes its shared memory.

    Args:
        processes: ids that ``model_processes`` gave while the server was alive.

    Returns:
        What was left behind, for the log.
    """
    left = []
    for pid in processes:
        try:
            process = psutil.Process(pid)
            if process.name()[:15] == STUB[:15] and process.ppid() in (1, os.getpid()):
                os.kill(pid, signal.SIGKILL)
                left.append(f"process {pid}")
        except (psutil.Error, ProcessLookupError):
            continue
    for path in regions(settings):
        # /dev/shm is sticky: what another user's service left behind is not ours to remove.
        with suppress(OSError):
            os.unlink(path)
            left.append(os.path.basename(path))
    return left
