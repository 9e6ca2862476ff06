"""Bodies on the wire: media types, limits, and answers that come back as they went out."""

from __future__ import annotations

import asyncio
import time

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from forcegate import arrays
from forcegate.errors import BodyTooLarge, DeadlineExceeded, Overloaded, UnsupportedMediaType
from frontend.admission import SMALL_BODY, Admission
from frontend.bodies import Shared, answer, encode, error_response, media_type, read_body, wants_msgpack
from frontend.telemetry import Call

ROOM = 10 * SMALL_BODY


def scope(content_type: str | None) -> dict[str, object]:
    return {"type": "http", "headers": [] if content_type is None else [(b"content-type", content_type.encode())]}


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, "json"),
        ("application/json", "json"),
        ("application/json; charset=utf-8", "json"),
        ("Application/JSON", "json"),
        ("application/problem+json", "json"),
        ("application/msgpack", "msgpack"),
        ("application/x-msgpack", "msgpack"),
        ("application/vnd.msgpack", "msgpack"),
    ],
)
def test_media_type(content_type: str | None, expected: str) -> None:
    assert media_type(scope(content_type)) == expected


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_other_media_types_are_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        media_type(scope(content_type))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/msgpack", True),
        ("application/x-msgpack, */*", True),
        ("application/msgpack, application/json", False),
        ("application/json;q=0.5, application/msgpack", True),
        ("application/msgpack;q=0.1, application/json;q=0.2", False),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=nonsense", False),
    ],
)
def test_accept(accept: str, expected: bool) -> None:
    assert wants_msgpack(accept) is expected


def request_of(chunks: list[bytes], headers: dict[str, str] | None = None, pause: float = 0.0) -> tuple[Request, list[bytes]]:
    left = list(chunks)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(pause)
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    raw = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
    return Request({"type": "http", "headers": raw}, receive), left


def call(seconds: float = 10) -> Call:
    made = Call("test", time.perf_counter())
    made.allow(seconds)
    return made


def test_a_body_is_read_whole() -> None:
    request, _ = request_of([b"ab", b"", b"cd"])
    assert asyncio.run(read_body(request, call(), Admission(1, ROOM), 4)) == b"abcd"


def test_a_body_that_says_it_is_too_long_is_not_read_at_all() -> None:
    request, left = request_of([b"x" * 10], {"content-length": "10"})
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_body(request, call(), Admission(1, ROOM), 9))
    assert len(left) == 1


def test_a_body_of_unknown_length_is_read_to_the_limit_and_no_further() -> None:
    request, left = request_of([b"x" * 6, b"x" * 6, b"x" * 6])
    with pytest.raises(BodyTooLarge):
        asyncio.run(read_body(request, call(), Admission(1, ROOM), 9))
    assert len(left) == 1


def test_a_body_that_trickles_in_meets_the_deadline() -> None:
    request, _ = request_of([b"x"] * 100, pause=0.02)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(read_body(request, call(0.1), Admission(1, ROOM), 1000))


@pytest.mark.parametrize("chunks", [[b"x", b"y"], [b"", b"x"]], ids=["stops", "never starts"])
def test_a_body_of_which_nothing_comes_is_given_up_before_the_deadline(
    chunks: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.bodies.SILENCE_SECONDS", 0.05)
    request, _ = request_of(chunks, pause=3)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        asyncio.run(read_body(request, call(), Admission(1, ROOM), 1000))
    assert time.monotonic() - started < 1
    assert error_response(caught.value, "").headers["connection"] == "close"


def test_a_body_that_comes_slowly_but_steadily_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.bodies.SILENCE_SECONDS", 0.5)
    request, _ = request_of([b"x"] * 12, pause=0.1)
    assert asyncio.run(read_body(request, call(), Admission(1, ROOM), 1000)) == b"x" * 12


def test_large_bodies_are_bounded_together_and_small_ones_are_not() -> None:
    admission = Admission(1, 3 * SMALL_BODY)
    with admission.body() as one, admission.body() as other, admission.body() as small:
        one(2 * SMALL_BODY)
        small(SMALL_BODY)
        with pytest.raises(Overloaded):
            other(2 * SMALL_BODY)
    assert admission.bytes == 0


def test_the_connection_is_closed_where_the_body_was_not_read_and_waiting_is_advised_where_it_helps() -> None:
    assert error_response(BodyTooLarge("too long"), "").headers["connection"] == "close"
    assert error_response(Overloaded("full"), "", retry_after=7).headers["retry-after"] == "7"
    assert "retry-after" not in error_response(UnsupportedMediaType("no"), "").headers


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_every_float_comes_back_as_it_went_out(values: list[float]) -> None:
    array = np.array(values)
    assert orjson.loads(encode({"x": array}, False))["x"] == values
    assert msgpack.unpackb(encode({"x": array}, True))["x"] == values


@pytest.mark.parametrize(
    ("accept", "raw"),
    [
        ("application/msgpack; arrays=raw", True),
        ("application/json;q=0.1, application/x-msgpack;arrays=raw", True),
        ("application/msgpack", False),
        ("application/msgpack; arrays=lists", False),
        ("application/json; arrays=raw", False),
    ],
)
def test_arrays_travel_as_bytes_only_when_that_is_asked_for(accept: str, raw: bool) -> None:
    forces = np.random.default_rng(0).normal(size=(5, 3))
    made = call()
    made.accept, made.atoms = accept, 5
    response = asyncio.run(answer({"forces": forces[:, ::-1], "energy": 1.0}, made))
    if "msgpack" not in accept:
        assert orjson.loads(response.body)["forces"] == forces[:, ::-1].tolist()
        return
    read = msgpack.unpackb(response.body, strict_map_key=False)
    assert isinstance(read["forces"], dict) == raw
    assert (response.media_type == "application/msgpack; arrays=raw") == raw
    np.testing.assert_array_equal(arrays.unpacked(read["forces"]) if raw else read["forces"], forces[:, ::-1])


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("atoms", [1, 10_000])
def test_short_and_long_answers_are_the_same_in_both_formats(accept: str, atoms: int) -> None:
    forces = np.random.default_rng(0).normal(size=(atoms, 3))
    made = call()
    made.accept, made.atoms = accept, 2 * atoms
    shared = Shared({"model": "m"})
    value = {"results": [{"forces": forces}, {"forces": forces[:, ::-1]}], "stress": None, "provenance": shared}
    response = asyncio.run(answer(value, made))
    read = (msgpack.unpackb if "msgpack" in accept else orjson.loads)(response.body)
    assert response.media_type == accept
    assert read["provenance"] == {"model": "m"}
    assert read["stress"] is None
    np.testing.assert_array_equal(read["results"][1]["forces"], forces[:, ::-1])
