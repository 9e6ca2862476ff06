"""Several gateways behind one port: both answer, one that is killed takes nothing along but what it held, and comes back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from forcegate.structure import from_atoms, to_mapping
from tests.chaos.load import clients
from tests.chaos.test_model_process import ARGON
from tests.service import RunningService, serving, stop

BODY = {"model_name": "lj-argon", "atoms": to_mapping(from_atoms(ARGON))}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with two gateways."""
    with serving(tmp_path_factory.mktemp("pair"), ("lj-argon",), gateways=2, drain_seconds=20) as running:
        yield running


def gateways(service: RunningService) -> dict[int, psutil.Process]:
    """The gateways that live, by their process ids."""
    found = {}
    for process in psutil.Process(service.pid).children():
        if "frontend.gateway" in process.cmdline():
            found[process.pid] = process
    return found


def answered(service: RunningService) -> set[str]:
    """The numbers of the gateways that have written a line about a single point."""
    return set(re.findall(r'"gateway":"(\d)".*"route":"/api/v1/single_point"', service.log("gateway")))


def counted(service: RunningService) -> float:
    """Single points that were answered, of /metrics."""
    text = httpx.get(f"{service.url}/metrics").text
    series = r'^forcegate_requests_total\{(?=.*route="/api/v1/single_point")(?=.*status="200").*\} (.*)$'
    return sum(float(value) for value in re.findall(series, text, re.MULTILINE))


def once(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits until something is true, asking again and again."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(service: RunningService) -> bool:
    """One single point on a connection of its own."""
    return httpx.post(f"{service.url}/api/v1/single_point", json=BODY, timeout=30).status_code == 200


def test_both_answer_and_the_metrics_are_of_both(pair: RunningService) -> None:
    asked = 0
    # Which of them takes a connection is the kernel's choice; with a few hundred both have had some.
    while answered(pair) != {"1", "2"} and asked < 600:
        assert ask(pair)
        asked += 1
    assert answered(pair) == {"1", "2"}
    # Whichever answers, the count is of all.
    assert [counted(pair) for _ in range(4)] == [asked] * 4
    text = httpx.get(f"{pair.url}/metrics").text
    assert "forcegate_build_info{" in text
    assert 'forcegate_model_ready{model="lj-argon"} 1.0' in text


def test_what_one_unloads_the_others_see(pair: RunningService) -> None:
    url = f"{pair.url}/api/v1/models/lj-argon"

    def all_say(state: str) -> bool:
        # Each request is a new connection; eight in a row that agree are hardly all from one of the two.
        return all(httpx.get(url).json()["state"] == state for _ in range(8))

    assert httpx.post(f"{url}/unload").status_code < 300
    once(lambda: all_say("loadable"))
    assert httpx.post(f"{url}/load", timeout=60).status_code < 300
    once(lambda: all_say("ready"))


def test_a_killed_gateway_takes_only_what_it_held(pair: RunningService) -> None:
    before, count = gateways(pair), counted(pair)
    with clients(pair, "lj-argon", ARGON, rest=4, grpc=0) as load:
        load.wait_for(40)
        victim = next(iter(before.values()))
        victim.kill()
        # The port is open all the while, so nobody is ever refused.
        assert ask(pair)
        load.wait_for(40, timeout=40)
        once(lambda: len(gateways(pair)) == 2 and victim.pid not in gateways(pair))
        load.wait_for(40)
    # Four clients, one request each in flight: what the killed one held at most.
    assert len(load.failures) <= 4
    assert counted(pair) >= count + 120, "what the killed one counted is still there"


def test_a_stop_leaves_nothing(pair: RunningService) -> None:
    processes = pair.descendants()
    assert len(gateways(pair)) == 2
    assert stop(pair) == 0
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
    assert pair.shared_memory() == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{pair.url}/live")
