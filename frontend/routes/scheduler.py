"""/gpu-status and /api/v1/scheduler: devices, residents and the queue, as of the last second; and what people do with devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from forcegate.errors import Conflict, NotFound, ServerUnavailable
from frontend import scheduler_schemas as schemas
from frontend.bodies import answer
from frontend.documentation import page
from frontend.service import call_of, service_of

router = APIRouter(tags=["Scheduler"])
COMMAND_SECONDS = 60.0


@router.get("/gpu-status", **page(schemas.GpuStatus, "The devices.", 503))
async def gpu_status(request: Request) -> Response:
    """The devices that models live on, GPUs or else the CPU: memory, utilization, temperature, and which models are there. Of a
    Triton on another machine: what its metrics tell."""
    devices = _devices(request)
    gpu = any(device["kind"] != "cpu" for device in devices)
    return await answer({"gpu_available": gpu, "count": len(devices), "devices": devices}, call_of(request))


@router.get("/api/v1/scheduler/devices", **page(schemas.SchedulerDevices, "The devices.", 503))
async def devices(request: Request) -> Response:
    """The devices, and every model that is there, comes, goes, or has been there."""
    devices, state = _devices(request), service_of(request).residency.state
    models = [] if state is None else list(state["models"].values())
    return await answer({"total": len(devices), "devices": devices, "models": models}, call_of(request))


@router.get("/api/v1/scheduler/waiting", **page(schemas.SchedulerQueue, "The queue.", 503))
async def waiting(request: Request) -> Response:
    """Who waits for a model that is not loaded. The queue of tasks is at /api/v1/scheduler/queue."""
    asks = _state(request)["queue"]
    return await answer({"total": len(asks), "queue": asks}, call_of(request))


@router.get("/api/v1/scheduler/stats", **page(schemas.SchedulerStats, "The counts.", 503))
async def stats(request: Request) -> Response:
    """Decisions, loads, evictions and failures; /metrics has the same for Prometheus."""
    return await answer({"stats": _state(request)["stats"]}, call_of(request))


@router.get("/api/v1/scheduler/config", **page(schemas.SchedulerConfig, "The rules.", 503))
async def config(request: Request) -> Response:
    """By which rules it decides, and whether it does at all."""
    return await answer({"config": _state(request)["config"]}, call_of(request))


_COMMAND = page(schemas.SchedulerDevices, "It is done.", 404, 409, 503, 504)
_COMMAND["openapi_extra"] = {
    "parameters": [
        {"name": "device", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}, "description": "Its id."}
    ]
}


async def _command(request: Request, what: str) -> Response:
    service, device = service_of(request), str(request.path_params["device"])
    state = _state(request)
    if not state["active"]:
        raise Conflict("The scheduler is off.", "Start the service with FORCEGATE_SCHEDULER=on.")
    if device not in {known["id"] for known in state["devices"]}:
        raise NotFound(f"There is no device {device[:60]!r}.", "GET /api/v1/scheduler/devices lists them.")
    await service.residency.do(what, COMMAND_SECONDS, device=device)
    return await devices(request)


@router.post("/api/v1/scheduler/devices/{device}/drain", **_COMMAND)
async def drain(request: Request) -> Response:
    """Nothing new goes to this device, and its models leave it as their work ends; they are loaded elsewhere when asked for."""
    return await _command(request, "drain")


@router.post("/api/v1/scheduler/devices/{device}/quarantine", **_COMMAND)
async def quarantine(request: Request) -> Response:
    """The same for a device that is suspected of faults."""
    return await _command(request, "quarantine")


@router.post("/api/v1/scheduler/devices/{device}/return", **_COMMAND)
async def give_back(request: Request) -> Response:
    """The device takes models again."""
    return await _command(request, "return")


def _devices(request: Request) -> list[Any]:
    service = service_of(request)
    remote = service.remote.as_dicts() if service.residency.state is None else []
    return remote or list(_state(request)["devices"])


def _state(request: Request) -> Mapping[str, Any]:
    state = service_of(request).residency.state
    if state is None:
        raise ServerUnavailable("The scheduler does not answer.", "It belongs to `forcegate serve`, which starts it again.")
    return state
