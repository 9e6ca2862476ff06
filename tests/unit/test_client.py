"""The REST clients: what they send, what they make of errors, when they try again. The transport is scripted."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from forcegate import AsyncClient, Client, errors
from forcegate.structure import from_atoms
from frontend.bodies import encode
from frontend.requests import Limits, SinglePoint, decode

GOOD = httpx.Response(200, json={"energy": -1.5})


def refusal(error: errors.ForcegateError, **headers: str) -> httpx.Response:
    return httpx.Response(error.status, json=error.as_dict(), headers=headers)


class Script:
    """Answers requests with ``answers``, first to last; the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        client = Client("http://gateway", **options)
        client.http = httpx.Client(transport=httpx.MockTransport(self))
        return client


def test_a_structure_goes_out_in_the_rest_form() -> None:
    script = Script(GOOD)
    atoms = molecule("H2O")
    atoms.info["charge"] = 1
    assert script.client().single_point(atoms, "sevennet-0", head="a", compute_stress=False) == {"energy": -1.5}
    (request,) = script.requests
    body = json.loads(request.content)
    assert request.url.path == "/api/v1/single_point"
    assert body["model_name"] == "sevennet-0"
    assert (body["head"], body["compute_stress"]) == ("a", False)
    assert body["atoms"]["symbols"] == ["O", "H", "H"]
    assert body["atoms"]["charge"] == 1
    assert body["atoms"]["cell"] is None


@pytest.mark.parametrize("form", ["atoms", "structure", "mapping", "path"])
def test_every_description_of_a_structure_sends_the_same(form: str, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    path = tmp_path / "POSCAR"
    atoms.write(path, format="vasp")
    mapping = {"symbols": ["Cu"] * 4, "positions": atoms.positions.tolist(), "cell": atoms.cell.tolist(), "pbc": [True] * 3}
    forms = {"atoms": atoms, "structure": from_atoms(atoms), "path": path, "mapping": mapping}
    script = Script(httpx.Response(200, json={"results": []}))
    script.client().batch([forms[form]], "m")
    assert json.loads(script.requests[0].content)["atoms"] == [mapping]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.cif"
    path.write_text("nothing")
    with pytest.raises(errors.InvalidStructure, match=r"broken\.cif cannot be read"):
        Script(GOOD).client().single_point(path, "m")


def test_msgpack_both_ways() -> None:
    script = Script(httpx.Response(200, content=msgpack.packb({"energy": 2.0}), headers={"Content-Type": "application/msgpack"}))
    assert script.client(encoding="msgpack").single_point(bulk("Cu"), "m") == {"energy": 2.0}
    request = script.requests[0]
    assert request.headers["Content-Type"] == "application/msgpack"
    assert request.headers["Accept"] == "application/msgpack; arrays=raw"
    assert msgpack.unpackb(request.content, strict_map_key=False)["model_name"] == "m"


def test_msgpack_carries_arrays_as_their_bytes() -> None:
    forces = np.random.default_rng(1).normal(size=(4, 3))
    content = encode({"energy": 2.0, "forces": forces, "stress": None}, True, raw=True)
    script = Script(httpx.Response(200, content=content, headers={"Content-Type": "application/msgpack; arrays=raw"}))
    atoms = bulk("Cu", cubic=True)
    answer = script.client(encoding="msgpack").single_point(atoms, "m")
    np.testing.assert_array_equal(answer["forces"], forces)
    assert answer["stress"] is None
    answer["forces"] -= 1.0  # an array of one's own
    sent = decode("single_point", script.requests[0].content, "msgpack", Limits(max_batch=4, max_atoms=10))
    assert isinstance(sent, SinglePoint)
    np.testing.assert_array_equal(sent.structure.positions, atoms.positions)
    np.testing.assert_array_equal(sent.structure.numbers, atoms.numbers)
    np.testing.assert_array_equal(sent.structure.cell, atoms.cell.array)
    assert sent.structure.pbc.all()


def test_an_error_keeps_its_type_its_words_and_its_request() -> None:
    script = Script(refusal(errors.CoincidentAtoms("Atoms 0 and 1 are the same.", "Remove one."), **{"X-Request-ID": "abc"}))
    with pytest.raises(errors.CoincidentAtoms) as caught:
        script.client().single_point(bulk("Cu"), "m")
    assert (caught.value.detail, caught.value.hint, caught.value.request_id) == (
        "Atoms 0 and 1 are the same.",
        "Remove one.",
        "abc",
    )
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "answer", [refusal(errors.ModelCrashed("gone")), refusal(errors.Overloaded("full")), httpx.ReadError("reset")]
)
def test_what_can_pass_is_tried_again(answer: httpx.Response | Exception) -> None:
    script = Script(answer, answer, GOOD)
    assert script.client(timeout=10).single_point(bulk("Cu"), "m") == {"energy": -1.5}
    assert len(script.requests) == 3


def test_retry_after_is_honoured() -> None:
    script = Script(refusal(errors.Overloaded("full"), **{"Retry-After": "1"}), GOOD)
    start = time.monotonic()
    script.client(timeout=10).single_point(bulk("Cu"), "m")
    assert 1.0 <= time.monotonic() - start < 2.0


