"""What is served, and loading and unloading over REST."""

from __future__ import annotations

import httpx
import pytest

from forcefields import catalogue
from tests.service import RunningService

ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}


@pytest.fixture(scope="module")
def gateway(service: RunningService) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=120)


def test_models_tell_what_they_are_and_how_their_gate_went(gateway: httpx.Client) -> None:
    listed = {model["name"]: model for model in gateway.get("/api/v1/models").json()["models"]}
    for name in ("sevennet-0", "chgnet-0.3.0", "sevennet-mf-0"):
        model, variant = listed[name], catalogue.load().variants[name]
        assert (model["state"], model["error"]) == ("ready", None)
        assert model["checkpoint_sha256"] == variant.checkpoint.sha256
        assert len(model["elements"]) == len(variant.elements)
        assert model["memory_usage_mb"] > 100
        assert model["gate"]["checks"]
        assert all(check["passed"] for check in model["gate"]["checks"])
        assert gateway.get(model["url"]).json()["name"] == name
        assert (model["source"], model["needs"]) == ("package", [])
    # At one look: what would have to be done before these can be loaded, and what for.
    assert listed["mace-mp-0-medium"]["needs"] == ["download"]
    assert listed["mace-omat-0-medium"]["needs"] == ["download", "licence"]
    assert listed["uma-s-1p2"]["needs"] == ["download", "token", "licence"]
    assert listed["mace-mp-0-medium"]["checkpoint_sha256"] is None
    assert all(model["summary"] for model in listed.values())
    assert not [name for name in listed if name.startswith(("tiny-", "random-"))]
    assert listed["chgnet-0.3.0"]["outputs"] == ["energy", "forces", "stress", "magmoms"]
    assert listed["sevennet-mf-0"]["head_functionals"] == {"PBE": "PBE(+U)", "R2SCAN": "r2SCAN"}


def test_health_has_a_worker_for_each_family(gateway: httpx.Client) -> None:
    health = gateway.get("/health").json()
    assert health["status"] == "healthy"
    assert health["inference_server"]["reachable"]
    assert health["inference_server"]["seconds_since_seen"] < 10
    assert {"sevennet", "chgnet"} <= health["workers"].keys()
    assert health["available_workers"] >= 3
    for name in ("sevennet", "chgnet"):
        worker = health["workers"][name]
        assert (worker["status"], worker["service"]) == ("healthy", name)
        assert worker["memory_usage_mb"] > 100
        assert worker["device"]
    assert gateway.get("/ready").json()["status"] == "ready"


def test_unload_and_load(gateway: httpx.Client) -> None:
    body = {"model_name": "lj-argon", "atoms": ARGON}
    before = gateway.post("/api/v1/single_point", json=body).json()["energy"]
    try:
        unloaded = gateway.post("/api/v1/models/lennard-jones/unload")
        assert (unloaded.status_code, unloaded.json()["state"]) == (200, "loadable")
        refused = gateway.post("/api/v1/single_point", json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "model_not_ready")
        assert "/load" in refused.json()["hint"]
        assert refused.elapsed.total_seconds() < 1, "nobody waits for a model that was unloaded on purpose"
        assert gateway.post("/api/v1/models/lj-argon/unload").status_code == 200
        # A caller that does not wait is told that it goes on.
        hasty = gateway.post("/api/v1/models/lj-argon/load", headers={"X-Forcegate-Timeout": "0.01"})
        assert (hasty.status_code, hasty.json()["state"]) == (202, "loading")
    finally:
        loaded = gateway.post("/api/v1/models/lj-argon/load")
    assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")
    assert loaded.json()["load_seconds"] > 0
    again = gateway.post("/api/v1/models/lj-argon/load")
    assert (again.status_code, again.json()["load_seconds"]) == (200, loaded.json()["load_seconds"])
    assert gateway.post("/api/v1/single_point", json=body).json()["energy"] == before


def test_names_that_do_not_exist_cannot_be_loaded(gateway: httpx.Client) -> None:
    for action in ("load", "unload"):
        response = gateway.post(f"/api/v1/models/chgnett/{action}")
        assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
        assert "chgnet" in response.json()["hint"]
