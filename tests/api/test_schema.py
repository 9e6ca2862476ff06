"""Whatever openapi.json allows, and what it does not, is answered as it says: schemathesis over the live service."""

from __future__ import annotations

from typing import Any

import httpx
import msgpack
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.service import ROOT, RunningService

# Whether a structure makes sense (as many symbols as positions, atoms apart from each other) is beyond a JSON schema, so
# `positive_data_acceptance` is not among the checks.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]


ERROR = {"detail", "code", "retryable", "hint", "points", "task_id", "status_url"}
"""What an error may hold."""


@schemathesis.check
def answers_are_typed(_context: CheckContext, response: Any, _case: schemathesis.Case) -> None:
    """No 500 ever. 503 and 504 only with the word that trying again can help: a deadline of a microsecond is a valid one."""
    assert response.status_code not in (500, 501, 502), response.text
    if response.status_code >= 400:
        body = _value(response)
        assert {"detail", "code", "retryable", "hint"} <= set(body) <= ERROR
        # A task that goes on is to be asked for; the same request again would be a second one. Structures stay until somebody
        # removes one.
        stay = body["code"] in ("task_continues", "too_many_structures")
        assert body["retryable"] == (response.status_code in (429, 503, 504) and not stay)


def _value(response: Any) -> Any:
    msgpacked = "msgpack" in response.headers["content-type"][0]
    return msgpack.unpackb(response.content) if msgpacked else response.json()


@schemathesis.serializer("application/msgpack")
def _msgpack(_context: Any, value: Any) -> bytes:
    return msgpack.packb(value, default=str)


@schemathesis.deserializer("application/msgpack")
def _from_msgpack(_context: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content)


SHORT: dict[str, float] = {
    "max_steps": 5,
    "equilibration_steps": 5,
    "production_steps": 20,
    "sample_interval": 20,
    "num_points": 7,
    "num_strains": 2,
    "mesh_length": 20,
    "supercell_length": 8,
    "orientations": 2,
    "count": 5,
    "relax_best": 2,
}


def _shorten(values: Any) -> None:
    """Replaces what is valid and large by what is valid and small."""
    if isinstance(values, dict):
        for name, most in SHORT.items():
            if isinstance(values.get(name), int | float) and not isinstance(values[name], bool) and values[name] > most:
                values[name] = most
        if isinstance(values.get("supercell"), list) and all(type(each) is int and each > 0 for each in values["supercell"]):
            values["supercell"] = [min(each, 2) for each in values["supercell"]]


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """Names of models that exist, so that what comes after the name is reached too; and nothing that takes long."""
    if isinstance(body, dict):
        for values in (body, body.get("task_params")):
            _shorten(values)
    if isinstance(body, dict) and isinstance(body.get("model_name"), str):
        return body | {"model_name": "lj-argon"}
    if (
        isinstance(body, dict)
        and isinstance(names := body.get("model_names"), list)
        and all(isinstance(name, str) for name in names)
    ):
        return body | {"model_names": ["lj-argon", *(name for name in names[1:])]} if names else body
    return body


schema = schemathesis.openapi.from_path(
    ROOT / "docs" / "openapi.json"
)  # the served one is the same: tests/unit/test_gateway_app.py


def _ask(case: schemathesis.Case, service: RunningService, excluded: list[Any]) -> None:
    """Asks and checks the answer. Nobody waits for a task that was accepted, or that goes on behind a 504: it is cancelled, or it
    would take the time of the tests that follow, and be counted by them."""
    response = case.call_and_validate(base_url=service.url, checks=[*CHECKS, answers_are_typed], excluded_checks=excluded)
    if response.status_code in (202, 504) and (task := _value(response).get("task_id")) is not None:
        httpx.post(f"{service.url}/api/v1/tasks/{task}/cancel", timeout=30).raise_for_status()


UNKNOWN_HEADER = "x-schemathesis-unknown-property"

QUEUED = "/api/v1/(tasks/.+|optimization|stability|bulk_modulus|heat_capacity|elasticity|interaction_energy|qmof_energy)$"
"""Operations of the queue, many and alike: fewer examples of each do."""


@schema.include(path_regex=QUEUED).parametrize()
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_queue_answers_as_it_is_documented(case: schemathesis.Case, service: RunningService) -> None:
    if isinstance(case.body, dict) and not any(name.lower() == "x-forcegate-timeout" for name in case.headers):
        case.headers["X-Forcegate-Timeout"] = "5"
    # In a batch a malformed structure fails alone; and a header that nobody knows is no reason to refuse a request.
    accepted = case.path == "/api/v1/tasks/batch" or UNKNOWN_HEADER in case.headers
    excluded = [negative_data_rejection] if accepted else []
    _ask(case, service, excluded)


@schema.exclude(path_regex=f"/(load|unload)$|{QUEUED}").parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation_answers_as_it_is_documented(case: schemathesis.Case, service: RunningService) -> None:
    # In a batch a malformed structure fails alone, with the request's status 200: that is its purpose.
    _ask(case, service, [negative_data_rejection] if case.path == "/api/v1/batch" else [])


@schema.include(path_regex="/(load|unload)$").parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_loading_and_unloading_what_does_not_exist(case: schemathesis.Case, service: RunningService) -> None:
    """Names that exist would take the models away from the other tests; tests/api/test_models.py loads and unloads."""
    case.path_parameters["name"] = "no-" + "".join(c for c in str(case.path_parameters.get("name", "")) if c.isalnum())
    _ask(case, service, [negative_data_rejection])
