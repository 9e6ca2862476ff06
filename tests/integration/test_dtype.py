"""The floating-point type of a model is its user's choice: at the start, on a load, and through a death of its process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from forcegate import ForcegateCalculator
from forcegate.client import Client
from tests.conformance import cases
from tests.conformance.environments import run_in
from tests.service import RunningService, serving

ATOMS = cases.perovskite()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Started in float64, which is not the model's own."""
    with serving(tmp_path_factory.mktemp("dtype"), ("tiny-mace:float64",)) as running:
        yield running


@pytest.fixture(scope="module")
def started(service: RunningService) -> dict[str, Any]:
    """The answer of the model as it was started."""
    return asked(service)


def asked(service: RunningService) -> dict[str, Any]:
    with Client(service.url, timeout=120) as client:
        return dict(client.single_point(ATOMS, "tiny-mace"))


def load(service: RunningService, **body: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/api/v1/models/tiny-mace/load", json=body, timeout=300)


def test_served_in_float64_is_the_package_in_float64(service: RunningService, started: dict[str, Any]) -> None:
    assert started["provenance"]["dtype"] == "float64"
    checkpoint = service.state / "model_repository" / "tiny-mace" / "1" / "tiny.model"
    # Both sum the same terms in float64, in another order.
    assert started["energy"] == pytest.approx(float(run_in("mace", "mace_double", checkpoint).split()[-1]), abs=1e-9)


def test_direct_clients_are_told_too(service: RunningService, started: dict[str, Any]) -> None:
    with ForcegateCalculator("tiny-mace", service.grpc) as calculator:
        atoms = ATOMS.copy()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(started["energy"], abs=1e-9)
        assert calculator.provenance["dtype"] == "float64"


def test_it_survives_the_death_of_its_process_and_of_the_server(service: RunningService, started: dict[str, Any]) -> None:
    before = service.stub("tiny-mace").pid
    service.stub("tiny-mace").kill()
    for process in ("model", "server"):
        answer = asked(service)
        assert answer["provenance"]["dtype"] == "float64", f"after the death of the {process}"
        assert answer["energy"] == pytest.approx(started["energy"], abs=1e-9)
        if process == "model":
            assert service.stub("tiny-mace").pid != before
            tritonserver = service.tritonserver()
            tritonserver.kill()
            psutil.wait_procs([tritonserver], timeout=30)


def test_loading_in_another_dtype_takes_its_place(service: RunningService, started: dict[str, Any]) -> None:
    loaded = load(service, dtype="float32")
    assert (loaded.status_code, loaded.json()["state"]) == (200, "ready"), loaded.text
    assert (loaded.json()["dtype"], loaded.json()["dtypes"]) == ("float32", ["float32", "float64"])
    process = service.stub("tiny-mace").pid
    answer = asked(service)
    assert answer["provenance"]["dtype"] == "float32"
    # A relative rounding of 6e-8 in some hundred operations on energies of some 10 eV: the same model, and other digits.
    assert answer["energy"] == pytest.approx(started["energy"], abs=1e-4)
    assert answer["energy"] != started["energy"]
    assert load(service).status_code == load(service, dtype="float32").status_code == 200
    assert service.stub("tiny-mace").pid == process, "what is loaded so is left as it is"


def test_a_dtype_that_the_model_does_not_have_is_refused_and_leaves_it(service: RunningService) -> None:
    process = service.stub("tiny-mace").pid
    refused = load(service, dtype="float16")
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_dtype")
    assert "float32, float64" in refused.json()["hint"]
    assert load(service, dtype=64).status_code == 400
    assert service.stub("tiny-mace").pid == process
    assert asked(service)["provenance"]["dtype"] in ("float32", "float64")
