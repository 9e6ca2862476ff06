"""/api/v1/models: what is served, and loading and unloading."""

from __future__ import annotations

from typing import Any

from ase.data import chemical_symbols
from fastapi import APIRouter, Request, Response

from forcegate.contract import output_specs
from frontend import model_schemas
from frontend.bodies import ClientDisconnect, answer, media_type, read_body
from frontend.documentation import page
from frontend.requests import load_dtype
from frontend.routes.calculations import timeout
from frontend.service import call_of, service_of
from frontend.triton.directory import MISSING, READY, Entry

router = APIRouter(prefix="/api/v1/models", tags=["Models"])
LOAD_SECONDS = 600.0
"""How long a caller of `load` waits when it does not say; a first load runs the whole readiness gate."""
LONGEST_BODY = 64 * 1024
"""Bytes of a body that asks for no more than a dtype."""


@router.get("", **page(model_schemas.ModelList, "All models."))
async def list_models(request: Request) -> Response:
    """All models, their state, and what they were trained on."""
    entries = service_of(request).directory.entries()
    cards = [card(entry) for entry in entries]
    ready = sum(entry.state == READY for entry in entries)
    return await answer({"total": len(cards), "ready": ready, "models": cards}, call_of(request))


@router.get("/{name}", **page(model_schemas.ModelCard, "The model.", 404, named=True))
async def get_model(request: Request) -> Response:
    """One model."""
    return await answer(card(service_of(request).directory.entry(_name(request))), call_of(request))


_LOAD = page(
    model_schemas.ModelCard,
    "The model is ready.",
    400,
    404,
    409,
    413,
    422,
    429,
    503,
    504,
    named=True,
    timed=True,
    body=model_schemas.LoadRequest,
)
_LOAD["responses"][202] = _LOAD["responses"][200] | {"description": "It is still being loaded; ask for its state."}


@router.post("/{name}/load", **_LOAD)
async def load_model(request: Request) -> Response:
    """Loads a model and waits until it has passed its readiness gate.

    Loading what is loaded changes nothing, unless another `dtype` is asked for than the one that it runs in. It then answers as
    before until the new copy has passed its gate.
    """
    service, call = service_of(request), call_of(request)
    call.allow(timeout(request, LOAD_SECONDS))
    name = service.directory.entry(_name(request)).variant.name
    try:
        body = await read_body(request, call, service.admission, LONGEST_BODY)
    except ClientDisconnect:
        call.gone = True
        return Response(status_code=400)  # nobody is there to read it
    dtype = load_dtype(body, media_type(request.scope)) if body else ""
    if service.directory.on_demand and service.residency.connected:
        await service.residency.do("load", max(call.remaining, 0.0), model=name, dtype=dtype)
        async with service.using((name,), call):
            entry = service.directory.entry(name)
    else:
        entry = await service.directory.load(name, max(call.remaining, 0.0), dtype)
    call.model = entry.variant.name
    if entry.state != READY and entry.error is not None and not entry.error.retryable:
        raise entry.error
    return await answer(card(entry), call, status=200 if entry.state == READY else 202)


@router.post("/{name}/unload", **page(model_schemas.ModelCard, "The model is not loaded any more.", 404, 503, named=True))
async def unload_model(request: Request) -> Response:
    """Unloads a model; what it is evaluating is finished first."""
    service, call = service_of(request), call_of(request)
    if service.directory.on_demand and service.residency.connected:
        name = service.directory.entry(_name(request)).variant.name
        await service.residency.do("unload", LOAD_SECONDS, model=name)
        await service.directory.poll()
        entry = service.directory.entry(name)
    else:
        entry = await service.directory.unload(_name(request))
    call.model = entry.variant.name
    return await answer(card(entry), call)


def card(entry: Entry) -> dict[str, Any]:
    """What is told of one model."""
    variant, family, report = entry.variant, entry.family, entry.report
    served = entry.state == READY
    return {
        "name": variant.name,
        "service": family.name,
        "url": f"/api/v1/models/{variant.name}",
        "state": entry.state,
        "error": None if entry.error is None else entry.error.as_dict(),
        "summary": variant.summary,
        "aliases": list(variant.aliases),
        "elements": [chemical_symbols[number] for number in variant.elements],
        "heads": list(variant.heads),
        "default_head": variant.default_head or None,
        "outputs": [spec.name for spec in output_specs(variant.extra_outputs)],
        "functional": variant.functional,
        "head_functionals": dict(variant.head_functionals),
        "training_data": variant.training_data,
        "cutoff": variant.cutoff,
        "dtype": entry.dtype,
        "dtypes": list(variant.dtypes),
        "direct_forces": variant.direct_forces,
        "uses_charge": variant.uses_charge,
        "uses_spin": variant.uses_spin,
        "dispersion": variant.dispersion,
        "licence": variant.licence,
        "source": variant.checkpoint.source,
        "needs": _needs(entry),
        "package": family.package,
        "package_version": family.version,
        "reference": family.reference,
        "checkpoint": variant.checkpoint.file,
        "checkpoint_sha256": variant.checkpoint.sha256 or None,
        "device": report.device if served else None,
        "memory_usage_mb": report.memory_mb if served else None,
        "load_seconds": report.seconds if served else None,
        "gate": report.gate if served else None,
    }


def _needs(entry: Entry) -> list[str]:
    """What stands between a model and its being loaded, in the words of ``model_schemas.NEEDS``."""
    variant = entry.variant
    if entry.state != MISSING or variant.checkpoint.source != "download":
        return []
    return ["download", *(["token"] if variant.token else []), *(["licence"] if variant.consent else [])]


def _name(request: Request) -> str:
    return str(request.path_params["name"])
