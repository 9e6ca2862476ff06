"""Which task begins when its worker has a turn: what is resident goes first, and nobody is passed over for long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from frontend.tasks.order import EPOCH, LOOKED_AT, PATIENCE_SECONDS, Candidate, choose, rank
from frontend.tasks.task import Priority

LOAD_SECONDS = 15.0


@dataclass(frozen=True)
class Task:
    """What a run is made of; times in s."""

    number: int
    model: str
    priority: Priority
    submitted: float
    seconds: float

    @property
    def place(self) -> tuple[int, float, int]:
        """What tasks are sorted by in the queue."""
        return rank(self.priority, EPOCH + self.submitted), self.submitted, self.number


@dataclass
class Run:
    """One worker with one slot, and room for so many models."""

    tasks: Sequence[Task]
    grouped: bool = True
    room: int = 1
    loads: int = 0
    begun: list[Task] = field(default_factory=list)
    passes: list[tuple[Task, Task, float]] = field(default_factory=list)
    """Who went before whom, and how long after that one was first passed over."""

    def __post_init__(self) -> None:
        now, since, resident = 0.0, dict[int, float](), list[str]()
        left = sorted(self.tasks, key=lambda task: task.place)
        while left:
            now = max(now, min(task.submitted for task in left))
            waiting = [task for task in left if task.submitted <= now]
            candidates = [self._candidate(task, since) for task in waiting[:LOOKED_AT]]
            at = choose(candidates, frozenset(resident).issuperset, now) if self.grouped else 0
            task = waiting[at]
            for passed in waiting[:at]:
                self.passes.append((task, passed, now - since.setdefault(passed.number, now)))
            left.remove(task)
            self.begun.append(task)
            if task.model not in resident:
                self.loads += 1
                now += LOAD_SECONDS
            resident = [*(model for model in resident if model != task.model), task.model][-self.room :]
            now += task.seconds

    @staticmethod
    def _candidate(task: Task, since: dict[int, float]) -> Candidate:
        return Candidate(str(task.number), 1, (task.model,), task.priority, since.get(task.number))


tasks = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.integers(0, 2000), st.integers(1, 200)), min_size=1, max_size=60
).map(lambda drawn: [Task(number, *values) for number, values in enumerate(drawn)])


@given(tasks, st.integers(1, 2))
def test_nobody_is_passed_over_by_a_lower_class_or_for_longer_than_the_bound(drawn: list[Task], room: int) -> None:
    run = Run(drawn, room=room)
    assert len(run.begun) == len(drawn), "everybody has a turn"
    levels = list(Priority)
    for first, passed, seconds in run.passes:
        assert levels.index(first.priority) <= levels.index(passed.priority)
        assert seconds < PATIENCE_SECONDS[passed.priority]
        assert first.model != passed.model


@given(tasks, st.integers(1, 2))
def test_tasks_of_one_model_and_class_begin_in_the_order_of_their_places(drawn: list[Task], room: int) -> None:
    begun = defaultdict(list)
    for task in Run(drawn, room=room).begun:
        begun[task.model, task.priority].append(task)
    for several in begun.values():
        assert several == sorted(several, key=lambda task: task.place)


@given(tasks)
def test_where_nothing_needs_a_load_or_everything_does_places_alone_count(drawn: list[Task]) -> None:
    waiting = [Candidate(str(task.number), 1, (task.model,), task.priority, None) for task in drawn]
    for all_are in (True, False):
        assert choose(waiting, lambda _, known=all_are: known, 0.0) == 0  # type: ignore[misc]


def alternating(count: int, priority: Priority = Priority.NORMAL) -> list[Task]:
    """Tasks of 10 s for two models in turn, all submitted at once."""
    return [Task(number, "ab"[number % 2], priority, 0.0, 10.0) for number in range(count)]


def test_two_models_in_turn_are_loaded_a_fraction_as_often() -> None:
    strict, grouped = Run(alternating(200), grouped=False), Run(alternating(200))
    assert strict.loads == 200, "first in, first out loads for each"
    # A group lasts until the first task of the other model has been passed over for 120 s: twelve tasks of 10 s and a load.
    assert grouped.loads <= 200 / 10
    assert Run(alternating(200, Priority.CRITICAL)).loads == 200, "what may not wait does not"


def test_a_task_that_has_been_passed_over_for_its_patience_begins() -> None:
    patience = PATIENCE_SECONDS[Priority.NORMAL]
    waiting = [Candidate("1", 1, ("b",), Priority.NORMAL, 100.0), Candidate("2", 1, ("a",), Priority.NORMAL, None)]

    def at(moment: float) -> int:
        return choose(waiting, lambda models: models == ("a",), moment)

    assert (at(100.0 + patience - 0.1), at(100.0 + patience)) == (1, 0)


def test_an_overdue_task_further_back_is_not_passed_either() -> None:
    waiting = [
        Candidate("1", 1, ("b",), Priority.NORMAL, None),
        Candidate("2", 1, ("c",), Priority.NORMAL, 0.0),
        Candidate("3", 1, ("a",), Priority.NORMAL, None),
    ]
    assert choose(waiting, lambda models: models == ("a",), 1000.0) == 0


def test_a_task_of_several_models_needs_all_of_them() -> None:
    waiting = [Candidate("1", 1, ("a", "b"), Priority.NORMAL, None), Candidate("2", 1, ("a",), Priority.NORMAL, None)]
    assert choose(waiting, lambda models: set(models) <= {"a"}, 0.0) == 1
