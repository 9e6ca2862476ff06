"""What clients of the owner are told: devices, models, who waits, counts and rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from frontend.scheduler.device import Device
from frontend.scheduler.life import Ask
from frontend.scheduler.owner import Owner
from frontend.scheduler.policy import PRIORITIES


def overview(owner: Owner, active: bool, load_seconds: float) -> dict[str, Any]:
    """Devices, models, queue and counts as they are now.

    Args:
        active: whether models are loaded and unloaded by themselves.
        load_seconds: how long a load may take.
    """
    now = owner.clock()
    used: dict[str, float] = {}
    for there in owner.cluster.residents:
        for name, resident in there.items():
            used[name] = max(resident.last_used, used.get(name, resident.last_used))
    asks = sorted(owner.asks, key=lambda ask: ask.rank(now, owner.policy.ageing_seconds))
    return {
        "active": active,
        "devices": [_device(owner, device) for device in owner.cluster.devices],
        "models": {
            name: life.as_dict(now, used.get(name), name in owner.policy.pinned) for name, life in sorted(owner.lives.items())
        },
        "queue": [_asked(ask, place, now) for place, ask in enumerate(asks, 1)],
        "stats": owner.tally.as_dict(),
        "config": _plain(asdict(owner.policy)) | {"active": active, "load_seconds": load_seconds},
    }


def _device(owner: Owner, device: Device) -> dict[str, Any]:
    at, health = owner.cluster.position[device.id], owner.ward.of(device.id)
    there = [life for life in owner.lives.values() if device.id in life.instances]
    return device.as_dict() | {
        "memory_planned_mb": int(owner.cluster.held[at]),
        "memory_models_mb": sum(life.held.get(device.id, 0) for life in there),
        "state": health.state,
        "fault": owner.cluster.fault(at) or None,
        "models": sorted(life.model for life in there if life.state in ("resident", "leaving")),
        "in_flight": sum(owner.uses(life.model) for life in there),
    }


def _asked(ask: Ask, place: int, now: float) -> dict[str, Any]:
    return {
        "position": place,
        "models": list(ask.models),
        "priority": PRIORITIES[ask.priority],
        "waited_seconds": round(max(now - ask.since, 0.0), 2),
        "client": ask.client.name,
        "why": ask.why,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
