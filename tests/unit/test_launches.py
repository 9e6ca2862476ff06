"""A load that Triton would wait for for ever ends tritonserver, and no other load does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from forcegate.errors import EnvironmentBroken, GateFailed, ServerUnavailable
from frontend.supervisor import launches
from frontend.supervisor.launches import ATTEMPTS, Launches


class Machine:
    """What the process table and the shared memory say, and how often tritonserver was ended."""

    def __init__(self) -> None:
        self.processes: list[int] = []
        self.orphans: dict[str, str | None] = {}
        self.ended = 0
        self.launches = Launches(lambda _: self.processes, lambda: dict(self.orphans), self._end)

    def _end(self) -> None:
        self.ended += 1

    def load(self, during: Callable[[], None], seconds: float = 0.6) -> None:
        """A load that takes ``seconds``; ``during`` it something happens."""

        async def loading() -> None:
            during()
            await asyncio.sleep(seconds)

        asyncio.run(self.launches.watched("m", loading()))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(launches, "PATIENCE", 0.2)
    monkeypatch.setattr(launches, "SCAN_SECONDS", 0.02)
    return Machine()


def test_a_load_whose_process_never_spoke_is_lost(machine: Machine) -> None:
    with pytest.raises(ServerUnavailable, match="'m' ended while it started"):
        machine.load(lambda: machine.orphans.update(region=None), seconds=30)
    assert machine.ended == 1


def test_a_model_that_is_lost_time_and_again_is_given_up(machine: Machine) -> None:
    for _ in range(ATTEMPTS - 1):
        machine.orphans.clear()
        with pytest.raises(ServerUnavailable):
            machine.load(lambda: machine.orphans.update(region=None), seconds=30)
    machine.orphans.clear()
    with pytest.raises(EnvironmentBroken) as error:
        machine.load(lambda: machine.orphans.update(region=None), seconds=30)
    assert not error.value.retryable


def test_a_load_that_succeeds_starts_the_count_anew(machine: Machine) -> None:
    for _ in range(2 * ATTEMPTS):
        machine.orphans.clear()
        with pytest.raises(ServerUnavailable):
            machine.load(lambda: machine.orphans.update(region=None), seconds=30)
        machine.load(lambda: None, seconds=0)


def test_a_slow_load_with_a_living_process_is_waited_for(machine: Machine) -> None:
    machine.load(lambda: machine.processes.append(7))
    assert machine.ended == 0


def test_a_load_that_waits_for_its_turn_is_waited_for(machine: Machine) -> None:
    machine.load(lambda: None)
    machine.load(lambda: machine.orphans.update(region="another"))
    assert machine.ended == 0


def test_what_an_earlier_process_left_says_nothing_of_the_new_one(machine: Machine) -> None:
    machine.orphans["region"] = "m"
    machine.load(lambda: None)
    assert machine.ended == 0


def test_the_process_that_serves_until_the_new_one_is_ready_does_not_hide_a_loss(machine: Machine) -> None:
    machine.processes.append(7)
    with pytest.raises(ServerUnavailable):
        machine.load(lambda: machine.orphans.update(region=None), seconds=30)


def test_what_the_model_says_itself_is_passed_on(machine: Machine) -> None:
    async def failing() -> None:
        raise GateFailed("no")

    with pytest.raises(GateFailed):
        asyncio.run(machine.launches.watched("m", failing()))
    assert machine.ended == 0


def test_loads_of_others_are_judged_by_the_index(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.3, 0.4, 0.45, 0.7])
    monkeypatch.setattr(launches.time, "monotonic", lambda: next(clock))
    machine.orphans["region"] = None
    machine.launches.look(["m"])
    machine.launches.look(["m"])
    assert machine.ended == 0, "not yet"
    machine.launches.look(["m"])
    assert machine.ended == 1
    machine.launches.look(["m"])
    machine.launches.look([])
    machine.launches.look(["m"])
    assert machine.ended == 1, "tritonserver has been started in between"
