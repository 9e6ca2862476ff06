"""The devices: NVML's answers and failures (nvml.py says what stands for it here), and this machine's own CPU and memory."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import psutil
import pynvml
import pytest

from frontend.scheduler import inventory
from frontend.scheduler.device import Device, DeviceProcess
from frontend.scheduler.inventory import HostReader, Inventory, NvmlReader, ReadingFailed, readers
from tests.unit.scheduler.nvml import GB, Library, gpu


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_nvml_says_of_a_gpu() -> None:
    library = Library([gpu(0, used=3 * GB, processes=[(41, 2 * GB), (42, None)])])
    (device,) = NvmlReader(library).read()
    assert device == Device(
        "GPU-0", 0, "gpu", "NVIDIA H100", 80 * 1024, 3 * 1024, 37.0, 51.0, (DeviceProcess(41, 2048), DeviceProcess(42, None))
    )
    assert device.memory_free_mb == 77 * 1024


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_UNKNOWN])
def test_a_gpu_in_error_is_taken_out_and_its_neighbours_stay(error: int) -> None:
    library = Library([gpu(0), gpu(1), gpu(2)])
    kept = Inventory(NvmlReader(library))
    asyncio.run(kept.refresh())
    assert [device.fault for device in kept.devices] == ["", "", ""]
    library.gpus[1]["error"] = error
    asyncio.run(kept.refresh())
    assert [device.id for device in kept.devices] == ["GPU-0", "GPU-1", "GPU-2"], "it is known by its UUID, though it tells none"
    assert [bool(device.fault) for device in kept.devices] == [False, True, False]
    del library.gpus[1]["error"]
    asyncio.run(kept.refresh())
    assert [device.fault for device in kept.devices] == ["", "", ""], "one that was reset comes back"


def test_a_gpu_that_is_lost_between_two_questions_is_not_taken_for_healthy() -> None:
    devices = NvmlReader(Library([gpu(0, lost_while_asked=True), gpu(1)])).read()
    assert [bool(device.fault) for device in devices] == [True, False]


def test_a_gpu_that_is_not_listed_any_more_stays_with_its_fault() -> None:
    library = Library([gpu(0), gpu(1)])
    kept = Inventory(NvmlReader(library))
    asyncio.run(kept.refresh())
    del library.gpus[1]
    asyncio.run(kept.refresh())
    assert [bool(device.fault) for device in kept.devices] == [False, True]


def test_mig_instances_are_devices_of_their_own() -> None:
    parts = [{"uuid": f"MIG-{n}", "name": "H100 MIG 1g.10gb", "total": 10 * GB, "used": 0} for n in range(3)]
    devices = NvmlReader(Library([gpu(0, parts=parts), gpu(1)])).read()
    assert [(device.id, device.kind, device.index) for device in devices] == [
        ("MIG-0", "mig", 0),
        ("MIG-1", "mig", 0),
        ("MIG-2", "mig", 0),
        ("GPU-1", "gpu", 1),
    ]
    assert devices[0].utilization is None, "an instance does not say"
    assert devices[0].temperature == 51.0, "the GPU's own sensor"


def test_nvml_that_dies_costs_new_readings_and_nothing_else() -> None:
    library, clock = Library([gpu(0)]), Clock()
    kept = Inventory(NvmlReader(library), clock)
    asyncio.run(kept.refresh())
    library.error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    clock.now += 10
    asyncio.run(kept.refresh())
    assert "NVML does not answer" in kept.error
    assert kept.devices[0].fault == "", "a reading of 10 s ago still says something"
    clock.now += inventory.STALE_SECONDS
    assert "no reading for 40 s" in kept.devices[0].fault
    library.error = None
    asyncio.run(kept.refresh())
    assert (kept.devices[0].fault, kept.error) == ("", "")
    assert library.starts == 2, "a driver that was reloaded has to be opened again"


def test_nvml_that_hangs_is_asked_once_and_the_event_loop_goes_on() -> None:
    let_go, asked = threading.Event(), []

    class Hanging:
        def read(self) -> list[Device]:
            asked.append(1)
            let_go.wait(30)
            return HostReader().read()

    async def scenario() -> None:
        kept = Inventory(Hanging())
        await kept.refresh(patience=0.01)
        await kept.refresh(patience=0.01)
        assert kept.error == "the driver does not return"
        assert len(asked) == 1
        let_go.set()
        await kept.refresh(patience=30)
        assert (kept.error, len(kept.devices)) == ("", 1)

    asyncio.run(scenario())


def test_an_error_that_nobody_has_foreseen_is_an_error_of_the_reading() -> None:
    class Broken:
        def read(self) -> list[Device]:
            raise ValueError("not a structure that ctypes knows")

    kept = Inventory(Broken())
    asyncio.run(kept.refresh())
    assert kept.error == "not a structure that ctypes knows"


def test_the_binding_without_a_driver_is_a_failed_reading() -> None:
    # The real library: this machine may have a GPU or none, and neither is an exception of another kind.
    reader = NvmlReader()
    if Path("/proc/driver/nvidia/version").exists():
        assert all(device.kind in ("gpu", "mig") for device in reader.read())
    else:
        with pytest.raises(ReadingFailed, match="NVML does not answer"):
            reader.read()


def test_this_machine_as_a_device() -> None:
    (device,) = HostReader().read()
    assert (device.id, device.kind, device.fault) == ("cpu", "cpu", "")
    assert 0 < device.memory_used_mb < device.memory_total_mb <= psutil.virtual_memory().total / 2**20
    # Other programs take and give back memory between the two readings, and a container may be allowed less than the machine has.
    lines = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {name: int(value.split()[0]) for name, value in lines}
    if device.memory_total_mb == kilobytes["MemTotal"] // 1024:
        assert abs(device.memory_free_mb - kilobytes["MemAvailable"] / 1024) < 2048


def test_a_machine_without_gpus_is_its_cpu() -> None:
    if not any(device.kind == "gpu" for device in readers().read()):
        assert [device.id for device in readers().read()] == ["cpu"]
