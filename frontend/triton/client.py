"""Evaluation of structures by Triton over gRPC: alone or several in a request, retries inside the deadline, typed errors only."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Sequence
from typing import Final, cast

import grpc
import grpc.aio
import numpy as np

from forcegate.connection import channel_options, credentials
from forcegate.errors import (
    DeadlineExceeded,
    EvaluationFailed,
    ForcegateError,
    ModelCrashed,
    ModelNotReady,
    ServerUnavailable,
    from_wire,
)
from forcegate.structure import Structure
from frontend.telemetry import Call, Metrics
from frontend.tracing import sending
from frontend.triton.directory import Directory
from frontend.triton.messages import METHOD, infer_request, infer_request_of_many, infer_response, infer_response_of_many
from frontend.triton.reports import alive

log = logging.getLogger(__name__)

CHANNELS: Final = 2
"""Connections to Triton: a long message holds up those behind it on the same one."""
SERVER_PATIENCE: Final = 1.0
"""Seconds for which a server that does not answer is tried again. Callers are told quickly, and may go elsewhere."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
MAX_CRASHES: Final = 6
"""Deaths of its model's process after which a structure is given up. The model finds out sooner which structure kills it: after a
death it evaluates those of that pass one by one, and refuses one that was alone at two deaths (forcefields/runtime/journal.py)."""
SENT_TOGETHER: Final = 2
"""Times that structures are sent as one request: as they are, and without one that the model refused."""
RETRIED_TOGETHER: Final = (ModelNotReady, ServerUnavailable)
RETRIED: Final = (ModelCrashed, *RETRIED_TOGETHER)
"""Failures after which the same request is sent again. One of several structures is not when the process died of it: which of them
was the reason shows only when each has its own request."""
_NAMED: Final = re.compile(r"Structure (?P<index>\d+) of \d+ in this request: ")
"""How a model says which structure of a request failed (forcefields/runtime/model.py)."""
_CLEANUP_SECONDS: Final = 0.25
"""The server is given this much less than the caller, so that the typed answer still comes before the deadline."""


def _channel(address: str, options: list[tuple[str, int]]) -> grpc.aio.Channel:
    secure = credentials()
    if secure is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, secure, options=options)


