"""Keeps a gateway busy from a process of its own: ``python -m tests.api.load URL CLIENTS``, until it is ended.

The clients of a latency test must not share Python's lock with the clock that measures it.
"""

from __future__ import annotations

import asyncio
import sys

import httpx

ATOMS = {
    "symbols": ["Na"] * 4 + ["Cl"] * 4,
    "positions": [
        [0, 0, 0],
        [0, 2.82, 2.82],
        [2.82, 0, 2.82],
        [2.82, 2.82, 0],
        [2.82, 0, 0],
        [0, 2.82, 0],
        [0, 0, 2.82],
        [2.82, 2.82, 2.8],
    ],
    "cell": [5.64, 5.64, 5.64],
}


async def _main(url: str, clients: int) -> None:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

        async def repeat() -> None:
            while True:
                await client.post("/api/v1/single_point", json={"model_name": "chgnet", "atoms": ATOMS})

        await asyncio.gather(*(repeat() for _ in range(clients)))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
