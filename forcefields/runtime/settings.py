"""The settings that reach a model process. It has no pydantic; the supervisor sets these variables from frontend/settings.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelSettings:
    """See the fields of the same names in ``frontend/settings.py``."""

    state: Path = Path("var")
    gate: str = "cached"
    watchdog_seconds: float = 60.0
    max_atoms: int = 50_000
    memory_gb: float = 0.0
    log_level: str = "info"

    @classmethod
    def from_environment(cls) -> ModelSettings:
        """The values of ``FORCEGATE_<NAME>``, defaults where they are not set."""
        get = os.environ.get
        return cls(
            state=Path(get("FORCEGATE_STATE", "var")),
            gate=get("FORCEGATE_GATE", "cached"),
            watchdog_seconds=float(get("FORCEGATE_WATCHDOG_SECONDS", "60")),
            max_atoms=int(get("FORCEGATE_MAX_ATOMS", "50000")),
            memory_gb=float(get("FORCEGATE_MEMORY_GB", "0")),
            log_level=get("FORCEGATE_LOG_LEVEL", "info"),
        )

    def as_environment(self) -> dict[str, str]:
        """The variables that ``from_environment`` reads."""
        return {f"FORCEGATE_{name.upper()}": str(value) for name, value in vars(self).items()}
