"""torch.compile: the same numbers, everything compiled at the load, and no compiler afterwards, whatever the sizes of passes.

With torch's kernels in place of the C++ compiler, whose minutes are for ``python -m tests.conformance.compiled ... inductor``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.environments import run_in

GATE = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
"""eV per atom, eV/A, eV/A^3: what the gate allows between a structure alone and in a batch."""
COMPILED = [("orb", "tiny-orb-conservative"), ("mace", "tiny-mace-omat")]


@pytest.fixture(scope="module", params=COMPILED, ids=lambda each: each[0])
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    family, variant = request.param
    folder = tmp_path_factory.mktemp("compiled")
    found: dict[str, Any] = json.loads(run_in(family, "compiled", folder, variant, "aot_eager").splitlines()[-1])
    return found


@pytest.mark.parametrize("quantity", GATE)
def test_the_numbers_are_those_of_the_model_as_it_is(figures: dict[str, Any], quantity: str) -> None:
    assert figures["size of forces"] > 0.1
    assert figures[quantity] < GATE[quantity]


def test_the_gate_is_passed(figures: dict[str, Any]) -> None:
    assert figures["failed"] == []


def test_nothing_is_compiled_after_the_load(figures: dict[str, Any]) -> None:
    """With gradients and without, for many structures and for one."""
    assert figures["sizes"] > 20
    assert 0 < figures["compiled at the load"] <= 8
    assert figures["compiled later"] == 0


def test_passes_of_every_size_are_compiled(figures: dict[str, Any]) -> None:
    """All but those of a single atom, which are evaluated as without compiling."""
    assert figures["passes that did not fit"] == figures["energies that did not fit"] == 0
    assert not figures["a single atom fits"]
