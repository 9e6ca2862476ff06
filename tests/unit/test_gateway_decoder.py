"""Bodies in decoder processes: what is read there, and what a body that takes too long or a process that dies costs others."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import orjson
import pytest

from forcegate.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    ForcegateError,
    StructureTooLarge,
)
from frontend.decoder import INLINE, Decoder
from frontend.requests import Limits, SinglePoint
from frontend.telemetry import Call
from tests.unit.test_gateway_requests import ARGON, LIMITS


def call(seconds: float) -> Call:
    made = Call("test", time.perf_counter())
    made.allow(seconds)
    return made


def test_a_decoder_process_reads_what_the_event_loop_reads() -> None:
    rng = np.random.default_rng(0)
    atoms = {"symbols": ["Ar"] * 900, "positions": rng.normal(size=(900, 3)).tolist(), "cell": [30, 30, 30]}
    body = json.dumps({"model_name": "lj-argon", "atoms": atoms}).encode()
    text = {"model_name": "m", "atoms": {"format": "xyz", "text": "1\n\nAr 0 0 0\n"}}
    assert len(body) > INLINE

    async def both() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            record = await decoder.decode("single_point", body, "json", call(30))
            assert isinstance(record, SinglePoint)
            np.testing.assert_array_equal(record.structure.positions, atoms["positions"])
            assert len((await decoder.decode("single_point", orjson.dumps(text), "json", call(30))).structure) == 1  # type: ignore[union-attr]
            # Errors come back typed, and the process is there for the next body.
            with pytest.raises(StructureTooLarge, match="1800 atoms"):
                await decoder.decode("single_point", _doubled(body), "json", call(30))
            assert isinstance(await decoder.decode("single_point", body, "json", call(30)), SinglePoint)
        finally:
            await decoder.close()

    asyncio.run(both())


def _doubled(body: bytes) -> bytes:
    data = json.loads(body)
    data["atoms"]["symbols"] *= 2
    data["atoms"]["positions"] *= 2
    return json.dumps(data).encode()


def test_a_body_that_takes_too_long_costs_its_own_sender_alone() -> None:
    slow = json.dumps({"model_name": "m", "atoms": ARGON, "padding": "[]" * 3_000_000}).encode()

    async def scene() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            await decoder.warm()
            with pytest.raises(DeadlineExceeded):
                await decoder.decode("single_point", slow, "json", call(0.001))
            record = await decoder.decode("single_point", slow, "json", call(60))
            assert isinstance(record, SinglePoint)
        finally:
            await decoder.close()

    asyncio.run(scene())


def test_a_decoder_that_is_killed_is_replaced() -> None:
    body = json.dumps({"model_name": "m", "atoms": ARGON, "padding": "x" * 20_000_000}).encode()

    async def scene() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            await decoder.warm()
            task = asyncio.create_task(decoder.decode("single_point", body, "json", call(60)))
            await asyncio.sleep(0)
            (process,) = decoder.running
            process.kill()
            with pytest.raises(BodyTooLarge):
                await task
            assert isinstance(await decoder.decode("single_point", body, "json", call(60)), SinglePoint)
        finally:
            await decoder.close()

    asyncio.run(scene())


def test_two_cancellations_at_once_do_not_lose_a_place() -> None:
    """The caller goes away at the moment of the deadline."""
    body = json.dumps({"model_name": "m", "atoms": ARGON, "padding": "[]" * 3_000_000}).encode()

    async def scene() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            await decoder.warm()
            task = asyncio.create_task(decoder.decode("single_point", body, "json", call(60)))
            await asyncio.sleep(0.01)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert isinstance(await decoder.decode("single_point", body, "json", call(20)), SinglePoint)
        finally:
            await decoder.close()

    asyncio.run(scene())


def test_a_decoder_that_cannot_be_started_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    body = orjson.dumps({"model_name": "m", "atoms": {"format": "xyz", "text": "1\n\nAr 0 0 0\n"}})

    async def scene() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            with monkeypatch.context() as patch:
                patch.setattr("sys.executable", "/nonexistent")
                with pytest.raises(FileNotFoundError):
                    await decoder.warm()
            assert isinstance(await decoder.decode("single_point", body, "json", call(20)), SinglePoint)
        finally:
            await decoder.close()

    asyncio.run(scene())


def test_every_error_survives_the_way_from_a_decoder_process() -> None:
    import pickle

    from forcegate.errors import BY_CODE

    for kind in BY_CODE.values():
        error = pickle.loads(pickle.dumps(kind("a detail", "a hint")))
        assert isinstance(error, ForcegateError)
        assert error.as_dict() == kind("a detail", "a hint").as_dict()


@pytest.mark.parametrize("name", [b'"text"', b'"te\\u0078t"', b'"\\u0074\\u0065xt"'])
def test_a_files_text_is_never_read_on_the_event_loop(name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    async def elsewhere(_self: Decoder, _calculation: str, body: bytes, *_: object) -> None:
        sent.append(body)

    monkeypatch.setattr(Decoder, "_in_process", elsewhere)
    body = b'{"model_name": "lj-argon", "atoms": {"format": "xyz", ' + name + b': "1\\n\\nAr 0 0 0"}}'
    asyncio.run(Decoder(Limits(max_batch=1, max_atoms=9)).decode("single_point", body, "json", Call("a", 0.0)))
    assert sent == [body]
