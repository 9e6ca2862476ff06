"""Triton's control API: which models are loaded, load one, unload one."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc.aio as triton
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from forcegate.connection import channel_options, credentials
from forcegate.errors import ForcegateError, ModelNotReady, ServerUnavailable, from_wire
from frontend.triton import restriction

log = logging.getLogger(__name__)

_PAUSES = (0.1, 0.5, 2.0)
"""s before a load that did nothing is asked for again."""


@dataclass(frozen=True)
class ModelState:
    """What Triton says of one model: ``READY``, ``LOADING``, ``UNLOADING``, ``UNAVAILABLE``, and why."""

    name: str
    state: str
    reason: str

    @property
    def error(self) -> ForcegateError | None:
        """The typed error that the model failed to load with, where it sent one."""
        return from_wire(self.reason)


@dataclass(frozen=True)
class Answers:
    """How many requests a model has answered since its load, and how many of them with an error.

    Attributes:
        queued_ns: how long those that it has answered well have waited for an instance, all together.
        computed_ns: how long its instances have computed, all together.
    """

    well: int
    failed: int
    queued_ns: int = 0
    computed_ns: int = 0


class TritonControl:
    """The control API of one server. All calls raise ``ServerUnavailable`` when nothing answers.

    Args:
        key: what the server was started with (``frontend.triton.restriction``).
    """

    def __init__(self, address: str, key: str = "") -> None:
        self.address = address
        self._headers = restriction.headers(key)
        self._client = connected(address)
        self._sent: dict[str, dict[str, Any]] = {}
        """The configurations that models were last loaded with from here: what Triton tells of one has its own additions."""

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()

    async def ready(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(await self._client.is_server_live(client_timeout=2.0))
        except (InferenceServerException, grpc.RpcError):
            return False

    async def states(self) -> dict[str, ModelState]:
        """Every model that Triton has tried to load, by name."""
        try:
            index = await self._client.get_model_repository_index(headers=self._headers, client_timeout=5.0)
        except (InferenceServerException, grpc.RpcError) as error:
            raise ServerUnavailable("The inference server does not answer.") from error
        return {m.name: ModelState(m.name, m.state or "UNAVAILABLE", m.reason) for m in index.models}

    async def answers(self) -> dict[str, Answers]:
        """What every loaded model has answered."""
        try:
            told = await self._client.get_inference_statistics(headers=self._headers, client_timeout=5.0)
        except (InferenceServerException, grpc.RpcError) as error:
            raise ServerUnavailable("The inference server does not answer.") from error
        return {each.name: _answers(each) for each in told.model_stats}

    async def config(self, name: str) -> dict[str, Any]:
        """The configuration of a loaded model, as the JSON form of ``config.pbtxt``."""
        try:
            answer = await self._client.get_model_config(name, client_timeout=5.0)
        except (InferenceServerException, grpc.RpcError) as error:
            raise typed(error, name) from error
        return MessageToDict(answer.config, preserving_proto_field_name=True)

    async def load(self, name: str, config: dict[str, Any] | None = None, timeout: float = 600.0) -> None:
        """Loads a model, or loads it again when ``config`` differs from the one that it runs with.

        Raises:
            ForcegateError: what the model itself said (a checkpoint that differs, a gate that failed), or ``ModelNotReady``.
        """
        try:
            self._sent.pop(name, None)
            if config is not None:
                self._sent[name] = config
            text = None if config is None else json.dumps(config)
            await self._client.load_model(name, headers=self._headers, config=text, client_timeout=timeout)
        except (InferenceServerException, grpc.RpcError) as error:
            raise typed(error, name) from error

    async def reload(
        self, name: str, dtype: str = "", timeout: float = 600.0, placement: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Brings a model back whose process has died, or loads it again in another dtype.

        Triton goes on calling a dead one ready, so the configuration has to change. Without ``dtype`` it keeps the one that it
        runs in, and without ``placement`` its instance_group.
        """
        config = await self.config(name)
        if placement is not None:
            config["instance_group"] = list(placement)
        if dtype:
            config = _in_dtype(config, dtype)
        for pause in (0.0, *_PAUSES):
            await asyncio.sleep(pause)
            config.setdefault("parameters", {})["reloaded"] = {"string_value": str(time.time_ns())}
            await self.load(name, config, timeout)
            if not dtype or await self._runs_in(name, dtype):
                return
        raise ModelNotReady(f"The model {name!r} is not loaded in {dtype}.", "Load it again in a few seconds.")

    async def load_in(
        self,
        name: str,
        dtype: str,
        repositories: Sequence[Path],
        timeout: float = 600.0,
        placement: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Loads a model that is not loaded, to be evaluated in ``dtype``: its ``config.pbtxt`` with this one parameter changed.

        Args:
            repositories: where to look for the model's folder.
            placement: the instance_group in place of the one in the file.
        """
        await self.load(name, configuration(name, dtype, repositories, placement), timeout)
        if not await self._runs_in(name, dtype):
            await self.reload(name, dtype, timeout, placement)

    async def _runs_in(self, name: str, dtype: str) -> bool:
        """Whether a load has done what was asked: one that arrives while Triton ends another load of the same model, as after a
        restart, is answered with success and does nothing (2.51)."""
        if (found := dtype_of(await self.config(name))) != dtype:
            log.warning("Triton did not load what it was asked for", extra={"model": name, "dtype": dtype, "found": found})
        return found == dtype

    async def place(self, name: str, placement: Sequence[dict[str, Any]], timeout: float = 600.0) -> None:
        """Gives a loaded model another instance_group. As nothing else changes, Triton starts what is new beside the instances that
        stay, and ends those that are too many when they have finished what they evaluate; a failure leaves all as it was.

        Raises:
            ForcegateError: see ``load``.
        """
        known = self._sent.get(name) or await self.config(name)
        await self.load(name, known | {"instance_group": list(placement)}, timeout)

    async def unload(self, name: str) -> None:
        """Unloads a model; what it is evaluating is finished first."""
        try:
            await self._client.unload_model(name, headers=self._headers, client_timeout=60.0)
        except (InferenceServerException, grpc.RpcError) as error:
            raise typed(error, name) from error


def _answers(told: Any) -> Answers:
    """From one entry of Triton's statistics: those of requests count a batch once for each request in it, those of batches once."""
    requests = told.inference_stats
    computed = sum(int(batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns) for batch in told.batch_stats)
    return Answers(int(requests.success.count), int(requests.fail.count), int(requests.queue.ns), computed)


def connected(address: str) -> triton.InferenceServerClient:
    """A client of Triton at ``address``, over TLS where the environment says so."""
    secure = credentials()
    return triton.InferenceServerClient(address, ssl=secure is not None, creds=secure, channel_args=channel_options(address))


def configuration(
    name: str, dtype: str, repositories: Sequence[Path], placement: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """The configuration that runs a model in ``dtype`` and where ``placement`` (an instance_group) says, as the JSON form of
    ``config.pbtxt``; None where the file says so itself.

    Raises:
        ModelNotReady: there is no such file.
    """
    path = next((path for folder in repositories if (path := folder / name / "config.pbtxt").is_file()), None)
    if path is None:
        raise ModelNotReady(f"The model {name!r} has no configuration.", f"Run `forcegate export {name}`.")
    message = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config = MessageToDict(message, preserving_proto_field_name=True)
    if placement is None:
        return None if dtype_of(config) == dtype else _in_dtype(config, dtype)
    return _in_dtype(config, dtype) | {"instance_group": list(placement)}


def dtype_of(config: Mapping[str, Any]) -> str:
    """The floating-point type that a configuration asks for; empty where it is not one of ours."""
    return str(config.get("parameters", {}).get("dtype", {}).get("string_value", ""))


def _in_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    return config | {"parameters": config["parameters"] | {"dtype": {"string_value": dtype}}}


def typed(error: InferenceServerException | grpc.RpcError, model: str) -> ForcegateError:
    """Triton's error in our types. Its own words never reach a user: they can hold paths and shared-memory names."""
    text = error.message() if isinstance(error, InferenceServerException) else str(error)
    if (known := from_wire(text or "")) is not None:
        return known
    status = str(error.status()) if isinstance(error, InferenceServerException) else ""
    if "UNAVAILABLE" in status or "CANCELLED" in status:
        return ServerUnavailable("The inference server does not answer.")
    return ModelNotReady(
        f"The model {model!r} is not loaded.", f"Load it with POST /api/v1/models/{model}/load, or try again shortly."
    )
