"""A device that models live on, as of its last reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["cpu", "gpu", "mig"]


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory of a device; ``memory_mb`` is None where the driver does not say."""

    pid: int
    memory_mb: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """One reading of one device.

    Attributes:
        id: stays the same over restarts: NVML's UUID, or ``cpu``.
        index: as CUDA counts it (for a MIG instance: the GPU that it is a part of).
        memory_total_mb, memory_used_mb: MB of 2^20 bytes.
        utilization: percent of the time in which something was computed; None where the device does not say.
        temperature: degrees Celsius; None where the device does not say.
        fault: why nothing can be placed on it, in a sentence; empty for a healthy device.
    """

    id: str
    index: int
    kind: Kind
    name: str
    memory_total_mb: int
    memory_used_mb: int
    utilization: float | None = None
    temperature: float | None = None
    processes: tuple[DeviceProcess, ...] = ()
    fault: str = ""

    @property
    def memory_free_mb(self) -> int:
        """MB that nobody holds."""
        return max(self.memory_total_mb - self.memory_used_mb, 0)

    @property
    def order(self) -> tuple[str, int, str]:
        """What devices are sorted by, so that no answer depends on the order in which a driver lists them."""
        return (self.kind == "cpu" and "~cpu") or "gpu", self.index, self.id

    def as_dict(self) -> dict[str, Any]:
        """What the reading says, for answers; without its processes, and its fault None where there is none."""
        return {
            "id": self.id,
            "index": self.index,
            "kind": self.kind,
            "name": self.name,
            "memory_total_mb": self.memory_total_mb,
            "memory_used_mb": self.memory_used_mb,
            "memory_free_mb": self.memory_free_mb,
            "utilization": self.utilization,
            "temperature": self.temperature,
            "fault": self.fault or None,
        }
