"""The devices of a Triton on another machine, by its metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from forcegate.cli.devices import picture
from frontend.app import create_app
from frontend.scheduler.device import Device
from frontend.scheduler.inventory import ReadingFailed
from frontend.scheduler.remote import MetricsReader, RemoteDevices, devices_in
from frontend.settings import Settings, load
from tests.service import ROOT, free_ports

GB = 2**30
CPU = f"""# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes {16 * GB}
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes {3 * GB}
# TYPE nv_inference_count counter
nv_inference_count{{model="lj-argon",version="1"}} 7
"""
GPUS = "".join(
    f'nv_gpu_memory_total_bytes{{gpu_uuid="GPU-{n}"}} {80 * GB}\nnv_gpu_memory_used_bytes{{gpu_uuid="GPU-{n}"}} {n * GB}\n'
    f'nv_gpu_utilization{{gpu_uuid="GPU-{n}"}} 0.5\n'
    for n in (2, 1)
)
"""In the names and labels of Triton's documentation: no GPU was here to see them of."""


@pytest.fixture
def metrics() -> Iterator[tuple[int, dict[str, str]]]:
    """A port that answers with a text, which the test may change."""
    told = {"text": CPU}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(told["text"].encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, told
    server.shutdown()
    thread.join()
    server.server_close()


def test_gpus_go_before_the_cpu() -> None:
    assert list(devices_in(CPU + GPUS, "far")) == [
        Device("GPU-1", 0, "gpu", "GPU of far", 80 * 1024, 1024, 50.0),
        Device("GPU-2", 1, "gpu", "GPU of far", 80 * 1024, 2 * 1024, 50.0),
    ]
    assert list(devices_in(CPU, "far")) == [Device("cpu", 0, "cpu", "CPU of far", 16 * 1024, 3 * 1024, 25.0)]


def test_no_device_and_no_answer_are_readings_that_failed(metrics: tuple[int, dict[str, str]]) -> None:
    port, told = metrics
    assert [device.kind for device in MetricsReader("127.0.0.1", port).read()] == ["cpu"]
    told["text"] = "nv_inference_count 7\n"
    with pytest.raises(ReadingFailed, match="no device"):
        MetricsReader("127.0.0.1", port).read()
    with pytest.raises(ReadingFailed, match="cannot be read"):
        MetricsReader("127.0.0.1", free_ports(1)[0]).read()


def test_they_are_read_only_while_no_owner_tells_of_nearer_ones(metrics: tuple[int, dict[str, str]]) -> None:
    port, _ = metrics

    async def read(state: object) -> list[str]:
        remote = RemoteDevices(Settings(triton_host="127.0.0.1", metrics_port=port))
        running = asyncio.create_task(remote.run(SimpleNamespace(state=state)))
        await asyncio.sleep(0.5)
        running.cancel()
        return [device["id"] for device in remote.as_dicts()]

    assert asyncio.run(read(None)) == ["cpu"]
    assert asyncio.run(read({"devices": []})) == []


def test_a_gateway_without_an_owner_tells_of_them(metrics: tuple[int, dict[str, str]], tmp_path: Path) -> None:
    port, told = metrics
    told["text"] = CPU + GPUS

    async def ask() -> tuple[dict[str, Any], dict[str, Any], int]:
        app = create_app(load(root=ROOT, state=tmp_path, triton_host="127.0.0.1", metrics_port=port, grpc_port=free_ports(1)[0]))
        gateway = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
        async with app.router.lifespan_context(app), gateway as client:
            for _ in range(50):
                status = await client.get("/gpu-status")
                if status.status_code == 200:
                    break
                await asyncio.sleep(0.1)
            devices = await client.get("/api/v1/scheduler/devices")
            return status.json(), devices.json(), (await client.get("/api/v1/scheduler/waiting")).status_code

    status, devices, waiting = asyncio.run(ask())
    assert (status["gpu_available"], status["count"]) == (True, 2)
    assert [(each["id"], each["memory_free_mb"], each["state"]) for each in devices["devices"]] == [
        ("GPU-1", 79 * 1024, "remote"),
        ("GPU-2", 78 * 1024, "remote"),
    ]
    assert waiting == 503, "there is still nobody who decides"
    picture(devices)
