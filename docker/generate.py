"""``python -m docker.generate``: the files of the containers that follow from the code.

With ``--check`` nothing is written, and the exit status is 1 where a file differs. tests/deploy/test_generated.py does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from docker import compose, dashboards, pins, production
from exporters.generated import bring_up_to_date

ROOT = Path(__file__).parents[1]


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        ROOT / "requirements" / "service.txt": pins.service(),
        ROOT / ".env.production.example": production.example(),
        **compose.files(),
        **dashboards.files(),
    }


def main(arguments: Sequence[str]) -> int:
    """Writes, or only compares; returns the exit status."""
    return bring_up_to_date(files(), arguments, "docker.generate")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
