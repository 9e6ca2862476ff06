"""The settings that reach a model process. It has no pydantic; the supervisor sets these variables from frontend/settings.py."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSettings:
    """See the fields of the same names in ``frontend/settings.py``."""

    state: Path = Path("var")
    gate: str = "cached"
    watchdog_seconds: float = 60.0
    max_atoms: int = 50_000
    memory_gb: float = 0.0
    log_level: str = "info"
    matmul_precision: str = "highest"
    cuequivariance: str = "off"
    compile: str = "off"
    neighbours: str = "cpu"
    traces: str = ""
    traces_ca: str = ""

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
            matmul_precision=get("FORCEGATE_MATMUL_PRECISION", "highest"),
            cuequivariance=get("FORCEGATE_CUEQUIVARIANCE", "off"),
            compile=get("FORCEGATE_COMPILE", "off"),
            neighbours=get("FORCEGATE_NEIGHBOURS", "cpu"),
            traces=get("FORCEGATE_TRACES", ""),
            traces_ca=get("FORCEGATE_TRACES_CA", ""),
        )

    def as_environment(self) -> dict[str, str]:
        """The variables that ``from_environment`` reads."""
        return {f"FORCEGATE_{name.upper()}": str(value) for name, value in vars(self).items()}


def keep_out_of_home(state: Path) -> None:
    """Points the caches and settings that packages write into the user's home, some of them on import, below the state folder.

    For processes that load a family's package and nothing else; called before the import.
    """
    home = (state / "home").resolve()
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ["HOME"] = str(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("the state folder cannot be written", extra={"error": str(error)})
