"""The devices of this machine: NVIDIA GPUs through NVML or, where there are none, the CPU with the host's memory as one device.

The one file that imports NVML. A GPU that NVML reports lost or in error stays in the list with its fault, so that people see it,
and nothing is placed on it. NVML that fails, or never returns, costs the newness of the readings and nothing else: it is called in
a thread, the last readings are kept, and after ``STALE_SECONDS`` each carries the fault that there is no new one.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from frontend.scheduler.device import Device, DeviceProcess

log = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
STALE_SECONDS = 30.0
"""Age of a reading after which it says nothing about free memory any more."""
MB = 2**20
CGROUP = Path("/sys/fs/cgroup")


class ReadingFailed(Exception):
    """There is no reading now; the text says why."""


class Reader(Protocol):
    """Reads the devices once; may block."""

    def read(self) -> list[Device]:
        """All devices, with those that are at fault.

        Raises:
            ReadingFailed: nothing can be said of any.
        """
        ...


class NvmlReader:
    """NVIDIA GPUs and MIG instances.

    Args:
        library: the binding; ``pynvml`` unless a test puts another object in its place.
    """

    def __init__(self, library: Any = None) -> None:
        # Imported by name: its package may be missing on a client's machine, and the name is that of nvidia-ml-py.
        self._nvml = library if library is not None else importlib.import_module("pynvml")
        self._open = False

    def read(self) -> list[Device]:
        """See ``Reader``."""
        nvml = self._nvml
        try:
            if not self._open:
                nvml.nvmlInit()
                self._open = True
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._close()
            raise ReadingFailed(f"NVML does not answer: {error}.") from error
        return [device for index in range(count) for device in self._devices(index)]

    def _close(self) -> None:
        """The next reading begins anew: a driver that was reloaded needs it."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _devices(self, index: int) -> list[Device]:
        nvml = self._nvml
        identity = f"gpu-{index}"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            identity = _text(nvml.nvmlDeviceGetUUID(handle))
            instances = self._instances(handle)
            if not instances:
                return [self._device(handle, index, identity, "gpu")]
            return [self._device(part, index, _text(nvml.nvmlDeviceGetUUID(part)), "mig", handle) for part in instances]
        except nvml.NVMLError as error:
            # One that has fallen off the bus keeps no handle; its neighbours are as they were.
            return [Device(identity, index, "gpu", f"GPU {index}", 0, 0, fault=f"NVML reports an error of this device: {error}.")]

    def _instances(self, handle: Any) -> list[Any]:
        """The MIG instances of a GPU; none where it is whole."""
        nvml = self._nvml
        try:
            current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        except nvml.NVMLError:
            return []
        if not current:
            return []
        found = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(nvml.NVMLError):  # a place for an instance that nobody has made
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
        return found

    def _device(self, handle: Any, index: int, identity: str, kind: Any, parent: Any = None) -> Device:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        # A MIG instance has no sensor of its own, and no utilization before the newest drivers.
        utilization = self._optional(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        warmth = self._optional(lambda: float(nvml.nvmlDeviceGetTemperature(parent or handle, nvml.NVML_TEMPERATURE_GPU)))
        running = self._optional(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        held = tuple(
            DeviceProcess(int(process.pid), None if process.usedGpuMemory is None else int(process.usedGpuMemory) // MB)
            for process in running
        )
        name = _text(nvml.nvmlDeviceGetName(handle))
        return Device(identity, index, kind, name, memory.total // MB, memory.used // MB, utilization, warmth, held)

    def _optional(self, ask: Callable[[], Any]) -> Any:
        """A reading that not every device has. One that is lost says so in every call, and is not taken for healthy."""
        nvml = self._nvml
        try:
            return ask()
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                raise
            return None


class HostReader:
    """The CPU and the memory of this machine, or of the container that this process is in, as one device."""

    def read(self) -> list[Device]:
        """See ``Reader``."""
        memory = psutil.virtual_memory()
        total, used = memory.total, memory.total - memory.available
        if (limit := _container_limit()) is not None and limit[0] < total:
            total, used = limit
        return [Device("cpu", 0, "cpu", "host CPU", total // MB, used // MB, psutil.cpu_percent(interval=None), _warmth())]


def readers() -> Reader:
    """The reader for this machine: NVML where it finds a GPU, else the host."""
    try:
        nvml = NvmlReader()
        if nvml.read():
            return nvml
    except (ReadingFailed, ImportError, OSError) as error:
        log.info("no GPU is used", extra={"detail": str(error)})
    return HostReader()


class Inventory:
    """The devices as of the last reading, refreshed in the background by ``run``.

    Args:
        reader: what is read; it may block for ever, in a thread of its own.
        clock: monotonic time in s.
    """

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader, self._clock = reader, clock
        self._devices: tuple[Device, ...] = ()
        self._read_at = float("-inf")
        self._reading: asyncio.Task[list[Device]] | None = None
        self.error = ""
        """Why the last reading failed; empty after one that did not."""

    @property
    def age(self) -> float:
        """Seconds since the last reading; infinite where there never was one."""
        return self._clock() - self._read_at

    @property
    def devices(self) -> tuple[Device, ...]:
        """The last readings, in a fixed order. Those that are too old to place anything by carry that as their fault."""
        if self.age <= STALE_SECONDS:
            return self._devices
        fault = f"There has been no reading for {self.age:.0f} s. {self.error}".strip()
        return tuple(device if device.fault else replace(device, fault=fault) for device in self._devices)

    async def run(self, interval: float = REFRESH_SECONDS) -> None:
        """Refreshes until it is cancelled."""
        while True:
            await self.refresh(interval)
            await asyncio.sleep(interval)

    async def refresh(self, patience: float = REFRESH_SECONDS) -> None:
        """Reads once, and waits for it at most ``patience`` seconds. A reading that hangs is not begun a second time."""
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._reader.read))
        done, _ = await asyncio.wait((self._reading,), timeout=patience)
        if not done:
            self._failed("the driver does not return")
            return
        task, self._reading = self._reading, None
        try:
            self.take(task.result())
        except Exception as error:  # whatever a driver's binding raises, the gateway goes on
            self._failed(str(error) or type(error).__name__)

    def take(self, devices: Sequence[Device]) -> None:
        """Uses these readings. A device that was there and is not any more stays, with that as its fault."""
        present = {device.id for device in devices}
        gone = [
            replace(old, fault="The driver does not list this device any more.", memory_used_mb=0, processes=())
            for old in self._devices
            if old.id not in present and not (old.name.startswith("GPU ") and old.memory_total_mb == 0)
        ]
        # A lost GPU has no UUID to ask for, so that what stands for it is known by its index alone.
        lost = {device.index for device in gone}
        listed = [device for device in devices if not (device.memory_total_mb == 0 and device.index in lost)]
        reasons = {device.index: device.fault for device in devices if device.memory_total_mb == 0}
        gone = [replace(device, fault=reasons.get(device.index, device.fault)) for device in gone]
        self._devices = tuple(sorted([*listed, *gone], key=lambda device: device.order))
        self._read_at, self.error = self._clock(), ""

    def _failed(self, why: str) -> None:
        if why != self.error:
            log.warning("devices cannot be read", extra={"detail": why})
        self.error = why


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _container_limit() -> tuple[int, int] | None:
    """Bytes that the control group of this process may take, and has taken; None where there is no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        return None if limit == "max" else (int(limit), int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


def _warmth() -> float | None:
    """Degrees Celsius of the hottest core; None where the machine has no sensor, as virtual ones do not."""
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    readings = [entry.current for name in ("coretemp", "k10temp", "cpu_thermal") for entry in sensors.get(name, ())]
    return max(readings) if readings else None
