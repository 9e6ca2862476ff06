"""An open loop: requests come at random moments, whether or not the service keeps up, as they do from people who do not know of
each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.clients import Connect, Run, Send, over_grpc
from forcegate.structure import Structure


def poisson(rate: float, count: int, seed: int = 3) -> np.ndarray:
    """Seconds from the start to each of ``count`` arrivals of a Poisson process of ``rate`` arrivals a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, count))


def ideal_latencies(moments: np.ndarray, alone: np.ndarray, gain: float) -> np.ndarray:
    """Seconds that arrivals would wait for at a server that costs nothing itself.

    Whenever it is free it takes all that waits. One structure takes what it takes alone; several take ``1 / gain`` of their sum
    and are answered together.

    Args:
        moments: seconds of the arrivals, in order.
        alone: seconds that each takes alone.
        gain: structures a second in full batches over structures a second one by one.
    """
    latencies = np.zeros(len(moments))
    free, first = 0.0, 0
    while first < len(moments):
        begins = max(free, moments[first])
        last = max(first + 1, int(np.searchsorted(moments, begins, side="right")))
        taken = float(alone[first:last].sum())
        free = begins + (taken if last - first == 1 else taken / gain)
        latencies[first:last] = free - moments[first:last]
        first = last
    return latencies


def grpc_open_loop(address: str, model: str, structures: Sequence[Structure], moments: np.ndarray) -> Run:
    """Sends each structure over gRPC at its moment."""

    async def run() -> Run:
        async with over_grpc(address, model, structures) as connect:
            return await open_loop(connect, structures, moments)

    return asyncio.run(run())


async def open_loop(connect: Connect, structures: Sequence[Structure], moments: np.ndarray) -> Run:
    """Sends each structure at its moment. A request that is sent late by this program itself counts from when it was due."""
    send = await connect(0)
    latencies, sent = np.zeros(len(structures)), np.zeros(len(structures))
    started, clock = time.perf_counter(), time.time()

    async def one(send: Send, index: int) -> None:
        sent[index] = clock + moments[index]
        await send(index)
        latencies[index] = time.perf_counter() - started - moments[index]

    async with asyncio.TaskGroup() as requests:
        for index, moment in enumerate(moments):
            if (ahead := started + moment - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            requests.create_task(one(send, index))
    return Run(0, float((moments + latencies).max() - moments[0]), latencies, sent, sum(map(len, structures)))
