"""Back-pressure: what is in flight is bounded, and what is refused is told when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegate.errors import InvalidRequest, Overloaded
from frontend.admission import Admission


def test_beyond_the_bound_new_work_is_refused_and_old_work_makes_room() -> None:
    seen: list[int] = []
    admission = Admission(3, 0, seen.append)
    with admission.hold(2):
        with admission.hold(1):
            with pytest.raises(Overloaded) as caught, admission.hold(1):
                pass
            assert caught.value.retryable
        with admission.hold(1):
            pass
    assert admission.structures == 0
    assert max(seen) == 3


def test_what_could_never_fit_is_not_told_to_come_back() -> None:
    with pytest.raises(InvalidRequest) as caught, Admission(3, 0).hold(4):
        pass
    assert not caught.value.retryable


def test_room_is_given_back_when_the_work_fails() -> None:
    admission = Admission(1, 0)
    for _ in range(3):
        with pytest.raises(ValueError, match="work"), admission.hold(1):
            raise ValueError("work")
    assert admission.structures == 0


@given(st.lists(st.integers(1, 50), max_size=30))
def test_the_advised_time_is_a_whole_number_of_seconds_that_a_client_will_wait(sizes: list[int]) -> None:
    admission = Admission(50, 0)
    for size in sizes:
        with admission.hold(size):
            assert 1 <= admission.retry_after <= 30
