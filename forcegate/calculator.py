"""``ForcegateCalculator``: a served model as an ASE calculator, over Triton's gRPC.

Energies in eV, forces in eV/A, stress in eV/A^3 (Voigt xx yy zz yz xz xy, ASE's sign), magnetic moments in mu_B.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from tritonclient.grpc import service_pb2, service_pb2_grpc

from forcegate import contract, errors
from forcegate.retries import Attempts, Process
from forcegate.structure import Structure, from_atoms
from forcegate.tensors import pack

ADDRESS_VARIABLE = "FORCEGATE_GRPC"
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
                # A proxy of the environment, which gRPC would ask otherwise, cannot reach this machine's own loopback.
                local = self.address.startswith(("127.", "localhost:", "[::1]:"))
                options = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not local))]
                self._channel = grpc.insecure_channel(self.address, options=options)
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
        answer = self._answer(lambda left: self.stub.ModelInfer(request, timeout=left), attempts)
        return decode(answer)

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

    def provenance(self, head: str | None, attempts: Attempts) -> dict[str, str]:
        """Where the answers of ``head`` come from, with the keys of a REST answer's ``provenance``."""
        known = self.parameters(attempts)
        head = head or known.get("default_head", "")
        provenance = {"model": self.model, "head": head} | {name: known.get(name, "") for name in PROVENANCE}
        provenance["dispersion"] = "included" if known.get("dispersion") == "included" else "none"
        provenance["functional"] = json.loads(known.get("head_functionals") or "{}").get(head, provenance["functional"])
        return provenance

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
        try:
            index = self.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=2.0).models
        except grpc.RpcError:
            return error
        known = {entry.name: entry for entry in index}
        if (entry := known.get(self.model)) is None:
            from difflib import get_close_matches

            ready = sorted(name for name, entry in known.items() if entry.state == "READY")
            if (canonical := self._alias(ready)) is not None:
                self.model = canonical
                return errors.ModelNotReady(f"The model is called {canonical!r}.")
            near = get_close_matches(self.model, known, n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            return errors.UnknownModel(
                f"There is no model {self.model[:60]!r} at {self.address}.", f"{hint}Loaded are: {', '.join(ready) or 'none'}."
            )
        return errors.from_wire(entry.reason) or error


    def _alias(self, ready: Sequence[str]) -> str | None:
        """The loaded model that has ``self.model`` among its aliases."""
        for name in ready:
            with suppress(grpc.RpcError):
                answer = self.stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=2.0)
                if self.model in answer.config.parameters["aliases"].string_value.split(","):
                    return name
        return None


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


def results_of(answer: Mapping[str, np.ndarray], atoms: int) -> dict[str, Any]:
    """ASE's results from the tensors of one structure: energy as a float (and as ``free_energy``), the rest as arrays."""
    results: dict[str, Any] = {}
    for name, array in answer.items():
        if name == "energy":
            results["energy"] = results["free_energy"] = float(array[0, 0])
        elif name == "stress":
            if not np.isnan(array).any():
                results["stress"] = array[0]
        else:
            results[name] = array[0, :atoms]
    return results


def new_request_id() -> str:
    """An id that finds the request in the model's log."""
    return uuid.uuid4().hex


