"""What the operations of tasks take and answer, as keyword arguments of their routes; see ``frontend.documentation``."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from frontend import task_schemas
from frontend.bodies import JSON, MSGPACK
from frontend.documentation import ROCK_SALT, TIMEOUT, answers, errors, reference
from frontend.tasks.kinds import KINDS, Kind
from frontend.tasks.task import Status

_TASK: Final = {
    "name": "task_id",
    "in": "path",
    "required": True,
    "description": "Id of a task.",
    "schema": {"type": "string", "minLength": 1},
}
USER: Final = {
    "name": "X-Forcegate-User",
    "in": "header",
    "required": False,
    "description": "Whose task it is; the address that the request comes from when left out. Limits are counted by it. "
    "Not read where API keys are needed: the task is the key's user's.",
    "schema": {"type": "string", "pattern": r"^[A-Za-z0-9._@:\-]{1,100}$"},
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same as `options.idempotency_key`, which goes before it.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}
_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "optimization": {"fmax": 0.01},
    "stability": {"temperature": 300, "pressure": 1, "production_steps": 2000},
    "heat-capacity": {"supercell": None},
    "elasticity": {"relax_cell": True},
    "interaction-energy": {"guest": "CO2", "spacing": 2.0},
    "batch": {"task": "optimization", "task_params": {"fmax": 0.02}},
    "multi-model": {"task": "bulk_modulus", "task_params": {"relax_cell": True}},
}


def queued(kind: Kind) -> dict[str, Any]:
    """Of an operation that queues a task."""
    accepted = answers(task_schemas.TaskAccepted, "The task is in the queue.")
    accepted["headers"] = {"Location": {"description": "Where the task is.", "schema": {"type": "string"}}}
    return _submitted(kind, {202: accepted}, 400, 404, 409, 413, 422, 429, 503, 504) | {"status_code": 202}


def waited_calculation(kind: Kind) -> dict[str, Any]:
    """Of an operation that queues a task and waits for it."""
    answered = answers(task_schemas.results()[kind.name], "The answer.")
    return _submitted(kind, {200: answered}, 400, 404, 409, 413, 422, 429, 503, 504)


def of_task(answer: type[BaseModel], description: str, *statuses: int, named: bool = True) -> dict[str, Any]:
    """Of an operation on one task."""
    return {
        "response_model": None,
        "responses": {200: answers(answer, description)} | errors(*((404,) if named else ()), *statuses, 503),
        "openapi_extra": {"parameters": [_TASK]} if named else None,
    }


def listing() -> dict[str, Any]:
    """Of the list of tasks."""
    words = [status.value for status in Status]
    kinds = sorted({*KINDS, *(name.replace("-", "_") for name in KINDS)})
    parameters = [
        query("status", "State.", {"type": "string", "enum": words}),
        query("kind", "Kind.", {"type": "string", "enum": kinds}),
        query("model", "Name or alias of a model.", {"type": "string"}),
        query("user", "Whose tasks; `me` for those of the one who asks.", {"type": "string", "maxLength": 200}),
        query("limit", "Tasks of a page.", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}),
        query("offset", "Tasks before the page.", {"type": "integer", "minimum": 0, "maximum": 10**9, "default": 0}),
        USER,
    ]
    return {
        "response_model": None,
        "responses": {200: answers(task_schemas.TaskList, "One page.")} | errors(400, 404, 503),
        "openapi_extra": {"parameters": parameters},
    }


def streamed(media: str, description: str, after: bool = False, format: bool = False, artifact: bool = False) -> dict[str, Any]:
    """Of an operation whose answer is no JSON."""
    from frontend.tasks.formats import FORMATS

    parameters: list[dict[str, Any]] = [_TASK]
    number = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
    if after:
        parameters.append(query("after", "Number of the last event that was seen.", number))
        parameters.append(query("Last-Event-ID", "The same, as browsers send it.", number) | {"in": "header"})
    if format:
        parameters.append(query("format", "Format of the file.", {"type": "string", "enum": list(FORMATS), "default": "extxyz"}))
    if artifact:
        parameters.append(_TASK | {"name": "name", "description": "Name of a file in the list."})
    good = {"description": description, "content": {media: {"schema": {"type": "string"}}}}
    return {
        "response_model": None,
        "responses": {200: good} | errors(*((400,) if after or format else ()), 404, 503),
        "openapi_extra": {"parameters": parameters},
    }


def _submitted(kind: Kind, good: dict[int | str, dict[str, Any]], *statuses: int) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": reference(task_schemas.requests()[kind.name])}
    example: dict[str, Any] = {"model_name": "sevennet-0", "atoms": ROCK_SALT} | _EXAMPLES.get(kind.name, {})
    if kind.name == "batch":
        example["atoms"] = [ROCK_SALT]
    if kind.name == "multi-model":
        example["model_names"] = [example.pop("model_name"), "chgnet-0.3.0"]
    return {
        "response_model": None,
        "responses": good | errors(*statuses),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {JSON: body | {"examples": {"rock salt": {"value": example}}}, MSGPACK: body},
            },
            "parameters": [TIMEOUT, USER, _KEY],
        },
    }


def query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter in the query of an address."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
