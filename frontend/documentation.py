"""openapi.json: what every operation takes and answers. ``python -m frontend.documentation`` writes docs/openapi.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forcegate.errors import BY_CODE, ForcegateError
from frontend import scheduler_schemas, schemas, structure_schemas, task_schemas
from frontend.bodies import JSON, MSGPACK
from frontend.requests import Calculation
from frontend.security.access import needed

COMMITTED: Final = Path("docs/openapi.json")

DESCRIPTION: Final = """\
Machine-learned force fields, served from NVIDIA Triton: one contract for every family, the same units, signs and periodicity rules.

* Energies in eV, lengths in A, forces in eV/A, stress in eV/A^3 (Voigt xx yy zz yz xz xy, ASE's sign).
* Bodies and answers are JSON, or msgpack by `Content-Type` and `Accept`.
* In msgpack an array may be its bytes, `{"nd": true, "type": "<f8", "kind": "", "shape": [N, 3], "data": ...}` as msgpack-numpy has
  it: in requests `positions`, `numbers`, `cell` and `pbc`; in answers where `Accept` is `application/msgpack; arrays=raw`.
* Errors are `{"detail", "code", "retryable", "hint"}`; `Retry-After` comes with 429 and 503.
* `X-Request-ID` is taken from the request or made, and comes back; it finds the request in the logs, the model's too.
"""

ARGON: Final = {"symbols": ["Ar", "Ar"], "positions": [[0.0, 0.0, 0.0], [0.0, 0.0, 3.8]]}
ROCK_SALT: Final = {
    "symbols": ["Na", "Cl"],
    "positions": [[0.0, 0.0, 0.0], [2.82, 2.82, 2.82]],
    "cell": [[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]],
}
XYZ: Final = {"format": "xyz", "text": "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"}

_REQUESTS: Final[dict[Calculation, tuple[type[BaseModel], type[BaseModel], dict[str, Any]]]] = {
    "single_point": (
        schemas.SinglePointRequest,
        schemas.SinglePointAnswer,
        {
            "rock salt": {"model_name": "sevennet-0", "atoms": ROCK_SALT},
            "a file's text, energy alone": {"model_name": "chgnet", "atoms": XYZ, "compute_forces": False, "compute_stress": False},
        },
    ),
    "batch": (
        schemas.BatchRequest,
        schemas.BatchAnswer,
        {"two structures": {"model_name": "sevennet-0", "atoms": [ROCK_SALT, XYZ]}},
    ),
    "multi_model": (
        schemas.MultiModelRequest,
        schemas.MultiModelAnswer,
        {"two models": {"model_names": ["sevennet-0", "chgnet-0.3.0"], "task": "single_point", "atoms": ROCK_SALT}},
    ),
}
_QUEUED: Final[dict[Calculation, tuple[type[BaseModel], ...]]] = {
    "batch": (task_schemas.BatchTaskAnswer,),
    "multi_model": (task_schemas.MultiModelTaskAnswer,),
}
"""The answers of anything but single points."""
TIMEOUT: Final = {
    "name": "X-Forcegate-Timeout",
    "in": "header",
    "required": False,
    "description": "Seconds within which an answer is wanted, retries included.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
}
_NAME: Final = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name or alias of a model.",
    "schema": {"type": "string", "minLength": 1},
}
_CONFLICT: Final = "The model cannot be loaded as things are, or what is asked for does not fit what is there."
SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `Authorization: Bearer fgk_...`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in a header of its own."},
}
_MEANING: Final = {
    400: "The body or a header cannot be read.",
    401: "The API key is missing, unknown, revoked or expired.",
    403: "The API key's scope is not enough.",
    404: "There is no such model, structure or task.",
    409: _CONFLICT,
    413: "The body or a structure is too large.",
    422: "The structure cannot be understood, or the model refuses it.",
    429: "More work is in flight, or more is kept, than the service accepts; see Retry-After.",
    503: "The model or the inference server does not answer at the moment; see Retry-After.",
    504: "There was no answer before the deadline; a task that goes on is named.",
}


def calculation(name: Calculation) -> dict[str, Any]:
    """The documentation of one calculation, as keyword arguments of its route."""
    request, answer, examples = _REQUESTS[name]
    body: dict[str, Any] = {"schema": reference(request)}
    return {
        "response_model": None,
        "responses": {200: answers(answer, "The answer.", *_QUEUED.get(name, ()))} | errors(400, 404, 409, 413, 422, 429, 503, 504),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {JSON: body | {"examples": {key: {"value": value} for key, value in examples.items()}}, MSGPACK: body},
            },
            "parameters": [TIMEOUT],
        },
    }


def page(
    answer: type[BaseModel],
    description: str,
    *statuses: int,
    named: bool = False,
    timed: bool = False,
    body: type[BaseModel] | None = None,
) -> dict[str, Any]:
    """The documentation of an operation that needs no body, as keyword arguments of its route; ``body`` may be sent."""
    parameters = ([_NAME] if named else []) + ([TIMEOUT] if timed else [])
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if body is not None:
        schema = {"schema": reference(body)}
        extra["requestBody"] = {"required": False, "content": {JSON: schema, MSGPACK: schema}}
    return {
        "response_model": None,
        "responses": {200: answers(answer, description)} | errors(*statuses),
        "openapi_extra": extra or None,
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error answers, with the codes that each status can carry."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        codes = sorted(code for code, kind in BY_CODE.items() if kind.status == status and kind is not ForcegateError)
        documented[status] = answers(schemas.Error, f"{_MEANING[status]} Codes: {', '.join(f'`{code}`' for code in codes)}.")
        if status in (429, 503):
            documented[status]["headers"] = {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
            }
    return documented


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Adds the schemas that the operations refer to, and the header that every answer has."""
    used = [
        kind for kind in vars(schemas).values() if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
    ]
    used += [*task_schemas.all_of_them(), *scheduler_schemas.ALL, *structure_schemas.ALL]
    _, definitions = models_json_schema([(kind, "validation") for kind in used], ref_template="#/components/schemas/{model}")
    document.setdefault("components", {})["schemas"] = dict(sorted(definitions["$defs"].items()))
    document["components"]["securitySchemes"] = SECURITY
    identifier = {"description": "The request's id.", "schema": {"type": "string"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _secure(path, method, operation)
            for response in operation["responses"].values():
                response.setdefault("headers", {})["X-Request-ID"] = identifier
    return document


def _secure(path: str, method: str, operation: dict[str, Any]) -> None:
    """What keys have to do with an operation: its scope, and the answers of those that do not suffice."""
    scope = needed(method.upper(), path)
    if scope is None:
        operation["security"] = []
        return
    # The empty one: on loopback no key is needed unless the administrator says so.
    operation["security"] = [{name: []} for name in SECURITY] + [{}]
    operation["description"] = f"{operation.get('description', '')}\n\nScope of the key, where keys are needed: `{scope}`.".strip()
    refusals = errors(401, 403, *(() if "429" in operation["responses"] else (429,)))
    operation["responses"] |= {str(status): refusal for status, refusal in refusals.items()}
    operation["responses"] = dict(sorted(operation["responses"].items()))


def answers(kind: type[BaseModel], description: str, *others: type[BaseModel]) -> dict[str, Any]:
    """The documentation of one answer, which may have one of several shapes."""
    schema = {"schema": {"anyOf": [reference(each) for each in (kind, *others)]} if others else reference(kind)}
    return {"description": description, "content": {JSON: schema, MSGPACK: schema}}


def reference(kind: type[BaseModel]) -> dict[str, str]:
    """A reference to a schema that ``complete`` adds."""
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def rendered() -> bytes:
    """The bytes of docs/openapi.json."""
    from frontend.app import create_app
    from frontend.settings import load

    return orjson.dumps(create_app(load()).openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    COMMITTED.write_bytes(rendered())
