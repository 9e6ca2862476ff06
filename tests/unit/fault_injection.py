"""A Triton that fails on purpose: it speaks just enough of its gRPC protocol to show how the clients take each fault.

Its numbers are made up (the energy is the number of atoms) and stand for no model; physics is tested against the real server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from forcegate import contract

UNHEALTHY = "Failed to process the request(s) for model instance 'm_0_0', message: Stub process 'm_0_0' is not healthy."

Fault = tuple[grpc.StatusCode, str]


class FaultyTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the faults in ``faults``, first to last, then with results.

    ``poison`` is an atomic number: a structure that holds it kills the model's process, with all that it is evaluating, until
    ``deaths`` processes have died; then it is refused. The next process is there after ``recovery`` seconds.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.index: dict[str, tuple[str, str]] = {"m": ("READY", "")}
        self.parameters = {"contract_version": "1", "extra_outputs": "magmoms", "heads": "a,b", "default_head": "a"}
        self.fits: dict[str, int] = {}
        """Atoms of the largest structure that a model has memory for; without an entry there is no limit."""
        self.poison, self.deaths, self.recovery, self.seconds = 0, 2, 0.3, 0.0
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.running = self.most_running = self.processes = 0
        self._dead_until = 0.0
        self._lock = threading.Lock()

    def ModelConfig(self, _request: object, context: grpc.ServicerContext) -> service_pb2.ModelConfigResponse:
        if self.index.get("m", ("", ""))[0] != "READY":
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")
        known = self.parameters | {"reloaded": str(self.processes)}
        return service_pb2.ModelConfigResponse(
            config=model_config_pb2.ModelConfig(
                parameters={name: model_config_pb2.ModelParameter(string_value=text) for name, text in known.items()}
            )
        )

    def ModelReady(self, request: service_pb2.ModelReadyRequest, _context: grpc.ServicerContext) -> service_pb2.ModelReadyResponse:
        return service_pb2.ModelReadyResponse(ready=self.index.get(request.name, ("", ""))[0] == "READY")

    def RepositoryIndex(self, _request: object, _context: grpc.ServicerContext) -> service_pb2.RepositoryIndexResponse:
        entry = service_pb2.RepositoryIndexResponse.ModelIndex
        models = [entry(name=name, state=state, reason=reason) for name, (state, reason) in self.index.items()]
        return service_pb2.RepositoryIndexResponse(models=models)

    def ModelStatistics(self, _request: object, _context: grpc.ServicerContext) -> service_pb2.ModelStatisticsResponse:
        ready = [name for name, (state, _) in self.index.items() if state == "READY"]
        return service_pb2.ModelStatisticsResponse(model_stats=[service_pb2.ModelStatistics(name=name) for name in ready])

    def ModelInfer(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
        with self._lock:
            self.requests.append(request)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            fault = self.faults.pop(0) if self.faults else None
            process = self.processes
        try:
            if fault is not None:
                context.abort(*fault)
            time.sleep(self.seconds)
            numbers = np.frombuffer(request.raw_input_contents[0], dtype=np.int32).reshape(request.inputs[0].shape)
            too_large = np.flatnonzero(np.count_nonzero(numbers, axis=1) > self.fits.get(request.model_name, numbers.size))
            if too_large.size:
                where = f"Structure {too_large[0]} of {len(numbers)} in this request: " if len(numbers) > 1 else ""
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"out_of_memory: {where}It does not fit.")
            if self.poison in numbers and self.poison:
                if self.processes >= self.deaths:
                    context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT, "evaluation_failed: The model's process died of this structure."
                    )
                self._die()
            if time.monotonic() < self._dead_until or process != self.processes:
                context.abort(grpc.StatusCode.INTERNAL, UNHEALTHY)
            return self._results(request, numbers)
        finally:
            with self._lock:
                self.running -= 1

    def _die(self) -> None:
        with self._lock:
            if time.monotonic() >= self._dead_until:
                self._dead_until = time.monotonic() + self.recovery
                threading.Timer(self.recovery, self._revive).start()

    def _revive(self) -> None:
        self.processes += 1

    def _results(self, request: service_pb2.ModelInferRequest, numbers: np.ndarray) -> service_pb2.ModelInferResponse:
        answer = service_pb2.ModelInferResponse(model_name="m")
        for output in request.outputs:
            spec = next(spec for spec in contract.output_specs(tuple(contract.EXTRA_OUTPUTS)) if spec.name == output.name)
            array = np.zeros(spec.shape(*numbers.shape), dtype=spec.dtype)
            if spec.name == "energy":
                array[:, 0] = np.count_nonzero(numbers, axis=1)
            answer.outputs.add(name=spec.name, datatype=spec.triton_type, shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@contextmanager
def serving(triton: FaultyTriton, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Yields the ``host:port`` where ``triton`` answers."""
    server = grpc.server(ThreadPoolExecutor(max_workers=64))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
