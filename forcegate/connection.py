"""One model behind one address: Triton's gRPC with our types on both sides.

The only module of this package that imports tritonclient.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from forcegate import contract, errors
from forcegate.dispersion import correction
from forcegate.retries import Attempts, Process
from forcegate.structure import Structure
from forcegate.tensors import pack

ADDRESS_VARIABLE = "FORCEGATE_GRPC"
CA_VARIABLE = "FORCEGATE_GRPC_CA"
CLIENT_CERTIFICATE_VARIABLE = "FORCEGATE_GRPC_CLIENT_CERTIFICATE"
CLIENT_KEY_VARIABLE = "FORCEGATE_GRPC_CLIENT_KEY"
"""PEM files: what the server's certificate is signed with (without it there is no TLS), and a certificate of one's own."""
CONTROL_VARIABLE = "FORCEGATE_TRITON_KEY"
"""The key of Triton's control API, which the service's own processes have; it also opens the index of models, with reasons."""
CONTROL_HEADER = "triton-grpc-protocol-forcegate-control"
DEFAULT_ADDRESS = "127.0.0.1:8001"

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
"""Messages as long as gRPC can carry (its default of 4 MB stops at 80,000 atoms), and a quick return after a restart."""

PROVENANCE = ("checkpoint_sha256", "functional", "dtype", "package", "package_version", "licence", "training_data")
"""What ``provenance`` takes over from the model's configuration, besides the model's name, the head and dispersion."""

_Answer = TypeVar("_Answer")
_DTYPES: dict[str, np.dtype[Any]] = {"FP64": np.dtype("<f8"), "INT32": np.dtype("<i4"), "BOOL": np.dtype("?")}


class Connection:
    """One model of one Triton server. Threads may share it; it opens its channel on first use."""

    def __init__(self, model: str, address: str | None = None) -> None:
        self.model = model
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        self.answered = False
        """Whether the model has answered this connection before."""
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: service_pb2_grpc.GRPCInferenceServiceStub | None = None
        self._parameters: dict[str, str] | None = None
        # Whoever brings a dead model back has to change its configuration, else Triton goes on calling the dead process.
        self.process = Process(self._read_process)

    @property
    def stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        """Triton's service, on an open channel."""
        with self._lock:
            if self._stub is None:
                self._channel = open_channel(self.address)
                self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            return self._stub

    def close(self) -> None:
        """Ends the channel; the next call opens a new one."""
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Connection, (self.model, self.address)

    def request(
        self, structures: Sequence[Structure], outputs: Iterable[str], head: str | None = None, request_id: str = ""
    ) -> service_pb2.ModelInferRequest:
        """The message that asks for ``outputs`` (names of the contract) of ``structures``."""
        request = service_pb2.ModelInferRequest(model_name=self.model, id=request_id)
        arrays = pack(structures)
        for spec in contract.INPUTS:
            array = arrays[spec.name]
            request.inputs.add(name=spec.name, datatype=spec.triton_type, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        for name in outputs:
            request.outputs.add(name=name)
        if head:
            request.parameters[contract.HEAD_PARAMETER].string_param = head
        return request

    def infer(self, request: service_pb2.ModelInferRequest, attempts: Attempts) -> dict[str, np.ndarray]:
        """The model's answer, tried again as ``attempts`` allows.

        Raises:
            ForcegateError: the typed error of the last attempt.
        """

        def send(left: float) -> service_pb2.ModelInferResponse:
            request.model_name = self.model  # the canonical name, once an alias has turned out to be one
            return self.stub.ModelInfer(request, timeout=left)

        return decode(self._answer(send, attempts))

    def _answer(self, call: Callable[[float], _Answer], attempts: Attempts) -> _Answer:
        while True:
            sent_to = self.process.current
            try:
                answer = call(attempts.remaining)
            except grpc.RpcError as failure:
                error = self.typed(failure)
            else:
                self.answered = True
                return answer
            # Outside the except clause: gRPC's own error would only bury the sentence that matters.
            time.sleep(self.pause_after(error, attempts, sent_to))
            while not self.process.replaced():
                time.sleep(attempts.pause(error))

    def pause_after(self, error: errors.ForcegateError, attempts: Attempts, sent_to: str | None) -> float:
        """Seconds to wait before the call that ended with ``error`` is made again.

        Args:
            sent_to: ``process.current`` when the call was sent.

        Raises:
            ForcegateError: it should not be made again; ``error`` itself, or what Triton says of the model's absence.
        """
        if isinstance(error, errors.ModelCrashed):
            attempts.crashed_in(self.process.died(sent_to))
        elif isinstance(error, errors.ModelNotReady):
            error = self._reason(error)
        if error.retryable:
            self._parameters = None  # what comes back may be another version of the service
        if isinstance(error, errors.ServerUnavailable | errors.ModelNotReady):
            self.process.current = None
        return attempts.pause(error, self.answered)

    def typed(self, failure: grpc.RpcError) -> errors.ForcegateError:
        """What ended a call, as one of our types."""
        return typed(failure, self.model, self.address)

    def parameters(self, attempts: Attempts) -> dict[str, str]:
        """What the model's configuration says of it: checkpoint, functional, heads, elements, further outputs.

        Raises:
            SetupError: the service speaks another version of the contract.
            ForcegateError: the service does not answer.
        """
        if (known := self._parameters) is not None:
            return known
        found = self._answer(self._read_parameters, attempts)
        if (version := found.get("contract_version")) != str(contract.VERSION):
            raise errors.SetupError(
                f"The model {self.model!r} at {self.address} speaks version {version} of the tensor contract, "
                f"this client speaks {contract.VERSION}.",
                "Install the version of forcegate that the service runs.",
            )
        self._parameters = found
        return found

    def provenance(self, head: str | None, attempts: Attempts, asked: str = "none") -> dict[str, str]:
        """Where the answers of ``head`` come from, with the keys of a REST answer's ``provenance``; ``asked`` is for dispersion."""
        known = self.parameters(attempts)
        head = head or known.get("default_head", "")
        provenance = {"model": self.model, "head": head} | {name: known.get(name, "") for name in PROVENANCE}
        policy, provenance["functional"] = self._policy(head, known)
        included = "included" if policy == "included" else "none"
        provenance["dispersion"] = self.correction(head, asked, attempts) or included
        return provenance

    def correction(self, head: str | None, asked: str, attempts: Attempts) -> str | None:
        """The served dispersion model to be added to the answers of ``head``, or None; see ``forcegate.dispersion``."""
        if asked == "none":
            return None
        known = self.parameters(attempts)
        return correction(self.model, *self._policy(head or known.get("default_head", ""), known), asked)

    def _policy(self, head: str, known: Mapping[str, str]) -> tuple[str, str]:
        """Dispersion policy and functional of one head."""
        policies = json.loads(known.get("head_dispersion") or "{}")
        functionals = json.loads(known.get("head_functionals") or "{}")
        return policies.get(head, known.get("dispersion", "none")), functionals.get(head, known.get("functional", ""))

    def _read_parameters(self, timeout: float) -> dict[str, str]:
        answer = self.stub.ModelConfig(service_pb2.ModelConfigRequest(name=self.model), timeout=timeout)
        found = {name: value.string_value for name, value in answer.config.parameters.items()}
        self.process.current = found.get("reloaded", "")
        return found

    def _read_process(self) -> str | None:
        try:
            return self._read_parameters(2.0).get("reloaded", "")
        except grpc.RpcError:
            return None

    def _reason(self, error: errors.ForcegateError) -> errors.ForcegateError:
        """Why a model is not there: unknown, not loaded, being loaded, or refused with an error of its own."""
        key = os.environ.get(CONTROL_VARIABLE)
        try:
            if not key:
                return self._reason_of_outsider(error)
            metadata = ((CONTROL_HEADER, key),)
            index = self.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=2.0, metadata=metadata).models
        except grpc.RpcError:
            return error
        known = {entry.name: entry for entry in index}
        if (entry := known.get(self.model)) is not None:
            return errors.from_wire(entry.reason) or error
        return self._renamed_or_unknown([name for name, entry in known.items() if entry.state == "READY"], list(known))

    def _reason_of_outsider(self, error: errors.ForcegateError) -> errors.ForcegateError:
        """The same without the key of the index: models that are loaded have statistics, which anybody can see.

        Triton says that it has not found a model if it has never been told to load it, and speaks of its versions otherwise.
        """
        ready = {entry.name for entry in self.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=2.0).model_stats}
        if self.model in ready or not ready:
            return error
        try:
            self.stub.ModelConfig(service_pb2.ModelConfigRequest(name=self.model), timeout=2.0)
        except grpc.RpcError as failure:
            # One that has answered before will be back: the server may have been started again a moment ago.
            if not self.answered and "is not found" in (failure.details() or ""):
                return self._renamed_or_unknown(sorted(ready), sorted(ready))
        return error

    def _renamed_or_unknown(self, ready: Sequence[str], known: Sequence[str]) -> errors.ForcegateError:
        from difflib import get_close_matches

        if (canonical := self._alias(sorted(ready))) is not None:
            self.model = canonical
            return errors.ModelNotReady(f"The model is called {canonical!r}.")
        near = get_close_matches(self.model, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return errors.UnknownModel(
            f"There is no model {self.model[:60]!r} at {self.address}.", f"{hint}Loaded are: {', '.join(sorted(ready)) or 'none'}."
        )

    def _alias(self, ready: Sequence[str]) -> str | None:
        """The loaded model that has ``self.model`` among its aliases."""
        for name in ready:
            with suppress(grpc.RpcError):
                answer = self.stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=2.0)
                if self.model in answer.config.parameters["aliases"].string_value.split(","):
                    return name
        return None


