"""Neighbour lists that a GPU would make are those of the CPU. Here the same library makes them of torch's tensors on the CPU."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from forcefields import catalogue
from forcefields.lennard_jones.adapter import LennardJones
from forcefields.neighbours import Neighbours, neighbours
from forcefields.runtime import device_neighbours
from forcefields.runtime.engine import Engine
from forcefields.runtime.physics import Limits, normalise
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import EnvironmentBroken
from forcegate.structure import Structure
from tests.conformance.environments import checkpoint_of, run_in

ARGON = catalogue.load().resolve("lj-argon")
THREE = Structure(np.full(3, 18, dtype=np.int32), np.array([[0.0, 0.0, 0.0], [3.8, 0.0, 0.0], [1.9, 3.3, 0.0]]))


@pytest.fixture(scope="module")
def argon() -> LennardJones:
    return LennardJones.load(checkpoint_of("lj-argon"), ARGON, "cpu")


def test_the_same_pairs_of_odd_cells() -> None:
    found: dict[str, Any] = json.loads(run_in("lennard_jones", "device_lists").splitlines()[-1])
    assert found["pairs"] > 1000
    assert found["others"] == 0
    assert found["kept"] == 203, "where the adapter looks for it"
    assert found["worst"] < 1e-9
    assert found["types"] == ["int64 int64 int64 float64 float64"]


def test_the_cpu_makes_them_unless_a_gpu_is_told_to(argon: LennardJones) -> None:
    assert device_neighbours.chosen(ModelSettings(), argon, "cuda:0") is neighbours
    assert device_neighbours.chosen(ModelSettings(neighbours="device"), argon, "cpu") is neighbours


def test_a_device_that_cannot_is_named_at_the_load(argon: LennardJones, monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment has no torch at all."""
    monkeypatch.setattr(device_neighbours, "find_spec", lambda _name: object())
    with pytest.raises(EnvironmentBroken, match="cannot be made on cuda:0") as refused:
        device_neighbours.chosen(ModelSettings(neighbours="device"), argon, "cuda:0")
    assert "FORCEGATE_NEIGHBOURS=cpu" in refused.value.hint


def test_the_engine_uses_what_it_is_given(argon: LennardJones) -> None:
    asked: list[float] = []

    def lists(structure: Structure, cutoff: float) -> Neighbours:
        asked.append(cutoff)
        return neighbours(structure, cutoff)

    (job,) = Engine(argon, ARGON, Limits(100, 10_000), lists=lists).evaluate([THREE])
    assert job.result is not None
    assert asked == [argon.cutoff]


def test_what_does_not_fit_on_the_device_is_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vesin says it of more neighbours for each atom than it has set memory aside for."""

    def full(*_arguments: object) -> Neighbours:
        raise RuntimeError("The number of neighbor pairs exceeds the maximum capacity")

    device = object.__new__(device_neighbours.DeviceNeighbours)
    device._told = False
    monkeypatch.setattr(device, "_made", full, raising=False)
    structure = normalise(THREE, 8.5)
    assert len(device(structure, 8.5).first) == 6
    assert 8.5 in structure.lists
