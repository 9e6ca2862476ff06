"""/api/v1/structures: upload once, name by id."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from forcegate.errors import UnsupportedMediaType
from frontend import structure_documentation as documented
from frontend import structure_schemas as schemas
from frontend.bodies import ClientDisconnect, answer, media_type, read_body
from frontend.entries import no_structure
from frontend.requests import UPLOAD
from frontend.routes.calculations import Watch, timeout
from frontend.routes.submitting import user_of
from frontend.routes.tasks import LONGEST_PAGE, PAGE, number
from frontend.service import Service, call_of, service_of
from frontend.structures.store import ID, Kept
from frontend.tasks.answers import moment

router = APIRouter(prefix="/api/v1", tags=["Structures"])


@router.post("/structures", **documented.upload())
async def upload(request: Request) -> Response:
    """Keeps a structure, from a file (`multipart/form-data`) or as `atoms`, under an id that stands in place of `atoms`.

    The id is made of the structure and its owner: the same upload gives the same one, and puts off when it is removed.
    """
    service, call, user = service_of(request), call_of(request), user_of(request)
    call.allow(timeout(request, service.settings.deadline_seconds))
    media = _media(request)
    try:
        body = await read_body(request, call, service.admission, service.body_limit)
        with Watch(request, call):
            read = await service.decoder.decode(UPLOAD, body, media, call)
    except ClientDisconnect:
        call.gone = True
        return Response(status_code=400)  # nobody is there to read it
    call.atoms = read.atoms
    kept, new = await service.structures.keep(user, read)
    view = _view(service, kept) | {"preview": read.preview, "request_id": call.request_id}
    return await answer(view, call, 201 if new else 200, {"Location": f"/api/v1/structures/{kept.id}"})


@router.get("/structures", **documented.listing())
async def structures(request: Request) -> Response:
    """One's own structures, the newest first."""
    service = service_of(request)
    limit, offset = number(request, "limit", PAGE, 1, LONGEST_PAGE), number(request, "offset", 0, 0, 10**9)
    total, found = await service.structures.find(user_of(request), limit, offset)
    return await answer({"total": total, "structures": [_view(service, kept) for kept in found]}, call_of(request))


@router.get("/structures/{structure_id}", **documented.one(schemas.StructureWithAtoms, "The structure."))
async def structure(request: Request) -> Response:
    """One structure with its atoms."""
    service, call = service_of(request), call_of(request)
    kept, found = await service.structures.structure(user_of(request), _id(request))
    call.atoms = kept.atoms
    atoms: dict[str, Any] = {
        "symbols": found.to_atoms().get_chemical_symbols(),
        "positions": found.positions,
        "cell": found.cell if found.cell.any() else None,
        "pbc": found.pbc.tolist(),
        "charge": found.charge,
        "spin": found.spin,
    }
    return await answer(_view(service, kept) | {"atoms": atoms}, call)


@router.get("/structures/{structure_id}/preview", **documented.one(schemas.StructureWithPreview, "Its preview."))
async def preview(request: Request) -> Response:
    """Formula, cell, space group, and what looks wrong."""
    service = service_of(request)
    kept, found = await service.structures.preview(user_of(request), _id(request))
    return await answer(_view(service, kept) | {"preview": found}, call_of(request))


@router.delete("/structures/{structure_id}", **documented.one(schemas.StructureDeleted, "It is removed."))
async def delete(request: Request) -> Response:
    """Removes a structure. Tasks that were made of it have their own copy."""
    identifier = _id(request)
    await service_of(request).structures.delete(user_of(request), identifier)
    return await answer({"structure_id": identifier, "deleted": True}, call_of(request))


def _media(request: Request) -> str:
    """The format of the body; the whole Content-Type of a form, whose boundary is in it."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() == "multipart/form-data":
        return "multipart/form-data;" + given.partition(";")[2][:300]
    try:
        return media_type(request.scope)
    except UnsupportedMediaType as error:
        raise UnsupportedMediaType(error.detail, "Send multipart/form-data, application/json or application/msgpack.") from None


def _id(request: Request) -> str:
    identifier = str(request.path_params["structure_id"])
    if not ID.fullmatch(identifier):
        raise no_structure(identifier)
    return identifier


def _view(service: Service, kept: Kept) -> dict[str, Any]:
    return {
        "structure_id": kept.id,
        "name": kept.name,
        "formula": kept.formula,
        "natoms": kept.atoms,
        "uploaded_at": moment(kept.uploaded),
        "expires_at": moment(service.structures.expires(kept)),
    }
