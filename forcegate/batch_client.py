"""What ``Client`` and ``AsyncClient`` do with a batch: structures whose error can pass are sent again, as a whole call is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forcegate import errors
from forcegate.retries import Attempts

if TYPE_CHECKING:
    from forcegate.client import AsyncClient, Client

PATH = "/api/v1/batch"
Body = Mapping[str, Any]
Results = Sequence[Mapping[str, Any]]


def batch_sync(client: Client, body: Body) -> list[Any]:
    """The results of a batch, in order."""
    attempts = client.attempts()
    results = client.call("POST", PATH, body, "results", attempts)
    while again := _to_send_again(results):
        try:
            time.sleep(_pause(results[again[0]], attempts))
            fresh = client.call("POST", PATH, _part(body, again), "results", attempts)
        except errors.ForcegateError:  # no time is left: the errors are those that there were
            break
        results = _merged(results, again, fresh)
    return list(results)


async def batch_async(client: AsyncClient, body: Body) -> list[Any]:
    """The same for asyncio."""
    attempts = client.attempts()
    results = await client.call("POST", PATH, body, "results", attempts)
    while again := _to_send_again(results):
        try:
            await asyncio.sleep(_pause(results[again[0]], attempts))
            fresh = await client.call("POST", PATH, _part(body, again), "results", attempts)
        except errors.ForcegateError:
            break
        results = _merged(results, again, fresh)
    return list(results)


def _to_send_again(results: Results) -> list[int]:
    """The places of the structures whose error can pass."""
    return [place for place, result in enumerate(results) if result.get("error", {}).get("retryable")]


def _pause(result: Mapping[str, Any], attempts: Attempts) -> float:
    error = result["error"]
    return attempts.pause(errors.from_mapping(error) or errors.ServerUnavailable(error["detail"]))


def _part(body: Body, places: Iterable[int]) -> dict[str, Any]:
    return {**body, "atoms": [body["atoms"][place] for place in places]}


def _merged(results: Results, places: Iterable[int], fresh: Results) -> list[Any]:
    """The results with fresh ones at ``places``, each with its number in the whole batch."""
    merged = list(results)
    for place, result in zip(places, fresh, strict=True):
        merged[place] = {**result, "index": place}
    return merged
