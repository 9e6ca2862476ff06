"""Whose process ids are whose: model and gateway may live in different containers."""

from __future__ import annotations

import os


def processes() -> str:
    """Names the set of processes that this one's id is an id in: the machine since its start, and the container."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
