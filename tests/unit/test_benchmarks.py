"""The parts of the benchmarks that compute: what they send, what they read, what they conclude."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from benchmarks import arrivals, metrics, perf_analyzer, report, stalls, statistics, structures
from benchmarks.bench import SECTIONS
from benchmarks.clients import Send, closed_loop
from benchmarks.sections import clients, families, relaxations, soak, tasks
from forcefields import catalogue
from forcegate.contract import INPUTS
from forcegate.structure import from_atoms

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency"
)
ROW = "8,296.307,7,2641,4659,121,8048,770,1,11307,39619,40496,53034"
START = 1795343755035438173
"""Nanoseconds since 1970, as perf_analyzer writes them: a double resolves 256 of them at this size."""


def profile(spans: list[tuple[float, float]]) -> dict[str, object]:
    """A profile export of requests sent and answered these many seconds after ``START``."""
    requests = [{"timestamp": START + round(a * 1e9), "response_timestamps": [START + round(b * 1e9)]} for a, b in spans]
    return {"experiments": [{"experiment": {"mode": "concurrency", "value": 8}, "requests": requests}]}


def test_input_data_has_shapes_without_batch_axis_and_floats_that_look_like_floats() -> None:
    variant = catalogue.load().resolve("sevennet-0")
    given = [from_atoms(molecule("H2O")), *(from_atoms(atoms) for atoms in structures.crystals(variant, 8, 2))]
    # perf_analyzer reads an FP64 that is written as 0 as an integer and refuses the file.
    text = json.dumps(perf_analyzer.input_data(given))
    steps = json.loads(text, parse_int=lambda digits: ("int", digits))["data"]
    assert len(steps) == 3
    for step, structure in zip(steps, given, strict=True):
        for spec in INPUTS:
            shape = [int(digits) for _, digits in step[spec.name]["shape"]]
            assert shape == list(spec.shape(1, len(structure))[1:])
            content = step[spec.name]["content"]
            assert len(content) == np.prod(shape)
            written_as_integer = [isinstance(value, tuple) for value in content]
            assert all(written_as_integer) if spec.triton_type == "INT32" else not any(written_as_integer)
    sent = json.loads(text)["data"][1]["positions"]["content"]
    assert np.array_equal(np.reshape(sent, (-1, 3)), given[1].positions)


def test_throughput_comes_from_the_time_stamps() -> None:
    """perf_analyzer's own figure here is 296/s, for it waits for the end in whole seconds."""
    load = perf_analyzer.read(f"{HEADER}\n{ROW}\n", profile([(0.0, 0.010), (0.002, 0.020), (0.010, 0.050), (0.020, 0.040)]))
    assert load.concurrency == 8
    assert load.requests == 4
    assert load.structures_per_second == pytest.approx(4 / 0.050, rel=1e-9)
    assert load.p50 == pytest.approx(0.019, rel=1e-6)
    assert load.queue == pytest.approx(4659e-6)
    assert load.infer == pytest.approx(8048e-6)


def test_time_stamps_keep_their_nanoseconds() -> None:
    sent, answered = perf_analyzer.time_stamps(profile([(0.0, 1e-9), (5e-9, 7e-9)]))
    assert answered - sent == pytest.approx([1e-9, 2e-9], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "spans"), [(HEADER, [(0.0, 1.0)]), (f"{HEADER}\n{ROW}\n{ROW}", [(0.0, 1.0)]), (f"{HEADER}\n{ROW}", [])]
)
def test_an_incomplete_report_is_an_error(text: str, spans: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="perf_analyzer"):
        perf_analyzer.read(text, profile(spans))


def test_ratios_are_formed_within_a_round() -> None:
    """On a machine that halves its speed between rounds, both sides of a ratio are still measured at the same speed."""
    rounds = [
        {"served": 9.0 * speed, "adapter": 10.0 * speed, "engine": 9.0 * speed, "calculator": 6.0 * speed} for speed in (1, 0.5, 2)
    ]
    found = families.ratios(rounds)
    assert found == pytest.approx({"served_over_in_process_best": 0.9, "served_over_engine": 1.0, "served_over_calculator": 1.5})


def test_one_disturbed_round_does_not_move_the_ratio() -> None:
    even = {"served": 9.0, "adapter": 10.0, "engine": 9.0, "calculator": 6.0}
    assert families.ratios([even, even | {"served": 1.0}, even])["served_over_in_process_best"] == pytest.approx(0.9)


def test_the_ways_take_turns_in_alternating_order() -> None:
    called: list[str] = []

    def way(name: str) -> float:
        called.append(name)
        return float(len(called))

    rounds = statistics.take_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert rounds[1] == {"b": 3.0, "a": 4.0}


