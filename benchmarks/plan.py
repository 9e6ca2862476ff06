"""What a run of the benchmark measures, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import service
from forcefields import catalogue
from forcefields.catalogue import Variant
from frontend import settings as all_settings
from frontend.settings import Settings

ANALYTIC = "lj-argon"
"""A model that takes no time: it shows what the service itself costs."""
MODELS = ("sevennet-0", "chgnet-0.3.0")
"""Real weights that are on every machine: what all sections but the first are measured with."""
TINY = (
    "tiny-mace",
    "tiny-orb-conservative",
    "tiny-uma",
    "tiny-esen",
    "tiny-matgl-tensornet",
    "tiny-mattersim",
    "tiny-grace-1l",
    "tiny-grace-2l",
)
REAL_SIZE = (
    "random-mace-mp-0-medium",
    "random-mace-mp-0b2-large",
    "random-orb-v3-conservative-inf-omat",
    "random-uma-s-1p2",
    "random-tensornet-matpes-pbe-2025.2",
    "random-mattersim-1.0.0-1m",
    "random-grace-1l-omat-medium",
    "random-grace-2l-omat-medium",
)
"""The architectures of weights that would have to be downloaded, in their real size, with random weights."""
THREADS = 1
MEMORY_SHARE = 0.25
"""Of the free memory, for one model's evaluation: the service's models and the in-process one each keep their peak."""
STATE = Path("var/bench/service")
"""Kept between runs: making a checkpoint in real size, and its first gate, take a minute or two."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        chosen: the models that were asked for; empty for each section's own.
        quick: whether figures are to be rough.
        minutes: how long the soak takes.
        device: ``cpu`` or ``cuda``.
        overrides: settings of the service.
        state: its state folder.
    """

    chosen: tuple[str, ...] = ()
    quick: bool = False
    minutes: float = 20.0
    device: str = "cpu"
    overrides: dict[str, Any] = field(default_factory=dict)
    state: Path = STATE

    @classmethod
    def make(cls, chosen: Sequence[str], quick: bool, minutes: float, state: Path = STATE, device: str = "cpu") -> Plan:
        """With one thread for each model process, and a share of the memory that is free now.

        Raises:
            UnknownModel: a name is none.
        """
        families = catalogue.load()
        names = tuple(families.resolve(name).name for name in chosen)
        free = psutil.virtual_memory().available / 1e9
        overrides = {"threads": THREADS, "memory_gb": round(MEMORY_SHARE * free, 1), "device": device}
        return cls(names, quick, minutes, device, overrides, state)

    def models(self, *own: str) -> tuple[str, ...]:
        """The models that were asked for, or else a section's own."""
        return self.chosen or own

    def seconds(self, full: float, quick: float) -> float:
        """The one or the other."""
        return quick if self.quick else full

    @contextmanager
    def serving(self, *models: str, **further: object) -> Iterator[Settings]:
        """A service of our own with these models, until the block ends.

        Raises:
            SetupError: it did not start.
        """
        with service.own(models, self.state, all_settings.load(), **(self.overrides | further)) as settings:
            yield settings


def variant_of(model: str) -> Variant:
    """The variant of that name."""
    return catalogue.load().resolve(model)


def loading(settings: Settings, model: str) -> dict[str, Any]:
    """What the model's own report says of its load: ``seconds``, checks of the gate included."""
    report: dict[str, Any] = json.loads((settings.state / "reports" / f"{model}.json").read_text())
    return report
