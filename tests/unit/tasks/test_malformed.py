"""Bodies of tasks that are not what they should be: each is read, or refused in words that a caller can act on."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcegate.errors import ForcegateError
from frontend.requests import TASK, Limits, decode
from frontend.tasks.submission import Submission
from tests.api.test_malformed import junk, places, replaced

LIMITS = Limits(max_batch=16, max_atoms=2000)
CRYSTAL: dict[str, Any] = {
    "symbols": ["Ar", "Ar"],
    "positions": [[0.0, 0.0, 0.0], [2.65, 2.65, 2.65]],
    "cell": [[5.3, 0, 0], [0, 5.3, 0], [0, 0, 5.3]],
    "pbc": [True] * 3,
}
OPTIONS = {
    "priority": "HIGH",
    "timeout_seconds": 60,
    "callback": {"url": "https://example.org/", "events": ["FAILED"], "secret": "x"},
    "idempotency_key": "key",
    "detach": True,
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "single-point": {"compute_forces": True, "compute_stress": False, "head": None},
    "optimization": {"fmax": 0.05, "smax": 1.0, "max_steps": 10, "optimizer": "FIRE", "cell_filter": "frechet", "pressure": 1.0},
    "stability": {"temperature": 300, "pressure": 1.0, "timestep": 1.0, "production_steps": 10, "ensemble": "npt", "seed": 1},
    "bulk-modulus": {"strain_range": 0.06, "num_points": 7, "relax_ions": True, "eos": "vinet", "min_r2": 0.9},
    "heat-capacity": {"temperatures": [100.0], "supercell": [2, 2, 2], "displacement": 0.01, "mesh_length": 20.0},
    "elasticity": {"strain": 0.01, "num_strains": 2, "relax_cell": True, "max_stress": 0.5},
    "interaction-energy": {"guest": {"symbols": ["Ar"], "positions": [[0, 0, 0]]}, "placement": "given", "positions": [[1, 1, 1]]},
    "qmof-energy": {"reference_energy": -1.0},
}
BODIES: dict[str, dict[str, Any]] = {
    kind: {"model_name": "lj-argon", "atoms": CRYSTAL, "use_d3": False, "options": OPTIONS, **parameters}
    for kind, parameters in PARAMETERS.items()
}
BODIES["batch"] = {
    "model_name": "lj-argon",
    "atoms": [CRYSTAL, {"format": "xyz", "text": "1\n\nAr 0 0 0\n"}],
    "task": "optimization",
    "task_params": PARAMETERS["optimization"],
    "options": OPTIONS,
}
BODIES["multi-model"] = {
    "model_names": ["lj-argon", "chgnet"],
    "atoms": CRYSTAL,
    "task": "heat_capacity",
    "task_params": PARAMETERS["heat-capacity"] | {"heads": {"chgnet": ""}},
    "options": OPTIONS,
}
WORST = [float("nan"), float("inf"), -1, 0, 1e308, 2**63, 10**30, -(10**30), True, None, "", "NaN", [], {}, [[]], {"format": "cif"}]


def read(kind: str, body: Any) -> Submission:
    """What the gateway makes of a body as it comes over the wire; nothing but a typed error may come out of it."""
    began, refused = time.process_time(), None
    try:
        found = decode(f"{TASK}{kind}", json.dumps(body).encode("utf-8", "replace"), "json", LIMITS)
    except ForcegateError as error:
        refused = error
    assert time.process_time() - began < 5, body  # whatever it asks for, nothing large is built to find out
    if refused is not None:
        assert refused.status in (400, 404, 409, 413, 422), (body, refused)
        assert refused.detail
        raise refused
    assert isinstance(found, Submission)
    json.dumps(found.parameters, allow_nan=False)  # it goes into the database as JSON
    return found


@pytest.mark.parametrize("kind", BODIES)
def test_every_place_of_a_body_may_hold_anything(kind: str) -> None:
    read(kind, BODIES[kind])
    outcomes = set()
    for place in places(BODIES[kind]):
        for value in WORST:
            try:
                read(kind, replaced(BODIES[kind], place, value))
                outcomes.add("read")
            except ForcegateError as error:
                outcomes.add(error.code)
    assert {"invalid_request", "invalid_structure"} <= outcomes or kind == "batch"


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(list(BODIES)), st.data())
def test_junk_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    body = BODIES[kind]
    for _ in range(data.draw(st.integers(1, 3))):
        body = replaced(body, data.draw(st.sampled_from(places(body))), data.draw(junk))
    with suppress(ForcegateError):
        read(kind, body)


ABSURD: list[tuple[str, dict[str, Any], int]] = [
    ("heat-capacity", {"supercell": [50, 50, 50]}, 413),
    ("heat-capacity", {"supercell": None, "supercell_length": 200}, 413),
    ("heat-capacity", {"supercell": [51, 1, 1]}, 400),
    ("heat-capacity", {"temperatures": [300.0] * 10_001}, 400),
    ("heat-capacity", {"temperatures": [-1.0]}, 400),
    ("heat-capacity", {"mesh_length": 1e9}, 400),
    ("optimization", {"max_steps": 10**9}, 400),
    ("optimization", {"fmax": 0}, 400),
    ("optimization", {"pressure": 1e9}, 400),
    ("stability", {"production_steps": 10**12}, 400),
    ("stability", {"production_steps": 10**8, "sample_interval": 1}, 400),
    ("stability", {"temperature": -1}, 400),
    ("stability", {"timestep": 1e6}, 400),
    ("bulk-modulus", {"num_points": 10**9}, 400),
    ("bulk-modulus", {"strain_range": 2.0}, 400),
    ("elasticity", {"num_strains": 10**6}, 400),
    ("elasticity", {"strain": -0.01}, 400),
    ("interaction-energy", {"placement": "grid", "positions": None, "spacing": 1e-9}, 400),
    ("interaction-energy", {"placement": "grid", "positions": None, "spacing": 0.1, "orientations": 1000}, 400),
    ("interaction-energy", {"placement": "random", "positions": None, "count": 100_000, "orientations": 1000}, 400),
    ("interaction-energy", {"guest": "CH5"}, 400),
    ("interaction-energy", {"guest": {"symbols": [], "positions": []}}, 422),
    ("interaction-energy", {"positions": [[float("nan"), 0, 0]]}, 400),
    ("interaction-energy", {"positions": [[0, 0]]}, 400),
    ("batch", {"atoms": [CRYSTAL] * 17}, 400),
    ("batch", {"atoms": []}, 400),
    ("multi-model", {"model_names": ["a"] * 17}, 400),
    ("multi-model", {"task": "alchemy"}, 422),
    ("single-point", {"options": {"timeout_seconds": 59}}, 400),
    ("single-point", {"options": {"callback": {"url": "http://"}}}, 400),
]


@pytest.mark.parametrize(("kind", "changes", "status"), ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_built(kind: str, changes: dict[str, Any], status: int) -> None:
    with pytest.raises(ForcegateError) as caught:
        read(kind, BODIES[kind] | changes)
    assert caught.value.status == status, caught.value


@pytest.mark.parametrize("kind", BODIES)
def test_fields_that_nobody_knows_are_ignored(kind: str) -> None:
    known = read(kind, BODIES[kind])
    assert read(kind, BODIES[kind] | {"colour": "red", "model": 7}).parameters == known.parameters
