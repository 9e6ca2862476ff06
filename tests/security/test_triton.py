"""Triton's own ports: whoever reaches them may ask models, and change nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from ase import Atoms
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from forcegate import ForcegateCalculator
from forcegate.connection import CONTROL_HEADER, Connection
from forcegate.errors import ServerUnavailable, UnknownModel
from frontend.triton.restriction import FILE, HTTP_HEADER
from tests.certificates import signed
from tests.service import RunningService, serving

ARGON = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.8]])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client that it signed."""
    return signed(tmp_path_factory.mktemp("certificates"), "server", "client")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[RunningService]:
    """One that asks its gRPC clients for a certificate."""
    files = {
        "grpc_server_certificate": certificates / "server.pem",
        "grpc_server_key": certificates / "server.key",
        "grpc_client_certificate": certificates / "client.pem",
        "grpc_client_key": certificates / "client.key",
        "grpc_ca": certificates / "ca.pem",
    }
    with serving(tmp_path_factory.mktemp("mutual"), ("lj-argon",), grpc_mutual="true", workers=0, **files) as running:
        yield running


@pytest.fixture
def trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a client that has a certificate."""
    monkeypatch.setenv("FORCEGATE_GRPC_CA", str(certificates / "ca.pem"))
    monkeypatch.setenv("FORCEGATE_GRPC_CLIENT_CERTIFICATE", str(certificates / "client.pem"))
    monkeypatch.setenv("FORCEGATE_GRPC_CLIENT_KEY", str(certificates / "client.key"))


@pytest.mark.usefixtures("trusted")
def test_without_the_key_models_answer_and_nothing_is_changed(service: RunningService) -> None:
    with ForcegateCalculator("lj-argon", service.grpc) as calculator:
        assert calculator.get_potential_energy(ARGON) < 0
    with pytest.raises(UnknownModel, match="lj-argon"):
        ForcegateCalculator("lj-argo", service.grpc).get_potential_energy(ARGON)
    with closing(Connection("lj-argon", service.grpc)) as connection:
        stub: service_pb2_grpc.GRPCInferenceServiceStub = connection.stub
        refused = {
            "load": (stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest(model_name="lj-argon")),
            "unload": (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name="lj-argon")),
            "index": (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            "shared memory": (stub.SystemSharedMemoryRegister, service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/b")),
            "shared memory status": (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            "trace": (stub.TraceSetting, service_pb2.TraceSettingRequest()),
            "log": (stub.LogSettings, service_pb2.LogSettingsRequest()),
        }
        for name, (call, request) in refused.items():
            for metadata in ((), ((CONTROL_HEADER, "wrong"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(request, timeout=10, metadata=metadata)
                assert "restricted" in (caught.value.details() or ""), name  # type: ignore[attr-defined]
        key = (service.state / FILE).read_text()
        index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10, metadata=((CONTROL_HEADER, key),))
        assert "lj-argon" in {model.name for model in index.models}
    assert stat.S_IMODE((service.state / FILE).stat().st_mode) == 0o600


def test_the_same_over_http(service: RunningService) -> None:
    url = f"http://127.0.0.1:{service.http_port}/v2"
    assert httpx.get(f"{url}/models/lj-argon").status_code == 200
    for path in ("repository/models/lj-argon/unload", "repository/index", "systemsharedmemory/region/a/register", "logging"):
        assert httpx.post(f"{url}/{path}", json={}).status_code == 403, path
    key = (service.state / FILE).read_text()
    assert httpx.post(f"{url}/repository/index", headers={HTTP_HEADER: key}).status_code == 200


def test_the_gateway_loads_and_unloads(service: RunningService) -> None:
    for step, state in (("unload", "loadable"), ("load", "ready")):
        answer = httpx.post(f"{service.url}/api/v1/models/lj-argon/{step}", timeout=120)
        assert (answer.status_code, answer.json()["state"]) == (200, state)


def test_who_has_no_certificate_is_not_answered(
    service: RunningService, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerUnavailable):
        ForcegateCalculator("lj-argon", service.grpc, connect_timeout=1).get_potential_energy(ARGON)
    client = triton.InferenceServerClient(service.grpc, ssl=True, root_certificates=str(certificates / "ca.pem"))
    with pytest.raises(InferenceServerException):
        client.is_server_live(client_timeout=3)
    client.close()
    monkeypatch.setenv("FORCEGATE_GRPC_CA", str(certificates / "ca.pem"))
    with pytest.raises(ServerUnavailable):
        ForcegateCalculator("lj-argon", service.grpc, connect_timeout=1).get_potential_energy(ARGON)