class Evaluator:
    """Sends structures to the models of one Triton server."""

    def __init__(self, address: str, directory: Directory, metrics: Metrics) -> None:
        self._directory = directory
        self._metrics = metrics
        # Channels to one address share a connection unless told otherwise.
        options = [*channel_options(address), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [_channel(address, options) for _ in range(CHANNELS)]
        self._calls = itertools.cycle([channel.unary_unary(METHOD) for channel in self._channels])

    async def close(self) -> None:
        """Ends the connections; calls in flight are cancelled."""
        for channel in self._channels:
            await channel.close()

    async def evaluate(
        self, model: str, structure: Structure, outputs: tuple[str, ...], head: str, call: Call
    ) -> dict[str, np.ndarray]:
        """The named outputs for one structure.

        Args:
            model: canonical name.
            outputs: names of the contract: ``energy`` ``[1]`` in eV, ``forces`` ``[N, 3]`` in eV/A, ``stress`` ``[6]`` ...
            head: empty for the model's default.
            call: the request that this is part of: its id goes to the model, its deadline bounds all attempts.

        Raises:
            ForcegateError: the model's own error, or what stood in the way of an answer.
        """
        request = infer_request(model, structure, outputs, head, call.request_id)
        return infer_response(await self._answer(request, model, call, RETRIED))

    async def evaluate_many(
        self, model: str, structures: Sequence[Structure], outputs: tuple[str, ...], head: str, call: Call
    ) -> list[dict[str, np.ndarray] | ForcegateError]:
        """The named outputs, or the error, of each of several structures that travel as one request.

        A model answers such a request as a whole. A structure that it names as the reason of a failure is taken out, and the others
        are sent again; where that fails too, or the model's process dies of them, each is sent alone.
        """
        results: dict[int, dict[str, np.ndarray] | ForcegateError] = {}
        rest = list(range(len(structures)))
        for _ in range(SENT_TOGETHER):
            if len(rest) < 2:
                break
            together = [structures[index] for index in rest]
            request = infer_request_of_many(model, together, outputs, head, call.request_id)
            try:
                answer = await self._answer(request, model, call, RETRIED_TOGETHER)
            except ModelCrashed:
                break
            except ForcegateError as error:
                if (named := _NAMED.match(error.detail)) is None:
                    results |= dict.fromkeys(rest, error)
                    rest = []
                else:
                    results[rest.pop(int(named["index"]))] = type(error)(error.detail[named.end() :], error.hint)
            else:
                results |= zip(rest, infer_response_of_many(answer, together), strict=True)
                rest = []
        alone = await asyncio.gather(*(self._alone(model, structures[index], outputs, head, call) for index in rest))
        results |= zip(rest, alone, strict=True)
        return [results[index] for index in range(len(structures))]

    async def _alone(
        self, model: str, structure: Structure, outputs: tuple[str, ...], head: str, call: Call
    ) -> dict[str, np.ndarray] | ForcegateError:
        try:
            return await self.evaluate(model, structure, outputs, head, call)
        except ForcegateError as error:
            return error

    async def _answer(self, request: bytes, model: str, call: Call, retried: tuple[type[ForcegateError], ...]) -> bytes:
        """The serialised answer; what fails in one of the ways ``retried`` is sent again while there is hope and time."""
        started = time.perf_counter()
        attempts: _Attempts | None = None
        process = self._directory.last_process(model)
        try:
            while True:
                try:
                    return await self._send(request, model, call)
                except retried as error:
                    attempts = attempts or _Attempts(model, self._directory, call)
                    await attempts.wait(error, process)
                    self._metrics.retries.labels(model, error.code).inc()
                    process = self._directory.process(model)
        finally:
            self._metrics.evaluation.labels(model).observe(time.perf_counter() - started)

    async def _send(self, request: bytes, model: str, call: Call) -> bytes:
        remaining = call.remaining
        if remaining <= 0:
            raise _too_late(call)
        timeout = max(remaining - _CLEANUP_SECONDS, 0.5 * remaining)
        with sending(call, model) as metadata:
            try:
                return cast(bytes, await next(self._calls)(request, timeout=timeout, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                raise typed(error, model, call) from None


class _Attempts:
    """What is remembered between the attempts at one structure."""

    def __init__(self, model: str, directory: Directory, call: Call) -> None:
        self._model = model
        self._directory = directory
        self._call = call
        self._pause = SHORTEST_PAUSE
        self._patience: float | None = None
        self._dead: set[int | None] = set()

    async def wait(self, error: ForcegateError, process: int | None) -> None:
        """Returns when it is time for the next attempt.

        Raises:
            ForcegateError: there shall be none: ``error`` itself, or ``EvaluationFailed`` for a structure that kills its model.
        """
        if isinstance(error, ModelCrashed):
            await self._process_died(error, process)
        elif isinstance(error, ServerUnavailable):
            now = time.monotonic()
            self._patience = self._patience or now + SERVER_PATIENCE
            if now + self._pause > self._patience:
                raise error
            await self._sleep(error)
        else:
            # Out of the index for a moment while it is being reloaded; unless it was unloaded on purpose.
            if not self._directory.recently_ready(self._model):
                raise error
            await self._sleep(error)

    async def _process_died(self, error: ForcegateError, process: int | None) -> None:
        if process is not None and alive(process):
            # The copy that failed is not the newest: the new one is just taking over.
            await self._sleep(error)
            return
        self._dead.add(process if process is not None else len(self._dead))
        if len(self._dead) >= MAX_CRASHES:
            raise EvaluationFailed(
                f"The process of {self._model!r} ended {len(self._dead)} times while it had this structure: it is not sent again.",
                "The structure seems to crash the model. Check its size, its distances and its cell.",
            )
        # Its errors go on until the supervisor has brought it back, so there is no use in asking before.
        while True:
            await self._sleep(error)
            newest = self._directory.process(self._model)
            if newest != process or process is None:
                self._pause = SHORTEST_PAUSE
                return

    async def _sleep(self, error: ForcegateError) -> None:
        if self._pause >= self._call.remaining:
            raise error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def typed(error: grpc.aio.AioRpcError, model: str, call: Call) -> ForcegateError:
    """A gRPC failure in our types. Triton's own words go to the log alone: they can hold paths and shared-memory names."""
    text, code = error.details() or "", error.code()
    # Our errors are one line. Whatever follows it, such as a traceback, is Triton's.
    if (known := from_wire(text.partition("\n")[0])) is not None:
        return known
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return _too_late(call)
    if "is not healthy" in text or "Stub process" in text:
        return ModelCrashed(f"The process of {model!r} ended during the evaluation; it is being brought back.")
    if code == grpc.StatusCode.NOT_FOUND or (code == grpc.StatusCode.UNAVAILABLE and _is_away(text)):
        return ModelNotReady(f"The model {model!r} is not loaded.", f"POST /api/v1/models/{model}/load loads it.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return ServerUnavailable("The inference server does not answer.")
    log.error("Triton refused a request", extra={"model": model, "status": str(code), "text": text[:500]})
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return EvaluationFailed(f"The inference server could not evaluate this structure with {model!r}.")
    # The model's own failures have come as ours. What is left is the server's: shared memory that is full, a queue, a defect.
    return ServerUnavailable(
        f"The inference server failed while it handled a request for {model!r}; the structure is not the reason.",
        "Try again in a few seconds. If it stays so, the service's log says why.",
    )


def _is_away(text: str) -> bool:
    return any(words in text for words in ("has no available versions", "is not ready", "not found"))


def _too_late(call: Call) -> DeadlineExceeded:
    return DeadlineExceeded(f"There was no answer within {call.limit:g} s.")
