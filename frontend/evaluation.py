"""Structures through the queue of a model: every evaluation that the gateway asks for goes this way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forcegate.errors import ForcegateError
from forcegate.structure import Structure
from frontend.admission import Place
from frontend.chunks import Chunk, chunks
from frontend.service import Service
from frontend.telemetry import Call
from frontend.tracing import waiting

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Question:
    """What is asked of a model for each structure. ``model`` is a canonical name; ``head`` is empty for its default."""

    model: str
    outputs: tuple[str, ...]
    head: str = ""


async def one(service: Service, question: Question, structure: Structure, call: Call) -> Arrays:
    """The outputs for one structure that somebody waits for.

    Raises:
        Overloaded, DeadlineExceeded: it is not taken on, or its deadline passed in the queue.
        ForcegateError: see ``Evaluator.evaluate``.
    """
    work = service.estimator(question.model).work((structure,))
    with service.queue(question.model).enter((work,), bulk=False, deadline=call.deadline) as (place,):
        with waiting(call, question.model, 1):
            await place.turn()
        async with place:
            return await service.evaluator.evaluate(question.model, structure, question.outputs, question.head, call)


async def many(
    service: Service, question: Question, entries: Sequence[tuple[int, Structure]], call: Call
) -> dict[int, Arrays | ForcegateError]:
    """The outputs for the structures of a batch, or the error of each, by its place in the batch.

    They travel as few requests of similar structures, behind what somebody waits for.

    Raises:
        Overloaded, DeadlineExceeded: the batch is not taken on.
    """
    queue = service.queue(question.model)
    cut = chunks(entries, service.estimator(question.model), queue.correction.factor)

    async def evaluate(chunk: Chunk, place: Place) -> list[Arrays | ForcegateError]:
        try:
            with waiting(call, question.model, len(chunk.structures)):
                await place.turn()
            async with place:
                return await service.evaluator.evaluate_many(
                    question.model, chunk.structures, question.outputs, question.head, call
                )
        except ForcegateError as error:  # the deadline passed in the queue
            return [error] * len(chunk.structures)

    with queue.enter([chunk.work for chunk in cut], bulk=True, deadline=call.deadline) as places:
        answers = await together(*(evaluate(chunk, place) for chunk, place in zip(cut, places, strict=True)))
    indexed = zip(cut, answers, strict=True)
    return {index: found for chunk, answer in indexed for index, found in zip(chunk.indices, answer, strict=True)}


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all; when one of them raises, or the caller leaves, the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
