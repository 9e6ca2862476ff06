"""What the operations on structures take and answer, as keyword arguments of their routes; see ``frontend.documentation``."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from frontend import structure_schemas as schemas
from frontend.bodies import JSON, MSGPACK
from frontend.documentation import ROCK_SALT, TIMEOUT, XYZ, answers, errors, reference
from frontend.schemas import Atoms, AtomsFile
from frontend.task_documentation import USER, query

_STRUCTURE: Final = {
    "name": "structure_id",
    "in": "path",
    "required": True,
    "description": "Id of a structure.",
    "schema": {"type": "string", "minLength": 1},
}


def upload() -> dict[str, Any]:
    """Of the upload."""
    shapes = (schemas.StructureUpload, Atoms, AtomsFile)
    body: dict[str, Any] = {"schema": {"anyOf": [reference(shape) for shape in shapes]}}
    examples = {"rock salt": {"value": {"atoms": ROCK_SALT, "name": "rock salt"}}, "a file's text": {"value": {"atoms": XYZ}}}
    content = {JSON: body | {"examples": examples}, MSGPACK: body, "multipart/form-data": {"schema": schemas.FORM}}
    where = {"Location": {"description": "Where the structure is.", "schema": {"type": "string"}}}
    good: dict[int | str, dict[str, Any]] = {
        201: answers(schemas.StructureKept, "It is kept.") | {"headers": where},
        200: answers(schemas.StructureKept, "It was there already, and is kept for longer.") | {"headers": dict(where)},
    }
    return {
        "response_model": None,
        "status_code": 201,
        "responses": good | errors(400, 413, 422, 429, 503, 504),
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": [TIMEOUT, USER]},
    }


def listing() -> dict[str, Any]:
    """Of the list."""
    parameters = [
        query("limit", "Structures of a page.", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}),
        query("offset", "Structures before the page.", {"type": "integer", "minimum": 0, "maximum": 10**9, "default": 0}),
        USER,
    ]
    return {
        "response_model": None,
        "responses": {200: answers(schemas.StructureList, "One page.")} | errors(400, 503),
        "openapi_extra": {"parameters": parameters},
    }


def one(answer: type[BaseModel], description: str) -> dict[str, Any]:
    """Of an operation on one structure."""
    return {
        "response_model": None,
        "responses": {200: answers(answer, description)} | errors(400, 404, 503),
        "openapi_extra": {"parameters": [_STRUCTURE, USER]},
    }
