"""What stands for NVML where there is no GPU: an object with the binding's functions, at the binding's boundary.

This machine has no NVIDIA driver, so these tests show what Forcegate makes of NVML's answers and errors, not that a driver gives
them. The errors are those of the real binding.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

GB = 2**30


class Library:
    """The functions of ``pynvml`` that are used, over a list of GPUs: a dictionary each, whose ``error`` every call raises."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST
    NVML_ERROR_RESET_REQUIRED = pynvml.NVML_ERROR_RESET_REQUIRED
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self, gpus: list[dict[str, Any]]) -> None:
        self.gpus = gpus
        self.error: int | None = None
        self.starts = 0
        self.running = False

    def nvmlInit(self) -> None:
        self._check()
        self.starts += 1
        self.running = True

    def nvmlShutdown(self) -> None:
        self.running = False

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        if not self.running:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self._of(self.gpus[index])

    def nvmlDeviceGetUUID(self, gpu: dict[str, Any]) -> bytes:
        return self._of(gpu)["uuid"].encode()

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> bytes:
        return self._of(gpu)["name"].encode()

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=self._of(gpu)["total"], used=gpu["used"])

    def nvmlDeviceGetUtilizationRates(self, gpu: dict[str, Any]) -> SimpleNamespace:
        if "parts" in gpu or gpu.get("part"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=self._of(gpu)["utilization"])

    def nvmlDeviceGetTemperature(self, gpu: dict[str, Any], _sensor: int) -> int:
        if gpu.get("lost_while_asked"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return int(self._of(gpu)["temperature"])

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: dict[str, Any]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._of(gpu).get("processes", ())]

    def nvmlDeviceGetMigMode(self, gpu: dict[str, Any]) -> tuple[int, int]:
        self._of(gpu)
        return (1, 1) if "parts" in gpu else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, _gpu: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: dict[str, Any], number: int) -> dict[str, Any]:
        if number >= len(gpu["parts"]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return dict(gpu["parts"][number], part=True)

    def _of(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if "error" in gpu:
            raise pynvml.NVMLError(gpu["error"])
        return gpu

    def _check(self) -> None:
        if self.error is not None:
            raise pynvml.NVMLError(self.error)


def gpu(number: int, used: int = 0, **more: Any) -> dict[str, Any]:
    """A healthy GPU of 80 GB."""
    fields = {"uuid": f"GPU-{number}", "name": "NVIDIA H100", "total": 80 * GB, "used": used, "utilization": 37, "temperature": 51}
    return fields | more
