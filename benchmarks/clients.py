"""Clients of the service, one structure in each request, over gRPC and REST.

In a closed loop a fixed number of clients send their next structure as soon as they have the answer to their last one. In an open
one (``arrivals.py``) the requests come when they come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import orjson
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_async
from tritonclient.grpc import InferInput, InferRequestedOutput

from benchmarks.statistics import waits
from forcegate import arrays
from forcegate.client import array_mapping
from forcegate.contract import INPUTS, OUTPUTS
from forcegate.structure import Structure, to_mapping
from forcegate.tensors import pack

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 2**31 - 1), ("grpc.enable_http_proxy", 0)]


Send = Callable[[int], Awaitable[None]]
"""Sends the structure of that number and takes the answer."""
Connect = Callable[[int], Awaitable[Send]]
"""What the client of that number sends with."""
MSGPACK = "application/msgpack"
ARRAYS = f"{MSGPACK}; {arrays.PARAMETER}"
JSON = "application/json"


@dataclass(frozen=True)
class Run:
    """What came of one load.

    Attributes:
        seconds: from the first request sent to the last answer received.
        latencies: seconds of each request.
        sent: when each request was sent, on ``time.time()``'s clock, in seconds.
        atoms: atoms of all structures.
    """

    clients: int
    seconds: float
    latencies: np.ndarray
    sent: np.ndarray
    atoms: int

    @property
    def structures_per_second(self) -> float:
        """Structures over the time that all of them took, beginning and end included."""
        return len(self.latencies) / self.seconds

    @property
    def atoms_per_second(self) -> float:
        """Atoms over the same time."""
        return self.atoms / self.seconds

    @property
    def waits(self) -> dict[str, float]:
        """Percentiles of the latencies in ms."""
        return waits(self.latencies)


def inputs(structure: Structure) -> list[InferInput]:
    """The tensors of a request that holds one structure."""
    arrays = pack([structure])
    tensors = []
    for spec in INPUTS:
        tensor = InferInput(spec.name, list(arrays[spec.name].shape), spec.triton_type)
        tensors.append(tensor.set_data_from_numpy(arrays[spec.name]))
    return tensors


def requested() -> list[InferRequestedOutput]:
    """Energy, forces and stress."""
    return [InferRequestedOutput(spec.name) for spec in OUTPUTS]


def body(structure: Structure, model: str, media: str = JSON) -> bytes:
    """The body of ``POST /api/v1/single_point``."""
    if media == ARRAYS:
        return bytes(msgpack.packb({"model_name": model, "atoms": array_mapping(structure)}, default=arrays.packed))
    mapping = {"model_name": model, "atoms": to_mapping(structure)}
    return bytes(msgpack.packb(mapping) if media == MSGPACK else orjson.dumps(mapping))


@asynccontextmanager
async def over_grpc(address: str, model: str, structures: Sequence[Structure]) -> AsyncIterator[Connect]:
    """Triton's gRPC. The messages are made before the clock starts: the client shares the machine with the service."""
    prepared = [inputs(structure) for structure in structures]
    client, outputs = triton_async.InferenceServerClient(address, channel_args=CHANNEL_OPTIONS), requested()

    async def send(index: int) -> None:
        answer = await client.infer(model, prepared[index], outputs=outputs)
        answer.as_numpy("forces")

    async def connect(_client: int) -> Send:
        return send

    try:
        yield connect
    finally:
        await client.close()


@asynccontextmanager
async def over_rest(
    host: str, port: int, bodies: Sequence[bytes], media: str = JSON, path: str = "/api/v1/single_point"
) -> AsyncIterator[Connect]:
    """HTTP, on one connection for each client; ready bodies, for the same reason."""
    connections: list[Connection] = []
    decode: Callable[[bytes], Any] = {JSON: orjson.loads, MSGPACK: msgpack.unpackb, ARRAYS: _with_arrays}[media]

    async def connect(_client: int) -> Send:
        connection = await Connection.open(host, port, media)
        connections.append(connection)

        async def send(index: int) -> None:
            decode(await connection.post(path, bodies[index]))

        return send

    try:
        yield connect
    finally:
        for connection in connections:
            connection.close()


def _with_arrays(content: bytes) -> Any:
    return msgpack.unpackb(content, object_hook=arrays.unpack_hook, strict_map_key=False)


def grpc_closed_loop(address: str, model: str, structures: Sequence[Structure], clients: int) -> Run:
    """Every structure once over Triton's gRPC."""

    async def run() -> Run:
        async with over_grpc(address, model, structures) as connect:
            return await closed_loop(connect, structures, clients)

    return asyncio.run(run())


def rest_closed_loop(host: str, port: int, model: str, structures: Sequence[Structure], clients: int, media: str = JSON) -> Run:
    """Every structure once over REST, as JSON or as msgpack."""
    bodies = [body(structure, model, media) for structure in structures]

    async def run() -> Run:
        async with over_rest(host, port, bodies, media) as connect:
            return await closed_loop(connect, structures, clients)

    return asyncio.run(run())


async def closed_loop(connect: Connect, structures: Sequence[Structure], clients: int) -> Run:
    """``clients`` of them take the next structure as soon as they have the answer to their last one."""
    count = len(structures)
    senders = [await connect(client) for client in range(min(clients, count))]
    waiting = iter(range(count))
    latencies, sent = np.zeros(count), np.zeros(count)

    async def client(send: Send) -> None:
        for index in waiting:
            sent[index], began = time.time(), time.perf_counter()
            await send(index)
            latencies[index] = time.perf_counter() - began

    started = time.perf_counter()
    await asyncio.gather(*(client(send) for send in senders))
    return Run(clients, time.perf_counter() - started, latencies, sent, sum(map(len, structures)))


class Connection:
    """A kept-alive HTTP/1.1 connection. A full client (httpx) costs more processor time than the gateway that it would measure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, media: str) -> None:
        self._reader, self._writer = reader, writer
        self._fields = f"Host: {host}\r\nContent-Type: {media}\r\nAccept: {media}\r\nX-Forcegate-Timeout: 600"

    @classmethod
    async def open(cls, host: str, port: int, media: str = JSON) -> Connection:
        """Connects."""
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, host, media)

    async def post(self, path: str, content: bytes) -> bytes:
        """The body of the answer.

        Raises:
            RuntimeError: the status is not 200.
        """
        self._writer.write(f"POST {path} HTTP/1.1\r\n{self._fields}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length:")[2].partition("\r\n")[0])
        received = await self._reader.readexactly(length)
        if (status := answer.split(" ", 2)[1]) != "200":
            raise RuntimeError(f"POST {path} answered {status}: {received[:300].decode(errors='replace')}")
        return received

    def close(self) -> None:
        """Ends it."""
        self._writer.close()


def grpc_latencies(client: triton.InferenceServerClient, model: str, structure: Structure, calls: int) -> list[float]:
    """Seconds of single calls in turn, from the structure to numpy arrays, with the plain synchronous client."""
    latencies = []
    for _ in range(calls):
        started = time.perf_counter()
        answer = client.infer(model, inputs(structure), outputs=requested())
        for spec in OUTPUTS:
            answer.as_numpy(spec.name)
        latencies.append(time.perf_counter() - started)
    return latencies