def open_channel(address: str) -> grpc.Channel:
    """A channel to a Triton at ``address``, over TLS where the environment says so."""
    secure = credentials()
    if secure is None:
        return grpc.insecure_channel(address, options=channel_options(address))
    return grpc.secure_channel(address, secure, options=channel_options(address))


def credentials() -> grpc.ChannelCredentials | None:
    """TLS for gRPC as the three variables say; None where none of them is set.

    Raises:
        SetupError: a file cannot be read.
    """
    paths = [os.environ.get(name, "") for name in (CA_VARIABLE, CLIENT_KEY_VARIABLE, CLIENT_CERTIFICATE_VARIABLE)]
    if not paths[0]:
        return None
    try:
        ca, key, certificate = (Path(path).read_bytes() if path else None for path in paths)
    except OSError as error:
        raise errors.SetupError(f"{error.filename} cannot be read: {error.strerror}.", f"See {CA_VARIABLE}.") from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


def channel_options(address: str) -> list[tuple[str, int]]:
    """The options of every gRPC channel to a Triton at ``address``, the gateway's too."""
    # A proxy of the environment, which gRPC would ask otherwise, cannot reach this machine's own loopback.
    local = address.startswith(("127.", "localhost:", "[::1]:"))
    return [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not local))]


def decode(answer: service_pb2.ModelInferResponse) -> dict[str, np.ndarray]:
    """The output tensors by name, as arrays of their own."""
    return {
        tensor.name: np.frombuffer(raw, dtype=_DTYPES[tensor.datatype]).reshape(tensor.shape).copy()
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def typed(failure: grpc.RpcError, model: str, address: str) -> errors.ForcegateError:
    """What ended a call, as one of our types: the model's own words, or what Triton's and gRPC's mean."""
    status, text = failure.code(), failure.details() or ""
    if (known := errors.from_wire(text)) is not None:
        return known
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"The model {model!r} at {address} did not answer in time.")
    if "is not healthy" in text or "Stub process" in text:
        return errors.ModelCrashed(f"The process of the model {model!r} has died; it is being brought back.")
    if status is grpc.StatusCode.NOT_FOUND or "no available versions" in text or "is not ready" in text:
        return errors.ModelNotReady(
            f"The model {model!r} is not loaded at {address}.",
            "Load it with POST /api/v1/models/{name}/load, or try again shortly.",
        )
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or "RST_STREAM" in text:
        return errors.ServerUnavailable(
            f"Nothing answers at {address} (gRPC).",
            f"Start the service with `forcegate serve`, or name its address in {ADDRESS_VARIABLE}.",
        )
    if "shared memory" in text:
        return errors.Overloaded(
            f"The inference server at {address} has run out of shared memory.", "Send fewer structures at once."
        )
    if "inference output" in text:
        return errors.UnsupportedOutput(f"The model {model!r} does not have every output that was asked for.", text[:200])
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.BodyTooLarge("The structure does not fit into one gRPC message.")
    return errors.EvaluationFailed(f"The inference server answered {status.name}: {text[:300]}", "The server's log has more.")


def extra_outputs(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """The outputs beyond energy, forces and stress that a model's configuration names."""
    return tuple(name for name in parameters.get("extra_outputs", "").split(",") if name)


def new_request_id() -> str:
    """An id that finds the request in the model's log."""
    return uuid.uuid4().hex
