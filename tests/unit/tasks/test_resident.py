"""What a worker knows of the models that are there: from the owner of the residents, else from Triton."""

from __future__ import annotations

from typing import Any

from frontend.tasks.residency import Resident
from frontend.triton import readiness
from tests.service import free_ports
from tests.unit.fault_injection import FaultyTriton, serving


class Told:
    """Stands for the connection to the owner, which has told this."""

    def __init__(self, **states: str) -> None:
        self.states = {name: {"state": state} for name, state in states.items()} or None


def test_the_owner_knows_what_needs_no_load() -> None:
    holder: Any = Told(a="resident", b="loading", c="leaving", d="failed")
    resident = Resident("127.0.0.1:1", holder)
    assert [resident(models) for models in (["a"], ["b"], ["a", "b"], [])] == [True] * 4
    assert [resident(models) for models in (["c"], ["d"], ["a", "c"], ["unknown"])] == [False] * 4


def test_without_an_owner_triton_is_asked_and_not_for_each_task_anew(monkeypatch: Any) -> None:
    triton = FaultyTriton()
    triton.index = {"a": ("READY", ""), "b": ("UNAVAILABLE", "unloaded")}
    away: Any = Told()
    with serving(triton) as address:
        for holder in (None, away):
            resident = Resident(address, holder)
            assert [resident([model]) for model in ("a", "b", "unknown")] == [True, False, False]
            assert not resident(["a", "b"])
        triton.index["b"] = ("READY", "")
        assert not resident(["b"]), "an answer holds for a second"
        monkeypatch.setattr(readiness, "KNOWN_SECONDS", 0.0)
        assert resident(["b"])


def test_where_nobody_knows_anything_no_task_is_put_before_another() -> None:
    assert Resident(f"127.0.0.1:{free_ports(1)[0]}", None)(["a", "b"])