def test_metrics_of_one_model_between_two_moments() -> None:
    text = (
        "# TYPE forcegate_batch_structures histogram\n"
        'forcegate_batch_structures_count{{model="a"}} {calls}\n'
        'forcegate_batch_structures_sum{{model="a"}} {structures}\n'
        'forcegate_batch_structures_sum{{model="b"}} 1000\n'
        'forcegate_atoms{{model="a"}} {atoms}\n'
        'forcegate_pass_atoms_count{{model="a"}} {passes}\n'
        'forcegate_evaluation_seconds{{model="a"}} {seconds}\n'
    )
    before = metrics.parse(text.format(calls=1, structures=1, atoms=8, passes=1, seconds=0.5), "a")
    after = metrics.parse(text.format(calls=5, structures=65, atoms=520, passes=5, seconds=2.0), "a")
    found = metrics.summary(after.since(before), seconds=2.0)
    assert found["mean_batch_structures"] == 16
    assert found["mean_pass_atoms"] == 128
    assert found["share_evaluation"] == pytest.approx(0.75)
    assert found["share_elsewhere"] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["sevennet-0", "lj-argon"])
def test_structures_are_of_the_model_s_elements_and_all_different(name: str) -> None:
    variant = catalogue.load().resolve(name)
    given = structures.crystals(variant, 32, 20)
    assert {len(atoms) for atoms in given} == {32}
    assert all(set(atoms.numbers) <= set(variant.elements) for atoms in given)
    assert len({atoms.positions.tobytes() for atoms in given}) == 20
    again = structures.crystals(variant, 32, 20)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(given, again, strict=True))


def test_every_way_gets_the_same_mixture_of_crystals() -> None:
    """Twelve structures of eight crystals would count the dense MgO twice and CaO once."""
    with pytest.raises(ValueError, match="multiple"):
        families.Effort(one_by_one=12)


def test_a_mixture_goes_round_the_sizes() -> None:
    mixed = structures.mixture(catalogue.load().resolve("chgnet-0.3.0"), (8, 16, 32), 7)
    assert [len(atoms) for atoms in mixed] == [8, 16, 32, 8, 16, 32, 8]


@pytest.mark.parametrize("atoms", [2, 8, 32, 100, 400, 1000])
def test_cells_of_every_size_are_as_near_to_a_cube_as_it_allows(atoms: int) -> None:
    """A long thin cell would have other neighbours, and cost more, than the crystals that people compute."""
    for made in structures.crystals(catalogue.load().resolve("sevennet-0"), atoms, 8):
        assert len(made) == atoms
        lengths = made.cell.lengths()
        assert lengths.max() / lengths.min() < (1.2 if atoms in (2, 8, 1000) else 3.0)


def test_repeats_are_factors() -> None:
    assert [structures.repeats(cells) for cells in (1, 2, 27, 50, 7)] == [(1, 1, 1), (2, 1, 1), (3, 3, 3), (5, 5, 2), (7, 1, 1)]


def test_the_mix_of_sizes_has_the_mean_of_the_materials_project() -> None:
    """Within 4 %: the standard deviation of the mean of 20,000 draws is 0.2 atoms, and the tail beyond 444 atoms is cut."""
    sizes = structures.materials_sizes(20_000, np.random.default_rng(1))
    assert np.mean(sizes) == pytest.approx(structures.MEAN_ATOMS, rel=0.04)
    assert np.median(sizes) == pytest.approx(structures.MEDIAN_ATOMS, abs=1)
    assert min(sizes) >= 2
    assert max(sizes) <= structures.LARGEST
    assert not any(size % 2 for size in sizes)


def test_the_ideal_server_takes_all_that_waits_and_answers_it_together() -> None:
    """Three arrivals while the first takes a second, of which two then take half of their time; the last comes much later."""
    moments, alone = np.array([0.0, 0.1, 0.2, 9.0]), np.array([1.0, 1.0, 1.0, 0.5])
    assert arrivals.ideal_latencies(moments, alone, gain=2.0) == pytest.approx([1.0, 1.9, 1.8, 0.5])
    # In a queue that never empties the server is never idle: the last is answered when all the work has been done.
    busy = arrivals.ideal_latencies(np.linspace(0.0, 1.0, 50), np.full(50, 0.1), gain=1.0)
    assert 1.0 + busy[-1] == pytest.approx(50 * 0.1)


