"""The parts of the benchmarks that compute: what they send, what they read, what they conclude."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from benchmarks import metrics, perf_analyzer, report, structures, throughput
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
    found = throughput.ratios(rounds)
    assert found == pytest.approx({"served_over_in_process_best": 0.9, "served_over_engine": 1.0, "served_over_calculator": 1.5})


def test_one_disturbed_round_does_not_move_the_ratio() -> None:
    even = {"served": 9.0, "adapter": 10.0, "engine": 9.0, "calculator": 6.0}
    assert throughput.ratios([even, even | {"served": 1.0}, even])["served_over_in_process_best"] == pytest.approx(0.9)


def test_the_ways_take_turns_in_alternating_order() -> None:
    called: list[str] = []

    def way(name: str) -> float:
        called.append(name)
        return float(len(called))

    rounds = throughput.take_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
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
        throughput.Effort(one_by_one=12)


def test_a_mixture_goes_round_the_sizes() -> None:
    mixed = structures.mixture(catalogue.load().resolve("chgnet-0.3.0"), (8, 16, 32), 7)
    assert [len(atoms) for atoms in mixed] == [8, 16, 32, 8, 16, 32, 8]


def test_a_report_is_written_with_what_was_too_large_named(tmp_path: Path) -> None:
    latency = {
        "model": "sevennet-0",
        "atoms": 8,
        "calls": 21,
        "p50_ms": {"in_process": 70.0, "grpc": 71.25, "rest": 73.0},
        "grpc_over_in_process_ms": 1.25,
        "rest_over_grpc_ms": 1.75,
    }
    entry = {
        "model": "sevennet-0",
        "atoms": 8,
        "served_over_in_process_best": 0.987654321,
        "served_over_engine": 1.0,
        "served_over_calculator": 1.11,
        "structures_per_second": {"served": 13.0, "engine": 13.0, "adapter": 13.2, "calculator": 11.7},
        "service": {"mean_batch_structures": 19.0, "mean_pass_atoms": 110.0, "share_elsewhere": 0.007},
    }
    clients = {"model": "sevennet-0", "protocol": "grpc", "clients": 32, "structures_per_second": 13.0, "structures": 64}
    results = {
        "machine": {"date": "2026-01-02", "processor": "any", "cores": 2, "memory_gb": 24, "load_before": 0.1},
        "settings": {"device": "cpu", "threads": 1},
        "quick": False,
        "seconds": 600,
        "throughput": [entry],
        "latency": [latency],
        "by_clients": [clients | {"p50_ms": 2400.0, "longest_ms": 2600.0}],
        "by_atoms": [latency, {"model": "sevennet-0", "atoms": 1000, "skipped": "about 600 atoms fit"}],
    }
    paths = report.write(results, tmp_path, "any")
    assert json.loads(paths[0].read_text())["throughput"][0]["served_over_in_process_best"] == 0.9877
    text = paths[1].read_text()
    assert "| sevennet-0 | 8 | **0.99** | **1.00** | **1.11** |" in text
    assert "about 600 atoms fit" in text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])
