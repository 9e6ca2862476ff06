"""What would go where under a profile, and why, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forcefields.catalogue import Catalogue
from frontend.scheduler import profile as profiles
from frontend.scheduler.cluster import Cluster
from frontend.scheduler.device import Device
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.placement import Decision, Demand, decide
from frontend.scheduler.profile import Profile


@dataclass(frozen=True)
class Placed:
    """One copy of one model: the decision about it, with the memory that it was made for."""

    model: str
    replica: int
    base_mb: int
    decision: Decision


def devices_for(profile: Profile, inventory: Sequence[Device]) -> tuple[list[Device], bool]:
    """The devices of the machine where they are what the profile is made for, else such devices; and whether they are assumed."""
    wanted = profile.devices
    fitting = [device for device in inventory if device.kind == wanted.kind]
    if len(fitting) >= wanted.count:
        return fitting, False
    memory = round(wanted.memory_gb * 1024)
    return [Device(f"{wanted.kind}-{n}", n, wanted.kind, f"assumed {wanted.kind}", memory, 0) for n in range(wanted.count)], True


def plan(profile: Profile, catalogue: Catalogue, devices: Sequence[Device], footprints: Footprints) -> list[Placed]:
    """Every copy of every model that is loaded at the start, in the order of their loads."""
    cluster = Cluster(devices, profiles.policy(profile, catalogue, devices))
    placed = []
    for model, replicas in profiles.prewarmed(profile, catalogue):
        for replica in range(replicas):
            base = footprints.base_mb(model, profile.devices.kind)
            decision = decide(Demand(model, base, replica=replica > 0), cluster, 0.0)
            if decision.action == "load":
                cluster.load(model, decision.at, base, 0.0, ready=True)
                # Nothing that was just placed makes room for the next one.
                cluster.residents[decision.at][model].in_flight = 1
            placed.append(Placed(model, replica, base, decision))
    return placed


def by_device(placed: Sequence[Placed], devices: Sequence[Device]) -> Mapping[str, list[Placed]]:
    """The copies by the device that they go to, every device in order; those that go nowhere under an empty name."""
    found: dict[str, list[Placed]] = {device.id: [] for device in sorted(devices, key=lambda device: device.order)}
    for each in placed:
        found.setdefault(each.decision.device, []).append(each)
    return found
