"""Who goes first, and who is not held up by whom."""

from __future__ import annotations

from frontend.scheduler.cluster import Cluster
from frontend.scheduler.order import Order, Waiting
from frontend.scheduler.policy import Policy
from tests.unit.scheduler.test_placement import gpu, resident

CRITICAL, HIGH, NORMAL, LOW = range(4)


class Desk:
    """An order over one cluster, whose decisions are carried out at once."""

    def __init__(self, devices: int = 1, policy: Policy | None = None) -> None:
        self.cluster = Cluster([gpu(n) for n in range(devices)], policy or Policy())
        self.order = Order(self.cluster)
        self.number = 0

    def push(self, model: str, priority: int = NORMAL, at: float = 0.0, work: int = 1000) -> int:
        self.number += 1
        self.order.push(Waiting(self.number, model, 5000, work, priority, at))
        return self.number

    def step(self, now: float) -> list[object]:
        """Numbers of the tasks that begin, ``+model`` for loads (they end after this pass), ``-model`` for evictions."""
        done: list[object] = []
        loads: list[tuple[str, int]] = []
        for task, model, decision in self.order.dispatch(now):
            for victim in decision.evictions:
                self.cluster.remove(victim, decision.at)
                done.append(f"-{victim}")
            if task is None:
                self.cluster.load(model, decision.at, 5000, now)
                loads.append((model, decision.at))
                done.append(f"+{model}")
            else:
                self.cluster.start(model, decision.at, task.work_mb, now)
                done.append(task.id)
        for model, at in loads:
            self.cluster.loaded(model, at, now)
        return done

    def finish(self, model: str, now: float, at: int = 0) -> None:
        self.cluster.finish(model, at, 1000, now)


def test_priority_first_then_first_in_first_out() -> None:
    desk = Desk()
    desk.cluster.put(resident("a"), 0)
    low, first, second, high = desk.push("a", LOW, 0), desk.push("a", NORMAL, 1), desk.push("a", NORMAL, 2), desk.push("a", HIGH, 3)
    begun = []
    for now in range(4, 8):
        begun += desk.step(now)
        desk.finish("a", now)
    assert begun == [high, first, second, low]


def test_what_waits_long_goes_up() -> None:
    desk = Desk(policy=Policy(ageing_seconds=100.0))
    desk.cluster.put(resident("a", in_flight=1), 0)
    old, _ = desk.push("a", LOW, 0.0), desk.push("a", NORMAL, 99.0)
    desk.finish("a", 150.0)
    assert desk.step(150.0) == [old], "LOW came to NORMAL after 100 s, and is the older of the two"


def test_a_task_whose_device_is_full_holds_up_nobody() -> None:
    desk = Desk()
    desk.cluster.put(resident("a", in_flight=1), 0)
    desk.cluster.put(resident("b"), 0)
    desk.push("a", CRITICAL, 0.0)
    behind = desk.push("b", LOW, 1.0)
    assert desk.step(2.0) == [behind]


def test_a_model_is_loaded_where_there_is_room_and_its_tasks_begin() -> None:
    desk = Desk()
    task = desk.push("a")
    assert desk.step(0.0) == ["+a"]
    assert desk.step(0.0) == [task]


def test_tasks_of_loaded_models_go_together_until_patience_ends() -> None:
    desk = Desk(policy=Policy(models_per_device=1, patience_seconds=(0.0, 30.0, 120.0, 300.0)))
    desk.cluster.put(resident("a"), 0)
    grouped = [desk.push("a", NORMAL, 0.0) for _ in range(4)]
    other = desk.push("b", NORMAL, 0.5)
    assert desk.step(1.0) == [grouped[0]]
    desk.finish("a", 60.0)
    assert desk.step(60.0) == [grouped[1]], "no load yet: those of the loaded model first"
    assert desk.step(121.0) == [], "its patience is at an end, and the model that is there gets nothing new"
    desk.finish("a", 130.0)
    assert desk.step(130.0) == ["-a", "+b"]
    assert desk.step(130.0) == [other]
    assert desk.order.waiting("a") == 2


def test_a_critical_task_waits_only_for_work_in_flight() -> None:
    desk = Desk(policy=Policy(models_per_device=1))
    desk.cluster.put(resident("a", in_flight=1, work_mb=1000), 0)
    desk.push("a", NORMAL, 0.0)
    critical = desk.push("b", CRITICAL, 1.0)
    assert desk.step(1.0) == []
    desk.finish("a", 5.0)
    assert desk.step(5.0) == ["-a", "+b"]
    assert desk.step(5.0) == [critical]


def test_a_hot_model_gets_a_replica_when_its_tasks_wait() -> None:
    desk = Desk(devices=2, policy=Policy(scale_out_seconds=60.0))
    desk.cluster.put(resident("a", in_flight=1), 0)
    desk.push("a", NORMAL, 0.0)
    assert desk.step(59.0) == []
    assert desk.step(60.0) == ["+a"]
    assert set(desk.cluster.homes("a")) == {0, 1}


def test_a_lost_device_gives_its_task_back_to_the_front() -> None:
    desk = Desk(devices=2)
    desk.cluster.put(resident("a"), 0)
    first, second = desk.push("a", NORMAL, 0.0), desk.push("a", NORMAL, 1.0)
    assert desk.step(1.0) == [first]
    desk.cluster.bar("gpu-0", "lost")
    desk.cluster.remove("a", 0)
    desk.order.push(Waiting(first, "a", 5000, 1000, NORMAL, 0.0), again=True)
    assert desk.step(2.0) == ["+a"]
    assert desk.step(2.0) == [first]
    desk.finish("a", 3.0, at=1)
    assert desk.step(3.0) == [second]


def test_a_task_that_fits_nowhere_is_taken_out_with_what_would() -> None:
    desk = Desk()
    number = desk.push("a", work=90_000)
    assert desk.step(0.0) == []
    ((task, decision),) = desk.order.refused
    assert (task.id, decision.largest_mb, len(desk.order)) == (number, 73_000, 0)
