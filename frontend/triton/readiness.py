"""Which models a Triton server says are ready, for threads. Its index needs the key of the service; this needs none."""

from __future__ import annotations

import threading
import time
from typing import Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from forcegate.connection import open_channel

KNOWN_SECONDS: Final = 1.0
"""How long an answer is taken to hold."""
PATIENCE_SECONDS: Final = 1.0


class Readiness:
    """The models of the server at ``address``; its channel is opened by the first question. Threads may share it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._stub: service_pb2_grpc.GRPCInferenceServiceStub | None = None
        self._known: dict[str, tuple[float, bool | None]] = {}

    def of(self, model: str) -> bool | None:
        """Whether the model, by its canonical name, is ready; None where the server does not answer."""
        with self._lock:
            asked, ready = self._known.get(model, (float("-inf"), None))
            if time.monotonic() - asked > KNOWN_SECONDS:
                ready = self._ask(model)
                self._known[model] = time.monotonic(), ready
            return ready

    def _ask(self, model: str) -> bool | None:
        if self._stub is None:
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel(self._address))
        try:
            answer = self._stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            return None if away else False
        return bool(answer.ready)
