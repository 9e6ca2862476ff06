"""A thousand bodies that are not what they should be: each gets its own 4xx, and the gateway stays as large as it was."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx
import msgpack
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import RunningService

GOOD: dict[str, Any] = {
    "model_name": "lj-argon",
    "atoms": {
        "symbols": ["Ar", "Ar"],
        "positions": [[0.0, 0.0, 0.0], [0.0, 0.0, 3.8]],
        "cell": [20.0, 20.0, 20.0],
        "pbc": [True] * 3,
    },
    "compute_forces": True,
}
BATCH = GOOD | {"atoms": [GOOD["atoms"], {"format": "xyz", "text": "1\n\nAr 0 0 0\n"}]}
MULTI = {"model_names": ["lj-argon", "chgnet"], "task": "single_point", "task_params": {"align": True}, "atoms": GOOD["atoms"]}
ROUTES = {"single_point": GOOD, "batch": BATCH, "multi_model": MULTI}

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["Ar", "cif", "optimade", "NaN", 10**30, -1, 0, 119, 1e308, {"format": "cif"}, {"format": "poscar", "text": "x\n1\n"}]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a body that can be replaced."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """``value`` with ``new`` in one place."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A route, a media type and a body: good ones with one to three places spoiled, cut short, or bytes of no meaning."""
    route = draw(st.sampled_from(list(ROUTES)))
    media = draw(st.sampled_from(["application/json", "application/msgpack"]))
    body = ROUTES[route]
    for _ in range(draw(st.integers(1, 3))):
        body = replaced(body, draw(st.sampled_from(places(body))), draw(junk))
    if media == "application/json":
        encoded = json.dumps(body).encode("utf-8", "replace")  # NaN and Infinity as Python writes them
    else:
        encoded = msgpack.packb(body, default=str) if not _has_huge_integer(body) else b"\xc1"
    how = draw(st.integers(0, 9))
    if how == 0:
        encoded = encoded[: draw(st.integers(0, len(encoded)))]
    elif how == 1:
        encoded = draw(st.binary(max_size=200))
    elif how == 2:
        encoded = encoded.replace(b"3.8", b"NaN").replace(b"true", b"Infinity")
    return route, media, encoded


def _has_huge_integer(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_huge_integer(child) for child in value.values())
    if isinstance(value, list):
        return any(_has_huge_integer(child) for child in value)
    return isinstance(value, int) and not -(2**63) <= value < 2**64


@pytest.fixture(scope="module")
def gateway(service: RunningService) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=60)


def resident_mb(service: RunningService) -> float:
    process = service.gateway()
    return sum(p.memory_info().rss for p in [process, *process.children()]) / 2**20


def test_a_thousand_malformed_bodies(service: RunningService, gateway: httpx.Client) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(bodies())
    def send(case: tuple[str, str, bytes]) -> None:
        route, media, body = case
        response = gateway.post(f"/api/v1/{route}", content=body, headers={"Content-Type": media})
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        # A spoiled place can be one that does not matter, so 200 is no failure; what fails does it in its own words.
        assert response.status_code in (200, 400, 404, 413, 422), (body, response.text)
        if response.status_code != 200:
            assert set(response.json()) == {"detail", "code", "retryable", "hint"}

    for _ in range(20):  # what is imported and cached on first use is there before
        gateway.post("/api/v1/batch", json=BATCH)
    before = resident_mb(service)
    send()
    assert statuses.get(422, 0) > 100, statuses
    assert statuses.get(400, 0) > 100, statuses
    # Allocators keep some slack; a leak of bodies would be larger by far after a thousand of them.
    assert resident_mb(service) - before < 40
    good = gateway.post("/api/v1/single_point", json=GOOD)
    assert good.status_code == 200, good.text


@pytest.mark.parametrize("length", [2.2e-16, 1e-6, 0.1])
def test_a_cell_without_height_is_invalid_and_not_too_much_work(gateway: httpx.Client, length: float) -> None:
    atoms = GOOD["atoms"] | {"cell": [length, 20.0, 20.0], "pbc": True}
    response = gateway.post("/api/v1/single_point", json=GOOD | {"atoms": atoms})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_cell")
    assert not response.json()["retryable"]


def test_large_bodies_leave_no_memory_behind(service: RunningService, gateway: httpx.Client) -> None:
    atoms = {"numbers": [18] * 400_000, "positions": [[1.5, 2.5, 3.5]] * 400_000}
    body = orjson.dumps({"model_name": "lj-argon", "atoms": atoms})
    sizes = []
    for _ in range(6):
        response = gateway.post("/api/v1/single_point", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["code"] == "structure_too_large"
        sizes.append(resident_mb(service))
    assert sizes[-1] - sizes[1] < 60, sizes
