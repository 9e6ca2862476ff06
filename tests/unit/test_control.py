"""Triton's control API against a server that, as the real one sometimes does, answers a load with success and does nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from exporters.repository import parameters
from forcefields import catalogue
from forcegate.errors import ModelNotReady
from frontend.triton.control import TritonControl, configuration, dtype_of

NAME = "model"


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, which runs in float64; the first ``ignored`` loads change nothing."""

    def __init__(self, ignored: int) -> None:
        self.ignored, self.loads = ignored, 0
        self.config = configured("float64")

    async def RepositoryModelLoad(self, request: service_pb2.RepositoryModelLoadRequest, _context: object) -> object:
        self.loads += 1
        if self.loads > self.ignored:
            told = request.parameters["config"].string_param if "config" in request.parameters else ""
            message = model_config_pb2.ModelConfig()
            self.config = ParseDict(json.loads(told), message) if told else configured("float32")
        return service_pb2.RepositoryModelLoadResponse()

    async def ModelConfig(self, _request: object, _context: object) -> object:
        return service_pb2.ModelConfigResponse(config=self.config)


def configured(dtype: str) -> model_config_pb2.ModelConfig:
    return ParseDict({"name": NAME, "parameters": {"dtype": {"string_value": dtype}}}, model_config_pb2.ModelConfig())


@asynccontextmanager
async def control_of(served: Server) -> AsyncIterator[TritonControl]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    control = TritonControl(f"127.0.0.1:{port}")
    try:
        yield control
    finally:
        await control.close()
        await server.stop(0)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Its file says float32."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "config.pbtxt").write_text(str(configured("float32")))
    return tmp_path


@pytest.mark.parametrize("ignored", [0, 1, 2])
def test_a_load_that_did_nothing_is_asked_for_again(ignored: int, repository: Path) -> None:
    async def asked() -> None:
        async with control_of(served := Server(ignored)) as control:
            await control.load_in(NAME, "float32", (repository,))
            assert dtype_of(await control.config(NAME)) == "float32"
            assert served.loads == ignored + 1

    asyncio.run(asked())


@pytest.mark.parametrize("ignored", [0, 1])
def test_so_is_a_reload(ignored: int) -> None:
    async def asked() -> None:
        async with control_of(served := Server(ignored)) as control:
            await control.reload(NAME, "float32")
            assert dtype_of(await control.config(NAME)) == "float32"
            assert served.loads == ignored + 1

    asyncio.run(asked())


def test_one_that_never_does_anything_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.triton.control._PAUSES", (0.01, 0.01))

    async def asked() -> None:
        async with control_of(served := Server(100)) as control:
            with pytest.raises(ModelNotReady, match="float32") as raised:
                await control.load_in(NAME, "float32", (repository,))
            assert raised.value.retryable
            assert served.loads == 4

    asyncio.run(asked())


def test_the_configuration_for_another_dtype_differs_in_nothing_else() -> None:
    name, repository = "lj-argon", (Path("model_repository"),)
    assert configuration(name, "float64", repository) is None, "the file says so itself"
    changed = configuration(name, "float32", repository)
    assert changed is not None
    assert dtype_of(changed) == "float32"
    told = {key: value.get("string_value", "") for key, value in changed["parameters"].items()}
    known = catalogue.load()
    variant = known.variants[name]
    assert told == parameters(variant, known.family_of(variant)) | {"dtype": "float32"}
    assert changed["backend"] == "python"
    with pytest.raises(ModelNotReady):
        configuration("no-such-model", "float32", repository)
