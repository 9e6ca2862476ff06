"""Clients that keep a fixed number of requests in flight (a closed loop), over gRPC and over REST, one structure in each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_async
from tritonclient.grpc import InferInput, InferRequestedOutput

from forcegate.contract import INPUTS, OUTPUTS
from forcegate.structure import Structure, to_mapping
from forcegate.tensors import pack

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 2**31 - 1), ("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True)
class Run:
    """One closed loop.

    Attributes:
        seconds: from the first request sent to the last answer received.
        latencies: seconds of each request.
    """

    clients: int
    seconds: float
    latencies: np.ndarray

    @property
    def structures_per_second(self) -> float:
        """Structures over the time that all of them took, beginning and end included."""
        return len(self.latencies) / self.seconds

    @property
    def p50(self) -> float:
        """Median seconds from sending a request to its answer."""
        return float(np.median(self.latencies))


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


def body(structure: Structure, model: str) -> bytes:
    """The JSON of ``POST /api/v1/single_point``."""
    return bytes(orjson.dumps({"model_name": model, "atoms": to_mapping(structure)}))


def grpc_closed_loop(address: str, model: str, structures: Sequence[Structure], clients: int) -> Run:
    """Every structure once over Triton's gRPC. The messages are made before the clock starts: the client shares the machine."""
    prepared = [inputs(structure) for structure in structures]

    async def run() -> Run:
        client = triton_async.InferenceServerClient(address, channel_args=CHANNEL_OPTIONS)
        outputs = requested()

        async def one(index: int) -> None:
            answer = await client.infer(model, prepared[index], outputs=outputs)
            answer.as_numpy("forces")

        try:
            return await _closed_loop(lambda _client: _always(one), len(prepared), clients)
        finally:
            await client.close()

    return asyncio.run(run())


def rest_closed_loop(host: str, port: int, model: str, structures: Sequence[Structure], clients: int) -> Run:
    """Every structure once over REST, on one connection for each client."""
    bodies = [body(structure, model) for structure in structures]

    async def run() -> Run:
        connections: list[Connection] = []

        async def connect(_client: int) -> Callable[[int], Awaitable[None]]:
            connection = await Connection.open(host, port)
            connections.append(connection)

            async def one(index: int) -> None:
                orjson.loads(await connection.post("/api/v1/single_point", bodies[index]))

            return one

        try:
            return await _closed_loop(connect, len(bodies), clients)
        finally:
            for connection in connections:
                connection.close()

    return asyncio.run(run())


async def _always(one: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    return one


async def _closed_loop(connect: Callable[[int], Awaitable[Callable[[int], Awaitable[None]]]], count: int, clients: int) -> Run:
    """``clients`` of them take the next structure as soon as they have the answer to their last one."""
    senders = [await connect(client) for client in range(min(clients, count))]
    waiting = iter(range(count))
    latencies = np.zeros(count)

    async def client(send: Callable[[int], Awaitable[None]]) -> None:
        for index in waiting:
            sent = time.perf_counter()
            await send(index)
            latencies[index] = time.perf_counter() - sent

    started = time.perf_counter()
    await asyncio.gather(*(client(send) for send in senders))
    return Run(clients, time.perf_counter() - started, latencies)


class Connection:
    """A kept-alive HTTP/1.1 connection. A full client (httpx) costs more processor time than the gateway that it would measure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connects."""
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, host)

    async def post(self, path: str, content: bytes) -> bytes:
        """The body of the answer.

        Raises:
            RuntimeError: the status is not 200.
        """
        fields = f"Host: {self._host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        self._writer.write(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + content)
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
