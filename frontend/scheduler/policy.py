"""The settings of placement, as one value that a pure function can take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PRIORITIES = ("CRITICAL", "HIGH", "NORMAL", "LOW")
TASK_PRIORITY = PRIORITIES.index("NORMAL")
"""Of the calls of tasks; requests that somebody waits for come before."""


@dataclass(frozen=True)
class Policy:
    """How memory is given to models.

    Attributes:
        margin_mb: memory of each device that is never given away.
        models_per_device: models that may live on one device at once.
        idle_seconds: a model that nobody has asked for so long is unloaded.
        hold: a model stays at least this many times as long as its load took, so that loads take at most 1 / (1 + hold)
            of the time, however requests alternate.
        pinned: models that are never evicted.
        reserved: devices that only the named models may use.
        allowed: models that may live on the named devices alone; others go anywhere.
        ageing_seconds: who waits for a model goes up by one priority for each such time that it has waited.
        patience_seconds: for each priority, how long tasks of loaded models may begin before one whose model is not loaded.
        gather_seconds: how long a task waits at most while others use what would have to go for its model.
        least: instances that a model shall have, each on a device of its own, where there is room; 1 for those that are not named.
        instances: the most that a model may have because work waits for it.
        replica_wait_seconds: a model whose work waits for longer gets another instance ...
        replica_sustained_seconds: ... when that has been so for this long.
        replica_idle_seconds: one of several goes when it has not been needed for so long.
    """

    margin_mb: int = 2000
    models_per_device: int = 2
    idle_seconds: float = 3600.0
    hold: float = 1.0
    pinned: frozenset[str] = frozenset()
    reserved: Mapping[str, frozenset[str]] = field(default_factory=dict)
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ageing_seconds: float = 1800.0
    patience_seconds: tuple[float, ...] = (0.0, 30.0, 120.0, 300.0)
    gather_seconds: float = 20.0
    least: Mapping[str, int] = field(default_factory=dict)
    instances: int = 1
    replica_wait_seconds: float = 2.0
    replica_sustained_seconds: float = 10.0
    replica_idle_seconds: float = 300.0
