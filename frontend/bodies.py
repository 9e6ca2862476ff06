"""Bodies on the wire: read with a limit, media types, and answers as JSON or msgpack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgpack
import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from forcegate import arrays
from forcegate.errors import BodyTooLarge, DeadlineExceeded, ForcegateError, TaskContinues, UnsupportedMediaType
from frontend.admission import Admission
from frontend.requests import MediaType
from frontend.telemetry import Call

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
_RAW: Final = f"{MSGPACK}; {arrays.PARAMETER}"
_MSGPACK_NAMES = frozenset((MSGPACK, "application/x-msgpack", "application/vnd.msgpack"))
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_INLINE_NUMBERS = 6_000
"""Answers with fewer numbers than this are encoded on the event loop: it takes less time than handing them to a thread."""

SILENCE_SECONDS = 10.0
"""A body of which nothing comes for so long is given up: it may have no sender any more, and the service waits for it to stop."""

__all__ = ["JSON", "MSGPACK", "ClientDisconnect", "Shared", "answer", "encode", "error_response", "media_type", "read_body"]


class BodyLate(DeadlineExceeded):
    """The body did not come in time. The connection is closed, as what was asked for may never end."""


class Shared:
    """A part that many answers have in common; its JSON is made once."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.value = dict(value)
        self.json = orjson.Fragment(orjson.dumps(self.value))


def media_type(scope: Scope) -> MediaType:
    """The format of a request's body.

    Raises:
        UnsupportedMediaType: it is neither JSON nor msgpack.
    """
    for name, value in scope["headers"]:
        if name == b"content-type":
            if value == b"application/json":
                return "json"
            kind = value.partition(b";")[0].strip().lower().decode("latin-1")
            if kind in _MSGPACK_NAMES:
                return "msgpack"
            if kind in ("", JSON) or (kind.startswith("application/") and kind.endswith("+json")):
                return "json"
            raise UnsupportedMediaType(f"The body's Content-Type is {kind[:60]!r}.")
    return "json"


async def read_body(request: Request, call: Call, admission: Admission, limit: int, receive: Receive | None = None) -> bytes:
    """The whole body of a request.

    Args:
        limit: bytes; a longer body is refused by its Content-Length, or at the first byte too many, and not read on.

    Raises:
        BodyTooLarge: it is longer than ``limit``.
        Overloaded: too many large bodies are being read at this moment.
        BodyLate: it did not come before the deadline, or nothing of it came for ``SILENCE_SECONDS``.
        ClientDisconnect: the client went away.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    receive = receive or request.receive
    chunks: list[bytes] = []
    size = 0
    now = asyncio.get_running_loop().time
    deadline = now() + max(call.remaining, 0.001)
    try:
        with admission.body() as grow:
            async with asyncio.timeout_at(min(deadline, now() + SILENCE_SECONDS)) as patience:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    if chunk := message.get("body", b""):
                        size += len(chunk)
                        if size > limit:
                            raise _too_large(limit)
                        grow(len(chunk))
                        chunks.append(chunk)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                    patience.reschedule(min(deadline, now() + SILENCE_SECONDS))
    except TimeoutError:
        raise BodyLate("The request's body did not arrive in time.") from None


def wants_msgpack(accept: str) -> bool:
    """Whether an Accept header prefers msgpack; JSON wins a tie and everything unclear."""
    if "msgpack" not in accept:
        return False
    best = {JSON: 0.0, MSGPACK: 0.0}
    for kind, *parameters in _accepted(accept):
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        name = MSGPACK if kind in _MSGPACK_NAMES else JSON if kind in (JSON, "application/*", "*/*") else None
        # A wildcard says that JSON will do too, not that it is wanted.
        if name is not None and (name == MSGPACK or kind == JSON):
            best[name] = max(best[name], quality)
    return best[MSGPACK] > best[JSON]


def wants_arrays(accept: str) -> bool:
    """Whether an Accept header that prefers msgpack wants arrays as their bytes: ``application/msgpack; arrays=raw``."""
    if arrays.PARAMETER not in accept:
        return False
    return any(kind in _MSGPACK_NAMES and arrays.PARAMETER in parameters for kind, *parameters in _accepted(accept))


def _accepted(accept: str) -> Iterator[list[str]]:
    """The entries of an Accept header: a media type and its parameters each."""
    return ([part.strip() for part in entry.split(";")] for entry in accept.lower().split(","))


def encode(value: Any, msgpacked: bool, raw: bool = False) -> bytes:
    """An answer as bytes; ``Shared`` parts are put in. Arrays become lists, or their bytes in msgpack where ``raw``."""
    if msgpacked:
        return cast(bytes, msgpack.packb(value, default=_raw if raw else _plain))
    return orjson.dumps(value, default=_json_default, option=_OPTIONS)


async def answer(value: Mapping[str, Any], call: Call, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The response for ``value`` in the format that the caller accepts; long answers are encoded in a thread, piece by piece."""
    msgpacked = wants_msgpack(call.accept)
    raw = msgpacked and wants_arrays(call.accept)
    if call.atoms * 3 <= _INLINE_NUMBERS:
        content = encode(value, msgpacked, raw)
    else:
        content = await asyncio.to_thread(_encode_in_pieces, value, msgpacked, raw)
    return Response(content, status, headers=headers, media_type=_RAW if raw else MSGPACK if msgpacked else JSON)


def error_response(error: ForcegateError, accept: str, retry_after: int = 1) -> Response:
    """The answer for a typed error; with Retry-After where trying again can help."""
    msgpacked = wants_msgpack(accept)
    headers = {"Retry-After": str(retry_after)} if error.status in (429, 503) else {}
    if isinstance(error, TaskContinues) and error.task_id:
        headers["Location"] = f"/api/v1/tasks/{error.task_id}"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | BodyLate):
        # The rest of the body is not read, so the connection cannot be used again.
        headers["Connection"] = "close"
    return Response(encode(error.as_dict(), msgpacked), error.status, headers, MSGPACK if msgpacked else JSON)


def _encode_in_pieces(value: Mapping[str, Any], msgpacked: bool, raw: bool) -> bytes:
    if msgpacked or not isinstance(value.get("results"), list):
        return encode(value, msgpacked, raw)
    # orjson holds the interpreter's lock for as long as it writes: result by result, the event loop gets its turn in between.
    pieces = [orjson.Fragment(encode(result, False)) for result in value["results"]]
    return encode({**value, "results": pieces}, False)


def _plain(value: Any) -> Any:
    if isinstance(value, Shared):
        return value.value
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot encode {type(value).__name__}")


def _raw(value: Any) -> Any:
    return arrays.packed(value) if isinstance(value, np.ndarray) else _plain(value)


def _json_default(value: Any) -> Any:
    if isinstance(value, Shared):
        return value.json
    if isinstance(value, np.ndarray):  # not contiguous
        return value.tolist()
    raise TypeError(f"cannot encode {type(value).__name__}")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit // 2**20} MB, the most that this service reads.")
