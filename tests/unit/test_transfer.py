"""Only a GPU is given data from pinned memory, without waiting for the copy."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from forcefields.transfer import to_device


@dataclass
class Recorded:
    """Stands for a tensor: says what was done with it."""

    done: list[object] = field(default_factory=list)

    def pin_memory(self) -> Recorded:
        return Recorded([*self.done, "pinned"])

    def to(self, device: str, non_blocking: bool = False) -> Recorded:
        return Recorded([*self.done, device, non_blocking])


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", ["cpu", False]), ("cuda", ["pinned", "cuda", True]), ("cuda:1", ["pinned", "cuda:1", True])]
)
def test_what_is_asked_of_torch(device: str, expected: list[object]) -> None:
    given = Recorded()
    assert to_device(given, device).done == expected
    assert given.done == [], "what was given stays as it is"
