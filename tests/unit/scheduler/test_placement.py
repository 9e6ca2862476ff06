"""Where work goes: properties that hold for any cluster, and the cases that a person would ask about."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.scheduler import eviction
from frontend.scheduler.cluster import Cluster, Resident
from frontend.scheduler.device import Device
from frontend.scheduler.placement import Decision, Demand, decide, place
from frontend.scheduler.policy import Policy

NOW = 10_000.0
MODELS = ("a", "b", "c", "d")


def gpu(number: int, total: int = 80_000, used: int = 0, **more: object) -> Device:
    return Device(f"gpu-{number}", number, "gpu", "a GPU", total, used, **{"utilization": 0.0, "temperature": 40.0} | more)  # type: ignore[arg-type]


def resident(model: str, base: int = 5000, used: float = 0.0, **more: object) -> Resident:
    return Resident(model, base, since=0.0, loaded=True, last_used=used, **more)  # type: ignore[arg-type]


devices = st.lists(
    st.builds(
        lambda total, used, utilization, temperature, fault: (total, used, utilization, temperature, fault),
        st.sampled_from([10_000, 40_000, 80_000]),
        st.integers(0, 20_000),
        st.sampled_from([None, 0.0, 50.0, 100.0]),
        st.sampled_from([None, 30.0, 95.0]),
        st.sampled_from(["", "", "", "lost"]),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        Device(f"gpu-{n}", n, "gpu", "a GPU", total, used, utilization, temperature, fault=fault)
        for n, (total, used, utilization, temperature, fault) in enumerate(rows)
    ]
)
demands = st.builds(Demand, st.sampled_from(MODELS), st.integers(100, 30_000), st.integers(0, 60_000), st.booleans())


def residents(model: str) -> st.SearchStrategy[Resident]:
    """A model on a device, in any state."""
    return st.builds(
        Resident,
        st.just(model),
        st.integers(100, 20_000),
        since=st.floats(0, NOW),
        load_seconds=st.sampled_from([0.0, 10.0, 1e5]),
        loaded=st.booleans(),
        leaving=st.booleans(),
        in_flight=st.integers(0, 1),
        work_mb=st.integers(0, 5000),
        last_used=st.floats(0, NOW),
    )


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Device], list[tuple[str, Resident]], Policy]:
    """An inventory, residents of any state, a policy."""
    inventory = draw(devices)
    there = [
        (device.id, draw(residents(model)))
        for device in inventory
        for model in draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=2))
    ]
    policy = Policy(
        pinned=draw(st.frozensets(st.sampled_from(MODELS), max_size=2)),
        reserved={inventory[0].id: frozenset("a")} if draw(st.booleans()) else {},
        allowed={"b": tuple(device.id for device in inventory[:2])} if draw(st.booleans()) else {},
    )
    return inventory, there, policy


@settings(max_examples=60, deadline=None)
@given(clusters(), demands, st.randoms())
def test_the_order_in_which_devices_are_listed_changes_nothing(
    cluster: tuple[list[Device], list[tuple[str, Resident]], Policy], demand: Demand, random: object
) -> None:
    inventory, there, policy = cluster
    expected = place(demand, inventory, there, policy, NOW)
    shuffled = list(inventory)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(demand, shuffled, list(reversed(there)), policy, NOW) == expected


@settings(max_examples=100, deadline=None)
@given(clusters(), demands)
def test_what_is_decided_keeps_to_every_limit(
    cluster: tuple[list[Device], list[tuple[str, Resident]], Policy], demand: Demand
) -> None:
    inventory, there, policy = cluster
    state = Cluster(inventory, policy)
    for device, each in there:
        state.put(replace(each), state.position[device])
    decision = decide(demand, state, NOW)
    if decision.at < 0:
        assert decision.reasons, "a person is told why"
        return
    device = state.devices[decision.at]
    assert not device.fault
    assert demand.model in policy.reserved.get(device.id, (demand.model,))
    assert device.id in policy.allowed.get(demand.model, (device.id,))
    for victim in decision.evictions:
        gone = state.residents[decision.at][victim]
        assert not gone.in_flight, "work in flight is never evicted"
        assert victim not in policy.pinned
        assert NOW - gone.since >= policy.hold * gone.load_seconds, "no thrash"
        state.remove(victim, decision.at)
        # What a model gives back shows in the next reading.
        state.read(replace(device, memory_used_mb=max(state.devices[decision.at].memory_used_mb - gone.base_mb, 0)))
    if decision.action == "use":
        state.start(demand.model, decision.at, demand.work_mb, NOW)
    else:
        state.load(demand.model, decision.at, demand.base_mb, NOW)
        state.start(demand.model, decision.at, demand.work_mb, NOW)
    assert state.count[decision.at] <= policy.models_per_device
    assert state.held[decision.at] <= device.memory_total_mb - policy.margin_mb


def test_a_model_gets_no_work_where_others_have_the_device_reserved() -> None:
    there = [("gpu-0", resident("c"))]
    policy = Policy(reserved={"gpu-0": frozenset("a")})
    assert place(Demand("c", 100), [gpu(0)], there, Policy(), NOW).action == "use"
    assert place(Demand("c", 100), [gpu(0), gpu(1)], there, policy, NOW).device == "gpu-1"


def test_affinity_decides_before_balance() -> None:
    busy = gpu(0, used=60_000, utilization=100.0, temperature=89.0)
    assert place(Demand("a", 5000), [busy, gpu(1)], [("gpu-0", resident("a"))], Policy(), NOW).action == "use"
    decision = place(Demand("b", 5000), [busy, gpu(1)], [("gpu-0", resident("a"))], Policy(), NOW)
    assert (decision.action, decision.device) == ("load", "gpu-1")
    assert 50 < decision.score <= 150


def test_between_equals_the_first_device_is_taken() -> None:
    assert place(Demand("a", 5000), [gpu(n) for n in (3, 1, 2)], [], Policy(), NOW).device == "gpu-1"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"used": 1000}, {"used": 30_000}),
        ({"utilization": 10.0}, {"utilization": 90.0}),
        ({"temperature": 40.0}, {"temperature": 80.0}),
    ],
)
def test_what_balances(better: dict[str, float], worse: dict[str, float]) -> None:
    assert place(Demand("a", 5000), [gpu(0, **worse), gpu(1, **better)], [], Policy(), NOW).device == "gpu-1"  # type: ignore[arg-type]


def test_the_weights_of_balance_are_40_30_20_10() -> None:
    cluster = Cluster([gpu(0, temperature=30.0)], Policy(margin_mb=0))
    assert cluster.balance(NOW, 0.0)[0] == pytest.approx(100)
    cluster.read(gpu(0, used=80_000, temperature=30.0))
    assert cluster.balance(NOW, 0.0)[0] == pytest.approx(60)
    cluster.read(gpu(0, used=80_000, temperature=30.0, utilization=100.0))
    assert cluster.balance(NOW, 0.0)[0] == pytest.approx(30)
    cluster.read(gpu(0, used=80_000, temperature=90.0, utilization=100.0))
    assert cluster.balance(NOW, 0.0)[0] == pytest.approx(10)
    assert cluster.balance_at(0, NOW, 0.0) == pytest.approx(10)
    cluster.load("a", 0, 100, NOW, ready=True)
    cluster.start("a", 0, 0, NOW)
    assert cluster.balance(NOW, 0.0)[0] == pytest.approx(0)


def test_a_residents_base_is_not_counted_twice() -> None:
    # 80,000 less the margin of 2,000 less a base of 40,000 leaves 38,000 for work, and not 38,000 less another base.
    home = [("gpu-0", resident("a", base=40_000))]
    assert place(Demand("a", 40_000, 38_000), [gpu(0)], home, Policy(), NOW).action == "use"
    assert place(Demand("a", 40_000, 38_001), [gpu(0)], home, Policy(), NOW).action == "refuse"


def test_the_margin_is_kept_whoever_holds_the_rest() -> None:
    assert place(Demand("a", 8000), [gpu(0, used=70_000)], [], Policy(), NOW).action == "load"
    assert place(Demand("a", 8001), [gpu(0, used=70_000)], [], Policy(), NOW).action == "wait"


def test_the_least_recently_used_goes() -> None:
    there = [("gpu-0", resident("a", used=500)), ("gpu-0", resident("b", used=100)), ("gpu-1", resident("c", used=300))]
    there.append(("gpu-1", resident("d", used=9000)))
    decision = place(Demand("e", 5000), [gpu(0), gpu(1)], there, Policy(), NOW)
    assert (decision.action, decision.device, decision.evictions) == ("evict", "gpu-0", ("b",))
    kept = place(Demand("e", 5000, keep=frozenset("b")), [gpu(0), gpu(1)], there, Policy(), NOW)
    assert (kept.device, kept.evictions) == ("gpu-1", ("c",))


def test_nothing_with_work_in_flight_or_pinned_or_young_goes() -> None:
    for stays in ({"in_flight": 1}, {"load_seconds": 1e6}):
        there = [("gpu-0", resident(model, **stays)) for model in "ab"]  # type: ignore[arg-type]
        assert place(Demand("e", 5000), [gpu(0)], there, Policy(), NOW).action == "wait"
    there = [("gpu-0", resident(model)) for model in "ab"]
    assert place(Demand("e", 5000), [gpu(0)], there, Policy(pinned=frozenset("ab")), NOW).action == "wait"


def test_a_full_cluster_waits_and_work_that_fits_nowhere_is_refused_with_what_would() -> None:
    there = [(f"gpu-{n}", resident(f"m{n}{k}", in_flight=1)) for n in range(3) for k in range(2)]
    inventory = [gpu(n) for n in range(3)]
    assert place(Demand("a", 5000), inventory, there, Policy(), NOW).action == "wait"
    refused = place(Demand("a", 5000, 90_000), inventory, there, Policy(), NOW)
    assert refused == Decision(
        "refuse", reasons=("it needs 95000 MB, and no device can ever give it more than 78000 MB",), largest_mb=73_000
    )
    assert place(Demand("a", 5000, refused.largest_mb), inventory, [], Policy(), NOW).action == "load"


def test_a_replica_is_another_device_and_only_on_request() -> None:
    home = [("gpu-0", resident("a", in_flight=1))]
    assert place(Demand("a", 5000), [gpu(0), gpu(1)], home, Policy(), NOW).action == "wait"
    assert place(Demand("a", 5000, replica=True), [gpu(0), gpu(1)], home, Policy(), NOW).device == "gpu-1"


def test_reserved_devices_and_profiles() -> None:
    policy = Policy(reserved={"gpu-0": frozenset({"a"})}, allowed={"b": ("gpu-0", "gpu-2")})
    inventory = [gpu(n) for n in range(3)]
    assert place(Demand("a", 5000), inventory, [], policy, NOW).device == "gpu-0"
    assert place(Demand("b", 5000), inventory, [], policy, NOW).device == "gpu-2", "reserved for another"
    assert place(Demand("c", 5000), inventory, [], policy, NOW).device == "gpu-1"


def test_a_device_that_disappears_between_decision_and_load() -> None:
    cluster = Cluster([gpu(0), gpu(1)], Policy())
    demand = Demand("a", 5000)
    first = decide(demand, cluster, NOW)
    cluster.load("a", first.at, 5000, NOW)
    cluster.read(gpu(0, fault="it has fallen off the bus"))
    second = decide(demand, cluster, NOW)
    assert (second.action, second.device) == ("load", "gpu-1"), "a copy that is being loaded on a lost device is no reason to wait"
    cluster.bar("gpu-1", "drained")
    third = decide(demand, cluster, NOW)
    assert third.action == "wait"
    assert "gpu-0: it has fallen off the bus" in third.reasons
    cluster.finish("a", first.at, 0, NOW)
    cluster.remove("a", first.at)
    cluster.remove("a", first.at)
    assert not cluster.homes("a"), "what is told of a lost device late is harmless"


def test_what_nobody_asks_for_expires() -> None:
    cluster = Cluster([gpu(0), gpu(1)], Policy(idle_seconds=3600.0, pinned=frozenset("c")))
    cluster.put(resident("a", used=NOW - 3601), 0)
    cluster.put(resident("b", used=NOW - 3599), 0)
    cluster.put(resident("c", used=0.0), 1)
    assert eviction.expired(cluster, NOW) == [(0, "a")]
