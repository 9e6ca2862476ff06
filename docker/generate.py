"""``python -m docker.generate``: the files of the containers that follow from the code.

With ``--check`` nothing is written, and the exit status is 1 where a file differs. tests/deploy/test_generated.py does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from docker import compose, dashboards, pins, production

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
    different = [path for path, text in files().items() if not path.is_file() or path.read_text() != text]
    if "--check" in arguments:
        for path in different:
            print(f"{path.relative_to(ROOT)} is not what the code says: run python -m docker.generate", file=sys.stderr)  # noqa: T201
        return int(bool(different))
    for path in different:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