def test_the_last_error_is_raised_when_no_time_is_left() -> None:
    script = Script(refusal(errors.Overloaded("full"), **{"Retry-After": "30"}))
    start = time.monotonic()
    with pytest.raises(errors.Overloaded):
        script.client(timeout=5).single_point(bulk("Cu"), "m")
    assert time.monotonic() - start < 1.0, "a wait that is longer than the time left is not begun"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (httpx.ConnectError("refused"), errors.ServerUnavailable, "forcegate serve"),
        (httpx.ReadTimeout("late"), errors.DeadlineExceeded, "did not answer within"),
        (httpx.Response(200, text="<html>"), errors.ForcegateError, "not Forcegate's"),
        (httpx.Response(404, json={"detail": "Not Found"}), errors.ForcegateError, "Not Found"),
    ],
)
def test_what_is_no_answer_of_ours(answer: httpx.Response | Exception, kind: type[errors.ForcegateError], words: str) -> None:
    with pytest.raises(kind, match=words):
        Script(answer).client(timeout=5, connect_timeout=0.3).health()


def test_a_code_from_a_newer_service_keeps_its_word_on_retrying() -> None:
    answer = httpx.Response(503, json={"detail": "Moving.", "code": "moving", "retryable": True, "hint": ""})
    script = Script(answer, httpx.Response(200, json={"models": []}))
    assert script.client().models() == []
    assert len(script.requests) == 2


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="is not an address"), Client("127.0.0.1:8000") as client:
        client.health()


def test_asynchronous_calls_run_side_by_side() -> None:
    running = most = 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return httpx.Response(200, json={"energy": 1.0})

    async def work() -> list[Any]:
        async with AsyncClient("http://gateway") as client:
            client.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
            return await asyncio.gather(*(client.single_point(Atoms("Ar"), "m") for _ in range(8)))

    assert asyncio.run(work()) == [{"energy": 1.0}] * 8
    assert most == 8


def test_asynchronous_retries_and_errors() -> None:
    script = Script(refusal(errors.ModelNotReady("loading")), refusal(errors.UnknownHead("no head")))

    async def work() -> None:
        async with AsyncClient("http://gateway") as client:
            client.http = httpx.AsyncClient(transport=httpx.MockTransport(script))
            await client.multi_model(Atoms("Ar"), ["a", "b"], heads={"a": "x"})

    with pytest.raises(errors.UnknownHead):
        asyncio.run(work())
    assert len(script.requests) == 2
    assert json.loads(script.requests[0].content)["task_params"] == {"heads": {"a": "x"}}


def test_structures_are_uploaded_and_named(tmp_path: Path) -> None:
    kept = {"structure_id": "0123456789abcdef" * 2, "formula": "Cu", "preview": {}}
    script = Script(httpx.Response(201, json=kept))
    path = tmp_path / "copper.vasp"
    bulk("Cu").write(path, format="vasp")
    for encoding in ("json", "msgpack"):
        client = script.client(encoding=encoding)
        assert client.upload(path) == kept
        for form in (kept["structure_id"], kept):
            client.single_point(form, "m")
            client.submit("batch", [form], "m")
    client = script.client()
    for call in (client.structure, client.delete_structure):
        call(kept["structure_id"])
    loads = {"application/json": json.loads, "application/msgpack": msgpack.unpackb}
    bodies = [loads[request.headers["content-type"]](request.content) for request in script.requests[:-2]]
    assert [body.get("name") for body in bodies] == ["copper.vasp", None, None, None, None] * 2
    named = {"structure_id": kept["structure_id"]}
    assert [body["atoms"] for body in bodies[1:5]] == [named, [named]] * 2
    assert [body["atoms"] for body in bodies[6:]] == [named, [named]] * 2
    assert [request.method for request in script.requests[-2:]] == ["GET", "DELETE"]
    pages = Script(httpx.Response(200, json={"total": 1, "structures": [kept]}))
    assert pages.client().structures(limit=1) == [kept]
    assert pages.requests[0].url.query == b"limit=1&offset=0"


def results(*answers: dict[str, Any] | errors.ForcegateError) -> httpx.Response:
    """The answer of a batch."""
    each = [{"error": answer.as_dict()} if isinstance(answer, errors.ForcegateError) else answer for answer in answers]
    return httpx.Response(200, json={"results": [{"index": place, **answer} for place, answer in enumerate(each)]})


@pytest.mark.parametrize("way", [Client, AsyncClient])
def test_structures_of_a_batch_whose_error_can_pass_are_sent_again_alone(way: type[Client]) -> None:
    away, bad = errors.ModelNotReady("It is being brought back."), errors.CoincidentAtoms("Two atoms are one.")
    script = Script(results({"energy": 1.0}, away, bad, away), results(away, {"energy": 4.0}), results({"energy": 2.0}))
    given = [bulk("Cu", a=edge) for edge in (3.4, 3.5, 3.6, 3.7)]
    if way is Client:
        answers = script.client().batch(given, "m", head="a")
    else:
        client = AsyncClient("http://gateway")
        client.http = httpx.AsyncClient(transport=httpx.MockTransport(script))
        answers = asyncio.run(client.batch(given, "m", head="a"))
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    assert [answer.get("energy") for answer in answers] == [1.0, 2.0, None, 4.0]
    assert answers[2]["error"]["code"] == "coincident_atoms"
    bodies = [json.loads(request.content) for request in script.requests]
    assert [body["atoms"] for body in bodies[1:]] == [[bodies[0]["atoms"][k] for k in places] for places in ((1, 3), (1,))]
    assert {body["head"] for body in bodies} == {"a"}


def test_a_batch_keeps_the_errors_that_do_not_pass_in_time() -> None:
    away = errors.ModelNotReady("It is being brought back.")
    script = Script(results({"energy": 1.0}, away), results(away))
    answers = script.client(timeout=0.5).batch([bulk("Cu"), bulk("Ni")], "m")
    assert answers[0]["energy"] == 1.0
    assert answers[1]["error"]["code"] == "model_not_ready"
    assert len(script.requests) > 1