class ForcegateCalculator(Calculator):
    """A model that a Forcegate service has loaded, as an ASE calculator.

    One geometry costs one call: energy, forces and, where the structure is periodic in all three directions, stress come
    together, whatever is asked for first. A further output of the model (``magmoms``, ``energies``, ``charges``) is computed once
    it has been asked for, and from then on with every geometry. The total charge and the spin multiplicity 2S+1 are read from
    ``atoms.info["charge"]`` and ``atoms.info["spin"]``. ``free_energy`` equals ``energy``.

    A model's process or a server that restarts is waited for within ``timeout``. Copies and pickles open a connection of their
    own. Threads that share one calculator take turns; with a calculator each, their calls share batches.

    Args:
        model: name of the model, such as ``sevennet-0``.
        address: ``host:port`` of Triton's gRPC; ``FORCEGATE_GRPC``, else ``127.0.0.1:8001``.
        head: head (MACE), modal (SevenNet) or task (UMA); the model's default where it is None.
        timeout: seconds for one calculation, waiting and retries included.
        connect_timeout: seconds to wait for a service or a model that has never answered this calculator.
        compute: what every call computes. ``("energy",)`` saves the forces where only energies are used (Monte Carlo).
        dispersion: ``none``; the dispersion models are not served yet.

    Raises:
        ForcegateError: on calculation, the typed error of the model or of the service (``forcegate.errors``).
        PropertyNotImplementedError: on ``get_stress``, where the structure is not periodic in all three directions.
    """

    name = "forcegate"
    ignored_changes: set[str] = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 - an instance variable in ASE's class
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str,
        address: str | None = None,
        *,
        head: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        compute: Sequence[str] = ("energy", "forces", "stress"),
        dispersion: str = "none",
    ) -> None:
        if dispersion != "none":
            raise errors.DispersionNotSupported(
                f"dispersion={dispersion!r} is not available yet.",
                "Leave it out, or add ase's or simple-dftd3's calculator with SumCalculator.",
            )
        self.connection = Connection(model, address)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._compute = frozenset(compute)
        self._lock = threading.RLock()
        super().__init__(model=model, head=head)

    @property
    def implemented_properties(self) -> list[str]:  # type: ignore[override]
        """``energy``, ``free_energy``, ``forces``, ``stress`` and the model's further outputs; the first use asks the service."""
        return ["energy", "free_energy", "forces", "stress", *extra_outputs(self.connection.parameters(self._attempts()))]

    @property
    def provenance(self) -> dict[str, str]:
        """Where the numbers come from: model, head, checkpoint_sha256, functional, package and more, as the service states it."""
        return self.connection.provenance(self.parameters["head"], self._attempts())

    def set(self, **parameters: Any) -> dict[str, Any]:
        """Changes ``model`` or ``head``; the results of the former one are dropped."""
        if unknown := set(parameters) - {"model", "head"}:
            raise TypeError(f"ForcegateCalculator has no parameter {', '.join(sorted(unknown))}; `model` and `head` can be set.")
        changed = super().set(**parameters)
        if "model" in changed and self.connection.model != parameters["model"]:
            self.connection.close()
            self.connection = Connection(parameters["model"], self.connection.address)
        return changed

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """One property of ``atoms`` by ASE's rules; computed only where the last results do not hold it."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; ASE's own check leaves out the total charge and the spin."""
        changes = list(super().check_state(atoms, tol))
        if self.atoms is not None:
            changes += [key for key in ("charge", "spin") if self.atoms.info.get(key) != atoms.info.get(key)]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Asks the model for ``properties`` and all that ``compute`` names, unless the last results hold them."""
        super().calculate(atoms, properties, system_changes)
        if system_changes:
            self.results = {}
        structure = from_atoms(self.atoms)
        wanted = {"energy" if name == "free_energy" else name for name in properties}
        if "stress" in wanted and not structure.pbc.all():
            raise PropertyNotImplementedError(
                "Stress is defined only for a structure that is periodic in all three directions; "
                f"this one has pbc={structure.pbc.tolist()}."
            )
        self._compute |= wanted
        outputs = self._compute - set(self.results) - (set() if structure.pbc.all() else {"stress"})
        request_id = new_request_id()
        try:
            request = self.connection.request([structure], sorted(outputs), self.parameters["head"], request_id)
            answer = self.connection.infer(request, self._attempts())
        except errors.ForcegateError as error:
            error.request_id = request_id
            raise
        self.results |= results_of(answer, len(structure))

    def close(self) -> None:
        """Ends the connection; a later calculation opens a new one."""
        self.connection.close()

    def __enter__(self) -> ForcegateCalculator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _attempts(self) -> Attempts:
        return Attempts(self.timeout, self.connect_timeout)
