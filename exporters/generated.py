"""Files that are generated and checked in: written, or only compared, so that a test and a reviewer see a difference."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def bring_up_to_date(files: Mapping[Path, str], arguments: Sequence[str], command: str) -> int:
    """Writes what differs; with ``--check`` among the ``arguments`` only says so.

    Args:
        files: the text of each.
        command: the module to run in place of it.

    Returns:
        The exit status: 1 where a file differs and is not written.
    """
    different = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    for path in different:
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is not what the code says: run python -m {command}", file=sys.stderr)  # noqa: T201
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    return int("--check" in arguments and bool(different))
