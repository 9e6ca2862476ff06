"""Whose process ids are whose: model and gateway may live in different containers."""

from __future__ import annotations

import os
from collections.abc import Iterable


def processes() -> str:
    """Names the set of processes that this one's id is an id in: the machine since its start, and the container."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def siblings(identifiers: Iterable[int]) -> list[int]:
    """Those of these processes that run under the same parent as this one, which is none of them."""
    return [each for each in identifiers if each != os.getpid() and _parent(each) == os.getppid()]


def _parent(identifier: int) -> int | None:
    try:
        with open(f"/proc/{identifier}/stat") as file:
            state, parent, *_ = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)
