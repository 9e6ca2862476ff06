"""The queue in front of a model: order, ageing, bounds, deadlines and what callers are told, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcegate.errors import DeadlineExceeded, Overloaded
from frontend.admission import ModelQueue, Place, Work
from frontend.admission.queue import DOUBT, PATIENCE_SECONDS, WINDOW_SECONDS, WINDOW_STRUCTURES

NEVER = math.inf
PIECE = Work(structures=1, atoms=8, seconds=0.1)


class Model:
    """A model that takes ``slowness`` times the estimated seconds, one request after the other, on a clock of its own."""

    def __init__(self, limit: float = 60.0, pass_atoms: int = 8, slowness: float = 1.0) -> None:
        self.now, self.slowness = 0.0, slowness
        self.refusals: list[str] = []
        self.queue = ModelQueue(limit, pass_atoms, lambda: self.now, self.refusals.append)
        self.places: list[Place] = []
        self.finished: dict[Place, float] = {}
        self._triton: list[Place] = []
        self._stack = ExitStack()

    def enter(self, *works: Work, bulk: bool = False, deadline: float = NEVER) -> list[Place]:
        places = self._stack.enter_context(self.queue.enter(works, bulk, deadline))
        self.places += places
        return places

    def step(self) -> bool:
        """Evaluates what was handed over first, as Triton does; False where nothing is there."""
        self._triton += [place for place in self.places if place.handed_over and place not in self._triton]
        place = next((place for place in self._triton if not place.left), None)
        if place is None:
            return False
        self.now += place.work.seconds * self.slowness
        self.queue.finish(place)
        self.finished[place] = self.now
        return True


def test_an_empty_queue_hands_over_at_once_and_a_full_window_waits() -> None:
    model = Model()
    places = model.enter(*[PIECE] * 20)
    handed_over = sum(place.handed_over for place in places)
    assert handed_over == math.ceil(WINDOW_SECONDS / PIECE.seconds)
    model.step()
    assert sum(place.handed_over for place in places) == handed_over + 1


def test_two_full_passes_are_handed_over_however_slow_the_model_is() -> None:
    slow = Work(1, 8, 5.0)
    places = Model(pass_atoms=32).enter(*[slow] * 20)
    assert sum(place.handed_over for place in places) == 8


def test_structures_that_take_next_to_nothing_are_bounded_by_their_number() -> None:
    places = Model(pass_atoms=16_384).enter(*[Work(32, 256, 1e-6)] * 100)
    assert sum(place.handed_over for place in places) == WINDOW_STRUCTURES // 32


def test_each_instance_has_its_passes_and_structures_in_triton() -> None:
    slow, light = Model(pass_atoms=32), Model(pass_atoms=16_384)
    slow.queue.instances = light.queue.instances = 2
    assert sum(place.handed_over for place in slow.enter(*[Work(1, 8, 5.0)] * 40)) == 16
    assert sum(place.handed_over for place in light.enter(*[Work(32, 256, 1e-6)] * 100)) == 2 * WINDOW_STRUCTURES // 32
    # Of seconds no more: two instances take half the time, as the correction learns.
    quick = Model()
    quick.queue.instances = 2
    assert sum(place.handed_over for place in quick.enter(*[PIECE] * 20)) == 2 * 2


def test_interactive_goes_before_bulk_and_each_class_in_its_order() -> None:
    model = Model()
    bulk = model.enter(*[PIECE] * 9, bulk=True)
    first, second = model.enter(PIECE)[0], model.enter(PIECE)[0]
    while model.step():
        pass
    order = sorted(model.finished, key=model.finished.__getitem__)
    assert order == [*bulk[:3], first, second, *bulk[3:]], "three pieces were in the window when the others came"


def test_a_single_structure_waits_for_a_window_of_a_batch_and_not_for_the_batch() -> None:
    model = Model()
    model.enter(*[Work(32, 256, 0.1)] * 200, bulk=True)
    for _ in range(20):
        model.step()
    came = model.now
    (single,) = model.enter(PIECE)
    while single not in model.finished:
        model.step()
    # The window that was full, its last piece whole, and the structure itself; 18 s of the batch are behind it.
    assert model.finished[single] - came <= WINDOW_SECONDS + 0.1 + PIECE.seconds + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.floats(0.01, 0.3))
def test_nothing_starves_behind_callers_who_never_stop(pieces: int, seconds: float) -> None:
    model = Model()
    interactive = Work(1, 8, seconds)
    for _ in range(8):
        model.enter(interactive)
    bulk = model.enter(*[PIECE] * pieces, bulk=True)
    while bulk[-1] not in model.finished:
        model.step()
        model.enter(interactive)  # somebody always waits
        for n, place in enumerate(bulk, 1):
            if not place.handed_over:
                # Turns are given when something is finished, so each may be one request late.
                assert model.now <= n * (PATIENCE_SECONDS + WINDOW_SECONDS + seconds + PIECE.seconds)
    assert model.finished.keys() - set(bulk), "interactive ones went on all the while"


def test_beyond_the_bound_callers_are_told_how_long_the_work_in_front_takes() -> None:
    model = Model(limit=10.0)
    model.enter(*[PIECE] * 95)
    with pytest.raises(Overloaded) as caught:
        model.enter(*[PIECE] * 10)
    assert caught.value.retry_after == 10, "9.5 s are in front"
    assert model.refusals == ["queue"]
    while model.now < caught.value.retry_after and model.step():
        pass
    model.enter(*[PIECE] * 10)


def test_the_bound_holds_for_each_class_so_that_batches_do_not_shut_others_out() -> None:
    model = Model(limit=10.0)
    model.enter(*[PIECE] * 100, bulk=True)
    with pytest.raises(Overloaded) as caught:
        model.enter(PIECE, bulk=True)
    assert caught.value.retry_after == 10
    model.enter(PIECE)


def test_a_batch_beyond_the_bound_is_served_when_no_other_is_there() -> None:
    model = Model(limit=1.0)
    model.enter(PIECE)
    places = model.enter(*[PIECE] * 50, bulk=True)
    while model.step():
        pass
    assert all(place in model.finished for place in places)
    assert model.now == pytest.approx(5.1)
    model.enter(*[PIECE] * 50, bulk=True)  # nothing of the first is left behind


def test_what_cannot_meet_its_deadline_is_refused_at_once() -> None:
    model = Model()
    model.enter(*[PIECE] * 50)
    with pytest.raises(DeadlineExceeded, match=r"5\.0 s of work"):
        model.enter(PIECE, deadline=5.1 / DOUBT - 0.1)
    with pytest.raises(DeadlineExceeded):
        model.enter(Work(1, 1000, 20.0), deadline=5.0)
    assert model.refusals == ["deadline"] * 2
    model.enter(PIECE, deadline=5.1 / DOUBT + 0.1)


def test_who_leaves_makes_room_and_costs_the_model_nothing() -> None:
    model = Model(limit=10.0)
    with ExitStack() as leaving:
        gone = leaving.enter_context(model.queue.enter([PIECE] * 90, False, NEVER))
        (behind,) = model.enter(PIECE)
        assert not behind.handed_over
    assert behind.handed_over
    assert model.queue.load(False).structures == 0
    assert sum(place.handed_over for place in gone) == 3, "the window that was there before, and nothing of it since"
    model.enter(*[PIECE] * 98)
    assert model.queue.load(False).structures == 96


def test_estimates_are_corrected_by_what_is_seen_while_work_waits() -> None:
    model = Model(slowness=20.0, limit=1e6)
    model.enter(*[PIECE] * 400)
    for _ in range(100):
        model.step()
    assert model.queue.correction.factor == pytest.approx(20.0, rel=0.1)
    front = model.queue.seconds_in_front(False)
    came = model.now
    while model.step():
        pass
    assert model.now - came == pytest.approx(front, rel=0.15)


def test_a_lone_caller_does_not_spoil_the_estimates() -> None:
    """Nobody waits: the time between answers is the caller's own."""
    model = Model(slowness=1.0)
    for _ in range(50):
        model.enter(PIECE)
        model.step()
        model.now += 10.0
    assert model.queue.correction.factor == 1.0


