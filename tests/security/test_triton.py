"""Triton's own ports: whoever reaches them may ask models, and change nothing; and to whom spans are sent over HTTPS."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from tests.collector import Collector, Span, collecting, context, several_times
from tests.service import RunningService, environment, free_ports, serving, stop, wait_until

ARGON = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.8]])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client that it signed."""
    return signed(tmp_path_factory.mktemp("certificates"), "server", "client")


@pytest.fixture(scope="module")
def collector(certificates: Path) -> Iterator[Collector]:
    """A collector of spans whose certificate is of that authority, which this machine does not know."""
    with collecting(certificates) as running:
        yield running


@pytest.fixture(scope="module")
def settings(certificates: Path, collector: Collector) -> dict[str, Any]:
    """Of a service that asks its gRPC clients for a certificate, and sends spans of requests whose caller wants them traced."""
    return {
        "grpc_server_certificate": certificates / "server.pem",
        "grpc_server_key": certificates / "server.key",
        "grpc_client_certificate": certificates / "client.pem",
        "grpc_client_key": certificates / "client.key",
        "grpc_ca": certificates / "ca.pem",
        "grpc_mutual": "true",
        "traces": collector.url,
        "traces_ca": certificates / "ca.pem",
        "traces_ratio": 0,
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Iterator[RunningService]:
    with serving(tmp_path_factory.mktemp("mutual"), ("lj-argon",), workers=0, **settings) as running:
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


def traced(url: str, collector: Collector, count: int) -> tuple[dict[str, Any], list[Span]]:
    """The answer to a request that is to be traced, and so many of its spans."""
    trace, _, headers = context()
    body = {"model_name": "lj-argon", "atoms": {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}}
    answer = httpx.post(f"{url}/api/v1/single_point", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json(), collector.of(trace, count)


@contextmanager
def beside(service: RunningService, log: Path, settings: dict[str, Any]) -> Iterator[str]:
    """The address of another gateway of the service's Triton, with settings of its own."""
    ports = (*free_ports(1), service.grpc_port, service.metrics_port, service.http_port)
    variables = environment(service.state, ("lj-argon",), ports, **settings)
    # Without a preexec_fn, before which gRPC's threads of this process would begin anew in the child and end it.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "forcegate.cli", "gateway"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{ports[0]}"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, "the gateway does not begin", 120)
        yield url
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def test_a_collector_of_another_authority_gets_nothing_and_requests_are_answered(
    service: RunningService, settings: dict[str, Any], collector: Collector, tmp_path: Path
) -> None:
    log = tmp_path / "gateway.log"
    other = signed(tmp_path, "server") / "ca.pem"
    known, _ = several_times(traced)(service.url, collector, 4)
    with beside(service, log, settings | {"traces_ca": other}) as url:
        # The model, which trusts the collector, has told of each request by now: they were to be traced.
        asked = [several_times(traced)(url, collector, 1)]
        wait_until(lambda: "certificate verify failed" in log.read_text(), "nobody says why spans are missing", 20)
        asked.append(several_times(traced)(url, collector, 1))
    # At its end it has tried once more to send what was left.
    traces = {spans[0].trace for _, spans in asked}
    assert {span.service for span in collector.spans if span.trace in traces} == {"forcegate-model"}
    assert [(answer["energy"], answer["forces"]) for answer, _ in asked] == 2 * [(known["energy"], known["forces"])]


def test_gateway_and_model_send_spans_over_https_and_triton_trusts_the_machine_alone(
    service: RunningService, collector: Collector
) -> None:
    _, spans = several_times(traced)(service.url, collector, 4)
    gateway = dict.fromkeys(("POST /api/v1/single_point", "queue", "ModelInfer"), "forcegate-gateway")
    assert {span.name: span.service for span in spans} == gateway | {"execute": "forcegate-model"}
    assert stop(service) == 0  # Triton keeps such lines back until it ends
    assert "SSL certificate problem" in service.log("triton")
    assert "forcegate-triton" not in {span.service for span in collector.spans}
