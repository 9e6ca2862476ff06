"""From the host's memory to the device's."""

from __future__ import annotations

from typing import Any, TypeVar

Moved = TypeVar("Moved")


def to_device(data: Moved, device: str) -> Moved:
    """A tensor, or a batch of PyTorch Geometric, on ``device``.

    To a GPU it is copied from pinned memory while the host goes on; torch keeps that memory until the copy is over, and what the
    GPU is told to do next waits for it. For another device this is ``data.to(device)``.
    """
    movable: Any = data
    moved: Moved = movable.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else movable.to(device)
    return moved
