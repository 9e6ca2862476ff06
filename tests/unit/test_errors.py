"""Every typed error survives its way through Triton, a pickle and JSON."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from forcegate import errors
from forcegate.errors import BY_CODE, ForcegateError, from_wire

ALL = sorted(BY_CODE.values(), key=lambda kind: kind.code)


def classes(base: type[ForcegateError]) -> list[type[ForcegateError]]:
    return [base, *(found for child in base.__subclasses__() for found in classes(child))]


def test_every_class_has_a_code_of_its_own() -> None:
    # Elsewhere a class may refine one of these, under its code: on its way it is the one with that code.
    here = {kind for kind in classes(ForcegateError) if kind.__module__ == errors.__name__}
    assert sorted(kind.__name__ for kind in here) == sorted(kind.__name__ for kind in BY_CODE.values())


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_codes_and_statuses(kind: type[ForcegateError]) -> None:
    assert re.fullmatch(r"[a-z_]+", kind.code)
    assert 400 <= kind.status < 600
    # A task that goes on is to be asked for: the same request again would be a second one.
    # Structures stay until somebody removes one.
    passes = kind.status in (429, 503, 504) and kind not in (errors.TaskContinues, errors.TooManyStructures)
    assert kind.retryable == passes, "what passes by itself, and nothing else, may be tried again"
    assert kind.__doc__


@pytest.mark.parametrize("hint", [None, "", "Do that instead."])
@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "[request id: 7] {}",
        "in ensemble 'e', {}",
        "Failed to process the request(s) for model 'sevennet-0_0_0', message: {}",
        "failed to load 'x' version 1: Internal: TritonModelException: {}\n\nAt:\n  model.py(64): _fail\n",
        "{};",
    ],
)
def test_through_triton(frame: str, kind: type[ForcegateError], hint: str | None) -> None:
    """Whatever Triton writes around it."""
    sent = kind("Atom 3: 0.05 A from atom 4 (see http://x: y).", hint)
    found = from_wire(frame.format(sent.to_wire()))
    assert type(found) is kind
    assert found.detail == sent.detail
    assert found.hint == sent.hint


def test_the_line_has_no_breaks() -> None:
    error = errors.EvaluationFailed("two\nlines\tand  more", "and\nhere")
    assert "\n" not in error.to_wire()
    found = from_wire(error.to_wire())
    assert found is not None
    assert (found.detail, found.hint) == ("two lines and more", "and here")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Stub process 'x_0_0' is not healthy.",
        "Request for unknown model: 'x' is not found",
        "[StatusCode.UNAVAILABLE] failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connection refused",
        "unexpected shape for input 'numbers': [1]",
        "message: KeyError: 'positions'",
        "some_other_code: words",
    ],
)
def test_what_is_tritons_own_is_left_to_others(text: str) -> None:
    assert from_wire(text) is None


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_as_json_and_as_a_pickle(kind: type[ForcegateError]) -> None:
    error = kind("What is wrong.", "What to do.")
    error.request_id = "7"
    body = json.loads(json.dumps(error.as_dict()))
    assert body == {"detail": "What is wrong.", "code": kind.code, "retryable": kind.retryable, "hint": "What to do."}
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.detail, copy.hint, copy.request_id) == (error.detail, error.hint, "7")
    assert str(error) == "What is wrong. What to do."


def test_the_default_hint() -> None:
    assert errors.EmptyStructure("Nothing.").hint == errors.EmptyStructure.default_hint
    assert errors.EmptyStructure("Nothing.", "").hint == ""
    assert str(errors.EmptyStructure("Nothing.", "")) == "Nothing."