@given(st.lists(st.tuples(st.booleans(), st.floats(1e-4, 3.0), st.integers(0, 4)), max_size=40))
def test_all_is_finished_and_nothing_is_left_whatever_comes(steps: list[tuple[bool, float, int]]) -> None:
    model = Model(limit=1e9)
    for bulk, seconds, finished in steps:
        model.enter(Work(1, 8, seconds), bulk=bulk)
        for _ in range(finished):
            model.step()
    while model.step():
        pass
    assert len(model.finished) == len(steps)
    assert model.queue.seconds_in_front(True) == 0.0
    assert (model.queue.load(True).structures, model.queue.load(False).structures) == (0, 0)


def test_a_deadline_that_passes_in_the_queue_takes_the_request_out_and_its_wait_is_told() -> None:
    waits: list[tuple[str, float]] = []
    queue = ModelQueue(60.0, 8, on_wait=lambda kind, seconds: waits.append((kind, seconds)))

    async def run() -> None:
        with queue.enter([PIECE] * 3, False, NEVER), queue.enter([PIECE], False, time.monotonic() + 0.3) as (late,):
            with pytest.raises(DeadlineExceeded):
                async with late:
                    raise AssertionError("it was handed over")
            assert not late.handed_over
            assert queue.load(False).structures == 0
        # Where nothing moves, nobody has a turn: only these tell that requests wait.
        assert [kind for kind, seconds in waits if seconds >= 0.3] == ["interactive"]
        assert len(waits) == 4

    asyncio.run(run())


def test_a_cancelled_caller_is_taken_out_and_the_next_one_has_the_turn() -> None:
    queue = ModelQueue(60.0, 8)
    turns: list[str] = []

    async def ask(name: str) -> None:
        with queue.enter([PIECE], False, NEVER) as (place,):
            async with place:
                turns.append(name)

    async def run() -> None:
        with queue.enter([PIECE] * 3, False, NEVER):
            first, second = asyncio.create_task(ask("first")), asyncio.create_task(ask("second"))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await second
        assert turns == ["second"]

    asyncio.run(run())
