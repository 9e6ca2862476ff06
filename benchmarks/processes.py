"""The processes of the service that is measured: processor time and memory of each kind, apart."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil

from forcegate.errors import SetupError
from frontend.settings import Settings
from frontend.supervisor import triton

MODEL, SERVER, GATEWAY, SUPERVISOR = "model", "tritonserver", "gateway", "supervisor"


@dataclass(frozen=True)
class Processes:
    """Of one service, at one moment: process ids by kind; ``models`` by the model's name."""

    supervisor: int
    server: int
    gateways: tuple[int, ...]
    models: dict[str, int]

    @classmethod
    def of(cls, settings: Settings) -> Processes:
        """Those of the service on the ports of ``settings``.

        Raises:
            SetupError: it does not run, or does not belong to this user.
        """
        port = f"--grpc-port={settings.grpc_port}"
        for process in psutil.process_iter(["name", "cmdline"]):
            if process.info["name"] == "tritonserver" and port in (process.info["cmdline"] or []):
                supervisor = process.parent()
                if supervisor is not None:
                    models = {name: pid for pid, name in triton.model_processes(process.pid).items()}
                    return cls(supervisor.pid, process.pid, _gateways(supervisor), models)
        raise SetupError(f"No tritonserver with {port} is running.", "")

    def cpu_seconds(self, model: str) -> dict[str, float]:
        """Processor seconds so far of the model's process, the server, the gateway and the supervisor."""
        return {kind: sum(map(cpu_seconds_of, pids)) for kind, pids in self._kinds(model).items()}

    def memory(self) -> dict[str, float]:
        """Resident memory in MB of every process, by kind or by the model's name."""
        named = {SUPERVISOR: [self.supervisor], SERVER: [self.server], GATEWAY: list(self.gateways)}
        named |= {name: [pid] for name, pid in self.models.items()}
        return {name: sum(map(_resident, pids)) for name, pids in named.items()}

    def _kinds(self, model: str) -> dict[str, list[int]]:
        pid = self.models.get(model)
        return {
            MODEL: [] if pid is None else [pid],
            SERVER: [self.server],
            GATEWAY: list(self.gateways),
            SUPERVISOR: [self.supervisor],
        }


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The difference of two readings."""
    return {kind: value - before[kind] for kind, value in after.items()}


def _gateways(supervisor: psutil.Process) -> tuple[int, ...]:
    found = []
    for child in supervisor.children(recursive=True):
        with suppress(psutil.Error):
            if any("frontend.gateway" in argument for argument in child.cmdline()):
                found.append(child.pid)
    return tuple(found)


def cpu_seconds_of(pid: int) -> float:
    """Processor seconds so far of one process; 0 where it has ended."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _resident(pid: int) -> float:
    with suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    return 0.0
