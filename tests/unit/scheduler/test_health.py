"""What is learned of memory, the quarantine of devices, and the life of a model on a device: state machines over given times."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcefields.cost import Cost
from frontend.scheduler.footprint import BASE_MB, Footprints
from frontend.scheduler.quarantine import FIRST_SECONDS, PROBATION_SECONDS, Health, Ward
from frontend.scheduler.residency import GIVEN_BACK, LOAD_SECONDS, SETTLE_SECONDS, UNLOAD_SECONDS, Residency

MB = 2**20
COST = Cost(1e-3, 1e-4, 1e-6, bytes_per_edge=100_000.0, edges=1_000_000)


def test_memory_of_work_follows_the_calibration() -> None:
    known = Footprints()
    assert known.base_mb("m", "gpu") == BASE_MB
    # 10,000 pairs of 100 kB each.
    assert known.work_mb("m", "gpu", 10_000, COST) == pytest.approx(10_000 * 100_000 / MB, abs=1)
    # The model cuts larger work into passes of what it takes at most.
    assert known.work_mb("m", "gpu", 10**9, COST) == known.work_mb("m", "gpu", 1_000_000, COST)


def test_peaks_correct_the_estimate_of_their_size_and_stay_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "footprints.json"
    known = Footprints(path)
    before = known.work_mb("m", "gpu", 10_000, COST)
    known.measured_base("m", "gpu", 870)
    known.measured_peak("m", "gpu", 10_000, 2.0 * before, COST)
    assert known.work_mb("m", "gpu", 10_000, COST) == pytest.approx(2 * before, abs=2), "too little counts at once"
    known.measured_peak("m", "gpu", 10_000, before, COST)
    assert known.work_mb("m", "gpu", 10_000, COST) == pytest.approx(1.8 * before, abs=2), "too much is taken back slowly"
    assert known.work_mb("m", "cpu", 10_000, COST) == before, "another kind of device is another matter"
    again = Footprints(path)
    assert again.base_mb("m", "gpu") == 870
    assert again.work_mb("m", "gpu", 10_000, COST) == known.work_mb("m", "gpu", 10_000, COST)


def test_running_out_of_memory_raises_this_size_and_larger_ones_by_a_fifth() -> None:
    known = Footprints()
    small, large = known.work_mb("m", "gpu", 1000, COST), known.work_mb("m", "gpu", 100_000, COST)
    known.measured_peak("m", "gpu", 1000, 1000 * COST.bytes_per_edge / MB, COST)
    known.ran_out("m", "gpu", 50_000)
    assert known.work_mb("m", "gpu", 1000, COST) == pytest.approx(small, abs=1)
    assert known.work_mb("m", "gpu", 100_000, COST) == pytest.approx(1.2 * large, rel=1e-3)
    known.ran_out("m", "gpu", 50_000)
    assert known.work_mb("m", "gpu", 100_000, COST) == pytest.approx(1.44 * large, rel=1e-3)


def test_what_a_model_came_to_hold_is_kept_over_its_next_load_and_taken_back_slowly() -> None:
    known = Footprints()
    known.measured_base("m", "gpu", 1000)
    known.ran_out("m", "gpu", 1000)
    known.loaded("m", "gpu", 500)
    assert known.of("m", "gpu").base_mb == 900
    assert known.of("m", "gpu").raised == pytest.approx(1.2 / 1.05)
    for _ in range(60):
        known.loaded("m", "gpu", 500)
    assert known.of("m", "gpu").base_mb <= 505
    assert known.of("m", "gpu").raised == 1.0
    known.loaded("m", "gpu", 700)
    assert known.of("m", "gpu").base_mb == 700, "more counts at once"


def test_a_file_that_cannot_be_read_is_learned_again(tmp_path: Path) -> None:
    for text in ("", "[1]", '{"m on gpu": {"factors": "x"}}', '{"m on gpu": 3}'):
        (tmp_path / "footprints.json").write_text(text)
        assert Footprints(tmp_path / "footprints.json").base_mb("m", "gpu") == BASE_MB


def test_repeated_faults_are_quarantined_for_longer_each_time() -> None:
    alerts: list[tuple[str, str]] = []
    ward = Ward(lambda device, why: alerts.append((device, why)))
    for now in (0.0, 10.0):
        ward.fault("gpu-0", "out of its mind", now)
    assert ward.of("gpu-0").takes_work
    ward.fault("gpu-0", "out of its mind", 20.0)
    health = ward.of("gpu-0")
    assert (health.state, alerts) == ("quarantined", [("gpu-0", "out of its mind")])
    health.tick(20.0 + FIRST_SECONDS - 1)
    assert not health.takes_work
    health.tick(20.0 + FIRST_SECONDS)
    assert (health.state, health.takes_work) == ("probation", True)
    ward.fault("gpu-0", "again", 700.0)
    assert (health.state, len(alerts)) == ("quarantined", 2)
    health.tick(700.0 + 2 * FIRST_SECONDS - 1)
    assert health.state == "quarantined", "twice as long"
    health.tick(700.0 + 2 * FIRST_SECONDS)
    health.tick(700.0 + 2 * FIRST_SECONDS + PROBATION_SECONDS)
    assert (health.state, health.quarantines) == ("serving", 0)


def test_faults_that_are_far_apart_are_no_pattern() -> None:
    health = Health()
    assert not any(health.fault("once", now) for now in (0.0, 200.0, 400.0, 600.0, 800.0))


def test_a_clock_that_goes_back_ends_no_quarantine_and_starts_none() -> None:
    health = Health()
    for now in (1000.0, 1001.0, 1002.0):
        health.fault("x", now)
    for now in (5.0, 1002.0 + FIRST_SECONDS - 1, -1e9):
        health.tick(now)
        assert health.state == "quarantined"
    health.tick(1002.0 + FIRST_SECONDS)
    assert health.state == "probation"


def test_what_a_person_decides_stays_until_a_person_changes_it() -> None:
    health = Health()
    health.drain()
    health.tick(1e9)
    assert (health.state, health.takes_work) == ("draining", False)
    health.quarantine()
    health.tick(2e9)
    assert health.state == "quarantined"
    health.give_back()
    assert health.takes_work


def test_a_model_comes_works_and_goes_and_its_memory_is_measured() -> None:
    life = Residency()
    assert life.want(0.0) == "load"
    assert life.want(1.0) == "none", "one load at a time"
    assert not life.start()
    life.loaded(5.0)
    assert life.start()
    assert life.evict(900.0, 6.0) == "none", "never with work in flight"
    assert not life.start(), "nothing new for one that leaves"
    assert life.finish(900.0, 7.0) == "unload"
    assert life.unloaded(8.0) == "measure"
    assert life.measured(100.0, 8.5) == "measure"
    assert life.measured(GIVEN_BACK * 900.0, 9.0) == "none"
    assert life.state == "absent"


def test_one_that_is_asked_for_before_it_is_gone_stays() -> None:
    life = Residency("resident", in_flight=1)
    life.evict(900.0, 1.0)
    life.want(2.0)
    assert (life.state, life.finish(900.0, 3.0)) == ("resident", "none")


def test_memory_that_does_not_come_back_ends_the_process() -> None:
    life = Residency("resident")
    assert life.evict(900.0, 0.0) == "unload"
    life.unloaded(1.0)
    assert life.measured(10.0, 1.0 + SETTLE_SECONDS - 0.1) == "measure"
    assert life.measured(10.0, 1.0 + SETTLE_SECONDS) == "end process"
    assert (life.state, life.reason) == ("stuck", "890 of 900 MB have not come back")
    assert life.want(20.0) == "none", "it is not loaded on top of itself"
    life.measured(900.0, 21.0)
    assert life.want(22.0) == "load"


def test_a_load_that_hangs_is_given_up_and_tried_again_later() -> None:
    life = Residency()
    life.want(0.0)
    assert life.tick(LOAD_SECONDS - 1) == "none"
    assert life.tick(LOAD_SECONDS) == "give up"
    assert life.want(LOAD_SECONDS + 1) == "none", "not at once"
    assert life.want(LOAD_SECONDS + 5) == "load"
    life.load_failed("again", LOAD_SECONDS + 6)
    assert life.want(LOAD_SECONDS + 6 + 9.9) == "none", "and after a longer pause each time"
    assert life.want(LOAD_SECONDS + 6 + 10) == "load"


def test_an_unload_that_hangs_ends_the_process_and_a_lost_one_is_gone() -> None:
    life = Residency("resident")
    life.evict(900.0, 0.0)
    assert life.tick(UNLOAD_SECONDS) == "end process"
    life.gone(UNLOAD_SECONDS + 1)
    assert (life.state, life.want(UNLOAD_SECONDS + 2)) == ("absent", "load")


def test_a_clock_that_goes_back_neither_ends_a_load_nor_a_measurement() -> None:
    life = Residency()
    life.want(1000.0)
    assert life.tick(5.0) == "none"
    life.loaded(6.0)
    life.evict(900.0, 2000.0)
    life.unloaded(2000.0)
    assert life.measured(0.0, 1.0) == "measure"