def test_poisson_arrivals_come_at_their_rate_and_do_not_know_of_each_other() -> None:
    """Times between arrivals of a Poisson process: their standard deviation is their mean. 10,000 of them: both within 4 %."""
    moments = arrivals.poisson(rate=50.0, count=10_000)
    between = np.diff(moments)
    assert (between > 0).all()
    assert between.mean() == pytest.approx(1 / 50, rel=0.04)
    assert between.std() == pytest.approx(1 / 50, rel=0.04)
    # Nor does the number in one second say anything of that in the next: its variance is its mean.
    counts = np.bincount(moments.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.4)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Ten requests in 0.1 s to a server that takes 0.2 s for each, and any number at once, are over after 0.3 s and not after 2."""
    given = [from_atoms(molecule("H2O"))] * 10
    moments = np.arange(1, 11) * 0.01

    async def connect(_client: int) -> Send:
        async def send(_index: int) -> None:
            await asyncio.sleep(0.2)

        return send

    started = time.perf_counter()
    run = asyncio.run(arrivals.open_loop(connect, given, moments))
    assert time.perf_counter() - started < 1.0
    assert run.atoms == 30
    assert (run.latencies >= 0.2).all()
    assert run.latencies.max() < 0.6
    assert run.seconds == pytest.approx(0.29, abs=0.3)


def test_a_closed_loop_keeps_as_many_in_flight_as_there_are_clients() -> None:
    given = [from_atoms(molecule("H2O"))] * 40
    flying, most = 0, 0

    async def connect(_client: int) -> Send:
        async def send(_index: int) -> None:
            nonlocal flying, most
            flying += 1
            most = max(most, flying)
            await asyncio.sleep(0.001)
            flying -= 1

        return send

    run = asyncio.run(closed_loop(connect, given, 8))
    assert most == 8
    assert len(run.latencies) == 40
    assert (run.latencies > 0).all()


def test_percentiles_are_waits_that_somebody_had() -> None:
    found = statistics.waits(np.array([0.010] * 95 + [0.5] * 5))
    assert found == pytest.approx({"p50_ms": 10.0, "p95_ms": 10.0, "p99_ms": 500.0, "longest_ms": 500.0})


def test_a_stall_is_time_in_which_work_waited_and_nothing_was_computed() -> None:
    waiting = stalls.union([(0.0, 1.0), (0.5, 2.0), (10.0, 11.0)])
    assert waiting == [(0.0, 2.0), (10.0, 11.0)]
    # From 0.4 to 1.1 nothing was computed. Between 2 and 10 nobody waited, so that the model was idle then is no stall.
    assert stalls.longest_gap(waiting, [(0.1, 0.4), (1.1, 2.0), (10.05, 10.9)]) == pytest.approx(0.7)
    assert stalls.longest_gap(waiting, [(-1.0, 3.0), (9.0, 12.0)]) == 0.0
    assert stalls.longest_gap(waiting, []) == pytest.approx(2.0)


def test_batches_are_read_from_the_model_s_log() -> None:
    lines = [
        '{"time": "2026-01-02T03:04:05.500Z", "level": "info", "message": "batch", "model": "a", "seconds": 0.25}',
        '{"time": "2026-01-02T03:04:06.000Z", "level": "info", "message": "batch", "model": "b", "seconds": 0.25}',
        "I0102 03:04:05 server.cc:1] not JSON",
        '{"time": "2026-01-02T03:04:07.000Z", "message": "batch", "model": "a"',
    ]
    [(begin, end)] = stalls.batches(lines, "a")
    assert end - begin == pytest.approx(0.25)
    assert end % 60 == pytest.approx(5.5)


def test_memory_that_grows_is_told_from_memory_that_has_filled() -> None:
    times = np.linspace(0.0, 3600.0, 100)
    filled = soak.flatness([(t, 500.0 + 300.0 * min(t / 600.0, 1.0)) for t in times])
    leaking = soak.flatness([(t, 500.0 + 100.0 * t / 3600.0) for t in times])
    assert filled["mb_an_hour"] == pytest.approx(0.0, abs=1e-6)
    assert leaking["mb_an_hour"] == pytest.approx(100.0)
    assert filled["most_mb"] == 800.0


def test_the_soak_knows_which_errors_are_typed() -> None:
    seen = soak.Seen()
    seen.failed("coincident_atoms", "two atoms")
    seen.failed("ReadTimeout", "")
    seen.failed("None", "500 Internal Server Error")
    assert seen.typed == {"coincident_atoms": 1}
    assert len(seen.untyped) == 2


def test_rattled_crystals_are_out_of_equilibrium() -> None:
    made = relaxations.rattled("chgnet-0.3.0", 8)
    assert [len(atoms) for atoms in made] == [8] * 8
    assert min(atoms.get_all_distances(mic=True)[np.triu_indices(8, 1)].min() for atoms in made) > 1.0


MEASURED = {
    "model": "sevennet-0",
    "atoms": 8,
    "served_over_in_process_best": 0.987654321,
    "served_over_engine": 1.0,
    "served_over_calculator": 1.11,
    "structures_per_second": {"served": 13.0, "engine": 13.0, "adapter": 13.2, "calculator": 11.7},
    "best_pack_atoms": 128,
    "service": {"mean_batch_structures": 19.0, "mean_pass_atoms": 110.0, "share_elsewhere": 0.007, "longest_stall_ms": 3.0},
    "load_seconds": 12.0,
    "resident_mb": 700.0,
    "rounds": [
        {"served": 12.0, "engine": 13.0, "adapter": 13.2, "calculator": 11.7},
        {"served": 14.0, "engine": 13.0, "adapter": 13.2, "calculator": 11.7},
    ],
}
LOADED = {
    "structures": 64,
    "structures_per_second": 13.0,
    "atoms_per_second": 104.0,
    **{f"{name}_ms": 2400.0 for name in ("p50", "p95", "p99", "longest")},
    "service": {
        "edges_per_second": 5000.0,
        "mean_batch_structures": 19.0,
        **{f"cpu_ms_{kind}": 1.0 for kind in ("model", "tritonserver", "gateway")},
    },
}


def test_a_report_is_written_with_what_was_left_out_named(tmp_path: Path) -> None:
    by_clients = [
        {"model": "sevennet-0", "protocol": "grpc", "clients": number, "rounds": rounds} | LOADED
        for number, rounds in ((32, [10.0, 20.0, 30.0]), (256, [9.0, 19.0, 60.0]))
    ]
    results = {
        "machine": {"date": "2026-01-02", "processor": "any", "cores": 2, "memory_gb": 24, "load_before": 0.1},
        "settings": {"device": "cpu", "threads": 1},
        "quick": False,
        "seconds": 600,
        "sections": {"families": [MEASURED, {"model": "random-uma-s-1p2", "skipped": "it does not fit"}], "clients": by_clients},
    }
    queue = {"start_p50_ms": 30.0, "start_p95_ms": 60.0, "submitted_per_second": 200.0, "per_second": 90.0}
    relaxed = {"model": "chgnet-0.3.0", "relaxations": 64, "an_hour": 900.0, "an_hour_one_by_one": 450.0}
    relaxed |= {"queued_over_one_by_one": 2.0, "health_p50_ms": 4.0, "health_p99_ms": 20.0}
    results["sections"]["tasks"] = [{"database": "sqlite"} | queue, {"database": "postgres", "skipped": "there is none"}, relaxed]
    paths = report.write(results, [families, clients, tasks], tmp_path, "any")
    assert json.loads(paths[0].read_text())["sections"]["families"][0]["served_over_in_process_best"] == 0.9877
    text = paths[1].read_text()
    assert "| sevennet-0 | 8 | **0.99** (0.91 to 1.06) | **1.00** (0.92 to 1.08) | **1.11** (1.03 to 1.20) |" in text
    assert "it does not fit" in text
    assert "| sevennet-0 | grpc | 256 | **0.95** |" in text
    assert "| sqlite | 30 | 60 | 200 | 90 |" in text
    assert "| chgnet-0.3.0 | 64 | 900 | 450 | 2.00 | 4.0 | 20 |" in text
    assert [path.name for path in paths[2:]] == ["any-families.png", "any-clients.png", "any-tasks.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_tells_why_it_was_left_out(name: str) -> None:
    from importlib import import_module

    section = import_module(f"benchmarks.sections.{name}")
    assert name == section.NAME
    assert "there is no such thing here" in section.table([{"skipped": "there is no such thing here"}])


def test_a_later_run_joins_an_earlier_one() -> None:
    machine = {"date": "2026-01-02", "load_before": 0.5}
    earlier = {
        "machine": machine,
        "seconds": 100,
        "sections": {"families": [{"model": "a", "x": 1}, {"model": "b", "x": 1}], "gateway": [{"media": "json"}]},
    }
    later = {
        "machine": machine | {"load_before": 0.1},
        "seconds": 50,
        "sections": {"families": [{"model": "b", "x": 2}], "gateway": [{"media": "msgpack"}], "soak": [{"model": "c"}]},
    }
    both = report.added(earlier, later)
    assert both["sections"] == {
        "families": [{"model": "a", "x": 1}, {"model": "b", "x": 2}],
        "gateway": [{"media": "msgpack"}],
        "soak": [{"model": "c"}],
    }
    assert (both["seconds"], both["runs"], both["machine"]["load_before"]) == (150, 2, 0.5)
