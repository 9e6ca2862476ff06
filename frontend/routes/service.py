"""/, /health, /live, /ready, /metrics and /api/v1/services. None of them waits for anything."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

import forcegate
from forcegate.errors import ModelNotReady
from frontend import schemas
from frontend.bodies import answer
from frontend.documentation import page
from frontend.routes import welcome
from frontend.service import Service, call_of, service_of
from frontend.triton.directory import READY, Entry

router = APIRouter(tags=["Service"])
DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where the NVIDIA driver tells the names of its devices."""

_ROOT = page(schemas.Welcome, "Where to go from here.")
_ROOT["responses"][200]["content"]["text/html"] = {"schema": {"type": "string"}}


@router.get("/", **_ROOT)
async def root(request: Request) -> Response:
    """What this service is, which models it has, and a line to try. A page for browsers."""
    service, call = service_of(request), call_of(request)
    base = str(request.base_url).rstrip("/")
    models = {entry.variant.name: entry.state for entry in service.directory.entries()}
    if "text/html" in call.accept:
        return welcome.page(base, service.directory.entries())
    return await answer(
        {
            "name": "Forcegate",
            "version": forcegate.__version__,
            "docs": f"{base}/docs",
            "health": f"{base}/health",
            "models": models,
            "example": welcome.curl(base, models),
        },
        call,
    )


@router.get("/health", **page(schemas.Health, "The service's health."))
async def health(request: Request) -> Response:
    """The gateway, the inference server, and every family's execution environment, as of the last second."""
    service = service_of(request)
    directory = service.directory
    workers = {name: worker(name, entries) for name, entries in _families(service).items()}
    available = sum(entry["status"] == "healthy" for entry in workers.values())
    usable = any(map(service.usable, directory.entries()))
    wanted = {
        directory.catalogue.aliases.get(name, name) for name in (model.partition(":")[0] for model in service.settings.models)
    }
    lacking = any(entry.variant.name in wanted and not service.usable(entry) for entry in directory.entries())
    age = directory.age
    body = {
        "status": "unavailable" if not usable else "degraded" if lacking or not directory.reachable else "healthy",
        "gateway": "healthy",
        "version": forcegate.__version__,
        "inference_server": {"reachable": directory.reachable, "seconds_since_seen": round(age, 3) if math.isfinite(age) else None},
        "workers": workers,
        "available_workers": available,
        "total_workers": len(workers),
    }
    return await answer(body, call_of(request))


@router.get("/live", **page(schemas.Alive, "The process is up."))
async def live(request: Request) -> Response:
    """Whether the process is up; for orchestrators."""
    return await answer({"status": "alive"}, call_of(request))


@router.get("/ready", **page(schemas.Ready, "At least one model answers.", 503))
async def ready(request: Request) -> Response:
    """Whether at least one model answers, or would be loaded and then answer; for orchestrators and load balancers."""
    service = service_of(request)
    names = [entry.variant.name for entry in service.directory.entries() if entry.state == READY]
    if not names and not any(map(service.usable, service.directory.entries())):
        raise ModelNotReady("No model is ready.", "GET /api/v1/models says why.")
    return await answer({"status": "ready", "models": names}, call_of(request))


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Metrics of the gateway; those of the models are at Triton's own port."""
    service = service_of(request)
    service.observe()
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/v1/services", **page(schemas.Services, "All families."))
async def services(request: Request) -> Response:
    """Health of every family, and what it is."""
    service = service_of(request)
    described = {}
    for name, entries in _families(service).items():
        family = entries[0].family
        described[name] = worker(name, entries) | {
            "title": family.title,
            "package": family.package,
            "package_version": family.version,
            "licence": family.licence,
            "reference": family.reference,
            "known_models": [entry.variant.name for entry in entries],
        }
    return await answer({"total": len(described), "services": described}, call_of(request))


def worker(name: str, entries: list[Entry]) -> dict[str, Any]:
    """The health of one family's execution environment."""
    served = [entry for entry in entries if entry.state == READY]
    devices = sorted({entry.report.device for entry in served if entry.report.device})
    memory = [entry.report.memory_mb for entry in served if entry.report.memory_mb is not None]
    gpu = any(device.startswith("cuda") for device in devices)
    return {
        "status": "healthy" if served else "unavailable",
        "service": name,
        "models": [entry.variant.name for entry in served],
        "device": ", ".join(devices) or None,
        "gpu_available": gpu,
        "gpu_name": gpu_name() if gpu else None,
        "memory_usage_mb": sum(memory) if memory else None,
    }


@lru_cache(maxsize=1)
def gpu_name() -> str | None:
    """Name of the first NVIDIA device as its driver tells it."""
    for path in sorted(DRIVER.glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def _families(service: Service) -> dict[str, list[Entry]]:
    families: dict[str, list[Entry]] = {}
    for entry in service.directory.entries():
        families.setdefault(entry.family.name, []).append(entry)
    return families
