"""What one API key may ask for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forcegate.errors import RateLimited
from frontend.security.keys import Key, KeyStore, Scope
from frontend.security.limits import KeyLimits
from frontend.settings import Settings, load
from tests.service import ROOT, free_ports
from tests.unit.test_api_keys import bearer
from tests.unit.test_gateway_app import client, is_error

ALICE, BOB = (Key(id=name * 16, digest="", name=name, user=name, scope=Scope.COMPUTE, created=0.0) for name in "ab")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_come_at_the_rate_after_a_burst() -> None:
    clock = Clock()
    limits = KeyLimits(Settings(key_requests_per_second=5), clock)
    for _ in range(10):
        limits.request(ALICE)
    with pytest.raises(RateLimited) as refused:
        limits.request(ALICE)
    assert refused.value.retry_after == 1
    limits.request(BOB)
    passed = 0
    for _ in range(100):
        clock.now += 0.1
        try:
            limits.request(ALICE)
            passed += 1
        except RateLimited:
            continue
    assert passed == pytest.approx(50, abs=1)


def test_slow_rates_say_when_the_next_request_may_come() -> None:
    clock = Clock()
    limits = KeyLimits(Settings(key_requests_per_second=0.1), clock)
    limits.request(ALICE)
    with pytest.raises(RateLimited) as refused:
        limits.request(ALICE)
    assert refused.value.retry_after == 10
    clock.now += 10
    limits.request(ALICE)


def test_gateways_share_what_a_key_may() -> None:
    limits = KeyLimits(Settings(key_requests_per_second=5, key_structures=10, gateways=4))
    assert (limits.rate, limits.structures) == (1.25, 3)


def test_structures_in_flight_are_of_one_key() -> None:
    limits = KeyLimits(Settings(key_structures=4))
    with limits.hold(ALICE, 3):
        with pytest.raises(RateLimited, match="3 structures in flight, of at most 4"), limits.hold(ALICE, 2):
            pass
        with limits.hold(BOB, 4), limits.hold(ALICE, 1), limits.hold(None, 100):
            pass
    with limits.hold(ALICE, 9):  # alone: the request's own limits are the ones that count
        pass
    with limits.hold(ALICE, 4):
        pass


def test_zero_is_no_limit() -> None:
    limits = KeyLimits(Settings(key_requests_per_second=0, key_structures=0))
    for _ in range(1000):
        limits.request(ALICE)
    with limits.hold(ALICE, 10**6), limits.hold(ALICE, 10**6):
        pass


def test_over_rest(tmp_path: Path) -> None:
    settings = load(grpc_port=free_ports(1)[0], state=tmp_path, root=ROOT, keys="on", key_requests_per_second=2)
    store = KeyStore(settings)
    tokens = [store.create(name, name, Scope.READ)[0] for name in ("alice", "bob")]
    store.close()

    async def scene() -> None:
        async with client(settings) as gateway:
            answers = [await gateway.get("/api/v1/models", headers=bearer(tokens[0])) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200] * 4 + [429]
            is_error(answers[-1], 429, "rate_limited")
            assert answers[-1].headers["Retry-After"] == "1"
            assert (await gateway.get("/api/v1/models", headers=bearer(tokens[1]))).status_code == 200
            assert (await gateway.get("/health", headers=bearer(tokens[0]))).status_code == 200, "it needs no key"

    asyncio.run(scene())
