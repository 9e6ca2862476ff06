"""The devices of a Triton server on another machine, as far as its metrics tell of them.

A gateway that runs beside its Triton is told by the owner of the residents. One that runs elsewhere (`forcegate gateway` with
`FORCEGATE_TRITON_HOST`) reaches no owner; it places nothing, and people want to see the devices all the same.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from frontend.scheduler.device import Device
from frontend.scheduler.inventory import MB, REFRESH_SECONDS, STALE_SECONDS, Inventory, ReadingFailed
from frontend.settings import Settings

READ_SECONDS: Final = 2.0
MOST_BYTES: Final = 16 * MB
GPU, CPU = "nv_gpu_", "nv_cpu_"
TOTAL, USED, BUSY = "memory_total_bytes", "memory_used_bytes", "utilization"


class MetricsReader:
    """Reads the GPUs that a Triton server sees or, where it sees none, the CPU of its machine.

    Args:
        host: of Triton.
        port: of its metrics.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._url = host, f"http://{host}:{port}/metrics"

    def read(self) -> list[Device]:
        """See ``Reader``. Temperatures and processes are not among Triton's metrics."""
        # A proxy of this machine does not lead to one of a private network.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self._url, timeout=READ_SECONDS) as answer:
                text = answer.read(MOST_BYTES).decode()
        except OSError as error:
            raise ReadingFailed(f"The metrics of Triton at {self._host} cannot be read: {error}.") from error
        return list(devices_in(text, self._host))


def devices_in(text: str, host: str) -> Iterator[Device]:
    """The devices in Triton's metrics.

    Raises:
        ReadingFailed: there is none; Triton was told not to export them.
    """
    gpus: dict[str, dict[str, float]] = {}
    cpu: dict[str, float] = {}
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        if sample.name.startswith(GPU) and "gpu_uuid" in sample.labels:
            gpus.setdefault(sample.labels["gpu_uuid"], {})[sample.name.removeprefix(GPU)] = sample.value
        elif sample.name.startswith(CPU):
            cpu[sample.name.removeprefix(CPU)] = sample.value
    if not gpus and TOTAL not in cpu:
        raise ReadingFailed(f"The metrics of Triton at {host} tell of no device.")
    # Triton tells no numbers of GPUs.
    for index, (uuid, values) in enumerate(sorted(gpus.items())):
        yield _device(uuid, index, "gpu", f"GPU of {host}", values)
    if not gpus:
        yield _device("cpu", 0, "cpu", f"CPU of {host}", cpu)


def _device(identity: str, index: int, kind: Any, name: str, values: Mapping[str, float]) -> Device:
    total, used = (int(values.get(key, 0.0)) // MB for key in (TOTAL, USED))
    busy = values.get(BUSY)
    return Device(identity, index, kind, name, total, used, None if busy is None else 100.0 * busy)


class RemoteDevices:
    """The devices of the settings' Triton, read in the background while nobody nearer tells of them."""

    def __init__(self, settings: Settings) -> None:
        self._inventory = Inventory(MetricsReader(settings.triton_host, settings.metrics_port))

    async def run(self, follower: Any) -> None:
        """Reads until it is cancelled, while ``follower`` has no owner."""
        while True:
            if follower.state is None:
                await self._inventory.refresh(READ_SECONDS)
            await asyncio.sleep(REFRESH_SECONDS)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The devices, in the form in which the owner tells of its own; nothing where none has been read lately."""
        if self._inventory.age > STALE_SECONDS:
            return []
        unknown: dict[str, Any] = {
            "memory_planned_mb": None,
            "memory_models_mb": None,
            "state": "remote",
            "models": [],
            "in_flight": None,
        }
        return [device.as_dict() | unknown for device in self._inventory.devices]
