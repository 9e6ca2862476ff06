"""The shapes of what is told of devices and residents: documentation alone, as frontend/schemas.py is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class DeviceCard(BaseModel):
    """One device, as of the last seconds."""

    id: str = Field(description="Stays the same over restarts: NVML's UUID, or `cpu`.")
    index: int
    kind: str = Field(description="`gpu`, `mig` or `cpu`.")
    name: str
    memory_total_mb: int = Field(description="MB of 2^20 bytes; the budget where a CPU has one.")
    memory_used_mb: int = Field(description="Held by anybody; by models alone where a CPU has a budget.")
    memory_free_mb: int
    memory_planned_mb: int | None = Field(
        description="Given away to models, those that are being loaded included; null of another machine's device."
    )
    memory_models_mb: int | None = Field(description="Measured of the processes of models; null of another machine's device.")
    utilization: float | None = Field(description="Percent.")
    temperature: float | None = Field(description="Degrees Celsius.")
    state: str = Field(description="`serving`, `draining`, `quarantined` or `probation`; `remote` for one of another machine.")
    fault: str | None = Field(description="Why nothing is placed there.")
    models: list[str] = Field(description="Those that are resident; empty of another machine's device.")
    in_flight: int | None = Field(description="Gateways and workers that hold models of it; null of another machine's device.")


class GpuStatus(BaseModel):
    """The devices that models live on; the CPU where there is no GPU."""

    gpu_available: bool
    count: int
    devices: list[DeviceCard]


class ResidentCard(BaseModel):
    """One model that the scheduler knows of."""

    model: str
    state: str = Field(description="`resident`, `loading`, `leaving`, `unloading`, `stuck`, `failed`, `evicted` or `absent`.")
    device: str | None = Field(description="Where it is, of several devices the first.")
    instances: dict[str, int] = Field(description="Its processes, by device.")
    memory_mb: int | None = Field(description="Of all its processes.")
    pinned: bool
    idle_seconds: float | None = Field(description="Since it was last used.")
    evicted_for: str | None = Field(description="Why it was unloaded.")
    error: dict[str, Any] | None = Field(description="What its last load ended with.")


class SchedulerDevices(BaseModel):
    """Devices and what lives on them."""

    total: int
    devices: list[DeviceCard]
    models: list[ResidentCard]


class WaitingCard(BaseModel):
    """Somebody waits for models."""

    position: int
    models: list[str]
    priority: str
    waited_seconds: float
    client: str
    why: str = Field(description="What stands in the way.")


class SchedulerQueue(BaseModel):
    """Who waits for models, in the order of their turns."""

    total: int
    queue: list[WaitingCard]


class SchedulerStats(BaseModel):
    """What has happened since the service began."""

    stats: dict[str, Any]


class SchedulerConfig(BaseModel):
    """By which rules it decides."""

    config: dict[str, Any]


ALL = (GpuStatus, SchedulerDevices, SchedulerQueue, SchedulerStats, SchedulerConfig)
