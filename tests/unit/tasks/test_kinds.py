"""Kinds of tasks, carried out in this process: each gives the calculation's own answer, goes on where it was, and fails alone."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read

from forcegate import errors
from forcegate.calculations.forces import OneByOne
from forcegate.calculations.optimization import OptimizationParameters, optimization
from forcegate.structure import from_atoms, to_mapping
from frontend.requests import Limits
from frontend.tasks.kinds import KINDS
from frontend.tasks.submission import Submission
from frontend.tasks.submission import read as read_body
from tests.unit.calculations.potentials import lattice_minimum, lennard_jones
from tests.unit.tasks.in_process import InProcess, Killed

LIMITS = Limits(max_batch=64, max_atoms=5000)
A0 = lattice_minimum()[0]
"""A, by the lattice sum."""


def argon(seed: int = 1, rattled: float = 0.1, a: float = 5.3) -> Atoms:
    atoms = bulk("Ar", "fcc", a=a, cubic=True)
    atoms.rattle(rattled, seed=seed)
    return atoms


def body(atoms: Any, **parameters: Any) -> dict[str, Any]:
    listed = [to_mapping(from_atoms(each)) for each in atoms] if isinstance(atoms, list) else to_mapping(from_atoms(atoms))
    return {"model_name": "lj-argon", "atoms": listed, **parameters}


def resolved(submission: Submission) -> dict[str, Any]:
    """What the gateway's checks add; tests/api/test_tasks.py has the real ones."""
    if submission.kind != "multi-model":
        return submission.parameters | {"model": submission.models[0], "head": None, "dispersion": submission.dispersion}
    models = [{"name": name, "model": name, "head": None, "dispersion": "none", "error": None} for name in submission.models]
    return submission.parameters | {"models": models, "outside": {}, "elements_outside": {}}


def run(kind: str, data: dict[str, Any], context: InProcess) -> dict[str, Any]:
    return KINDS[kind].run(resolved(read_body(kind, data, LIMITS)), context)


@pytest.fixture
def context(tmp_path: Path) -> InProcess:
    return InProcess(tmp_path / "task")


def test_a_relaxation_answers_as_the_function_does_and_leaves_its_path(context: InProcess) -> None:
    result = run("optimization", body(argon(), fmax=0.005), context)
    alone = optimization(OneByOne(lennard_jones()), argon(), OptimizationParameters(fmax=0.005)).as_dict()
    assert {name: result[name] for name in alone} == alone
    assert result["converged"] is True
    assert result["final_atoms"] == result["optimized_atoms"]
    frames = read(context.folder / "trajectory.extxyz", index=":")
    assert [frame.info["frame"] for frame in frames] == list(range(result["steps"] + 1))
    # Eight decimals are what an extxyz file holds of an energy.
    assert frames[-1].get_potential_energy() == pytest.approx(result["final_energy"], abs=1e-7)
    assert len(context.steps) == result["steps"] + 1


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("optimization", {"fmax": 0.001, "optimizer": "LBFGS"}),
        ("stability", {"equilibration_steps": 20, "production_steps": 40, "sample_interval": 5, "seed": 3, "pressure": 1.0}),
    ],
)
def test_a_task_whose_worker_died_ends_as_if_nothing_had_happened(kind: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    data = body(argon(), **parameters)
    undisturbed = InProcess(tmp_path / "undisturbed")
    expected = run(kind, data, undisturbed)
    for die_at in (0, 5, 23):  # before the first state, soon, and in the production
        disturbed = InProcess(tmp_path / "disturbed", die_at=die_at)
        with suppress(Killed):
            run(kind, copy.deepcopy(data), disturbed)
    disturbed = InProcess(tmp_path / "disturbed")
    result = run(kind, data, disturbed)
    assert len(disturbed.steps) < len(undisturbed.steps)  # it did not begin anew
    assert result.keys() == expected.keys()
    for name in ("final_energy", "rmsd", "mean_energy", "mean_pressure"):
        # The same floating-point operations in the same order.
        if name in expected:
            assert result[name] == pytest.approx(expected[name], rel=1e-9)
    # No frame twice and none missing, though the last steps before each death were made again.
    numbers = [frame.info["frame"] for frame in read(disturbed.folder / "trajectory.extxyz", index=":")]
    assert numbers == [frame.info["frame"] for frame in read(undisturbed.folder / "trajectory.extxyz", index=":")]
    assert len(numbers) == len(set(numbers))


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bulk-modulus": ({"relax_cell": True, "num_points": 5, "fmax": 1e-3}, {"rattled": 0.05}),
    "elasticity": ({"relax_cell": True, "num_strains": 1}, {"rattled": 0.05}),
    "heat-capacity": ({"supercell": [1, 1, 1], "temperatures": [50], "mesh_length": 10}, {"rattled": 0.02}),
    "interaction-energy": (
        {
            "guest": {"symbols": ["Ar"], "positions": [[0, 0, 0]]},
            "placement": "random",
            "count": 40,
            "min_distance": 2.5,
            "relax": True,
            "relax_host": True,
            "fmax": 0.005,
        },
        {"rattled": 0.05, "a": 7.0},
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_task_of_many_parts_goes_on_with_those_that_are_left(kind: str, tmp_path: Path) -> None:
    parameters, made = PARTS[kind]
    data = body(argon(**made), **parameters)
    undisturbed = InProcess(tmp_path / "undisturbed", every=1)
    expected = run(kind, data, undisturbed)
    whole = undisturbed.evaluations
    made_in_all, attempts, result = 0, 0, None
    while result is None:
        # Each attempt dies after a fifth of the work.
        attempt = InProcess(tmp_path / "disturbed", every=1, die_after=max(4, whole // 5))
        with suppress(Killed):
            result = run(kind, copy.deepcopy(data), attempt)
        made_in_all += attempt.evaluations
        attempts += 1
        assert attempts < 30, "it does not come on"
    assert attempts >= 4
    # Every step's state is kept here, so that nothing is made again but the first evaluation of a part under way.
    assert made_in_all <= 1.2 * whole, (made_in_all, whole, attempts)
    assert result.keys() == expected.keys()
    for name in ("bulk_modulus", "bulk_modulus_vrh", "max_frequency", "interaction_energy"):
        if name in expected:
            assert result[name] == pytest.approx(expected[name], rel=1e-6)  # a relaxation that lost its Hessian ends beside it


def test_the_cell_of_an_equation_of_state_is_taken_as_it_is_given(context: InProcess) -> None:
    # 1 % of volume under pressure: relax_cell would take the middle volume to that of the minimum.
    atoms = bulk("Ar", "fcc", a=0.997 * A0)
    result = run("bulk-modulus", body(atoms, strain_range=0.06), context)
    assert result["volumes"][3] == pytest.approx(atoms.get_volume())
    assert result["equilibrium_volume"] == pytest.approx(A0**3 / 4, rel=1e-3)  # of the fit: third order over 12 % of volume
    assert result["r_squared"] == result["fitting_r2"] > 0.9999
    assert (context.folder / "bulk-modulus.png").read_bytes().startswith(b"\x89PNG")


def test_a_fit_that_fails_is_an_error_with_its_points(context: InProcess) -> None:
    with pytest.raises(errors.FitFailed) as caught:
        run("bulk-modulus", body(bulk("Ar", "fcc", a=1.1 * A0)), context)
    points = caught.value.as_dict()["points"]
    assert isinstance(points, dict)
    assert len(points["volumes"]) == 7


def test_phonons_warn_of_a_small_supercell_and_choose_a_large_one(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=A0)
    small = run("heat-capacity", body(atoms, temperatures=[50], mesh_length=30), InProcess(tmp_path / "small"))
    assert small["supercell"] == [2, 2, 2]
    assert any("supercell" in warning for warning in small["warnings"])
    large = run("heat-capacity", body(atoms, temperatures=[50], supercell=None, mesh_length=30), InProcess(tmp_path / "large"))
    assert not large["warnings"]
    assert min(large["supercell"]) > 2
    assert (tmp_path / "large" / "heat-capacity.png").read_bytes().startswith(b"\x89PNG")
    assert len(large["dos"]) == len(large["dos_frequencies"]) > 10
    assert {"distances", "frequencies", "qpoints", "labels"} == set(large["bands"])
    # A crystal of one kind of atom tends to 3 R; argon at 50 K has nine tenths of that.
    assert 0.8 * 24.94 < large["heat_capacities"][0] < 24.94


def test_elasticity_qmof_single_point_and_guest(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=A0)
    elastic = run("elasticity", body(atoms, relax_ions=False), InProcess(tmp_path / "elastic"))
    point = run("single-point", body(argon()), InProcess(tmp_path / "point"))
    against = run("qmof-energy", body(argon(), reference_energy=point["energy"] - 0.4), InProcess(tmp_path / "qmof"))
    moduli = [elastic["bulk_modulus_voigt"], run("bulk-modulus", body(atoms), InProcess(tmp_path / "eos"))["bulk_modulus"]]
    assert moduli[0] == pytest.approx(moduli[1], rel=0.02)  # stress and energy of one potential; the fit's third order
    assert against["error_per_atom"] == pytest.approx(0.1)
    assert point["max_force"] == pytest.approx(np.linalg.norm(point["forces"], axis=1).max())
    guest = {"symbols": ["Ar"], "positions": [[0, 0, 0]]}
    host = Atoms("Ar", positions=[[0, 0, 0]], cell=[30, 30, 30], pbc=True)
    asked = body(host, guest=guest, placement="given", positions=[[3.8, 0, 0]])
    site = run("interaction-energy", asked, InProcess(tmp_path / "guest"))
    x = (3.4 / 3.8) ** 6
    shift = 4 * 0.0103 * ((3.4 / 8.5) ** 12 - (3.4 / 8.5) ** 6)
    assert site["interaction_energy"] == pytest.approx(4 * 0.0103 * (x * x - x) - shift, abs=1e-9)


def test_a_single_point_has_every_further_output_in_one_evaluation(context: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    calculator = lennard_jones()
    calculator.implemented_properties = [*calculator.implemented_properties, "magmoms", "energies"]
    calculate = calculator.calculate

    def with_more(*arguments: Any, **options: Any) -> None:
        calculate(*arguments, **options)
        calculator.results |= {"magmoms": np.arange(4.0), "energies": np.full(4, calculator.results["energy"] / 4)}

    calculator.calculate = with_more
    monkeypatch.setattr(context, "forces", lambda *_: OneByOne(calculator))
    point = run("single-point", body(argon(), compute_stress=False), context)
    assert point["magmoms"] == [0.0, 1.0, 2.0, 3.0]
    assert sum(point["energies"]) == pytest.approx(point["energy"])
    assert point["stress"] is None
    assert calculator.calls == 1


def test_an_energy_that_differs_from_its_reference_is_no_failure(context: InProcess) -> None:
    asked = body([argon(), argon(2)], task="qmof_energy", task_params={"reference_energy": -0.3})
    result = run("batch", asked, context)
    assert (result["succeeded"], result["failed"]) == (2, 0)
    assert [each["error"] for each in result["results"]] == [each["energy"] + 0.3 for each in result["results"]]


def test_a_batch_of_relaxations_moves_in_step_and_a_bad_structure_fails_alone(context: InProcess) -> None:
    bad = {"symbols": ["Ar"], "positions": [["here", 0, 0]]}
    data = body([argon(seed) for seed in range(4)], task="optimization", task_params={"fmax": 0.01})
    data["atoms"].insert(2, bad)
    result = run("batch", data, context)
    assert (result["count"], result["succeeded"], result["failed"]) == (5, 4, 1)
    assert result["results"][2]["error"]["code"] == "invalid_structure"
    for index in (0, 1, 3, 4):
        relaxed = result["results"][index]
        assert relaxed["index"] == index
        assert relaxed["converged"]
        assert relaxed["final_forces_max"] <= 0.01
        # Four atoms at the minimum of the potential: -0.08 eV each; 0.01 eV/A is within a micro-eV of it in a crystal so soft.
        assert relaxed["final_energy"] == pytest.approx(result["results"][0]["final_energy"], abs=1e-3)
    assert {step.part for step in context.steps} == {0, 1, 3, 4}


def test_a_batch_goes_on_with_what_was_under_way_and_repeats_nothing(tmp_path: Path) -> None:
    data = body([argon(seed) for seed in range(3)], task="optimization", task_params={"fmax": 0.001})
    whole = InProcess(tmp_path / "whole")
    expected = run("batch", data, whole)
    first = InProcess(tmp_path / "task", die_at=20)
    with pytest.raises(Killed):
        run("batch", data, first)
    second = InProcess(tmp_path / "task", results=first.results)
    result = run("batch", data, second)
    assert len(second.steps) < len(whole.steps)
    for one, other in zip(result["results"], expected["results"], strict=True):
        assert one["final_energy"] == pytest.approx(other["final_energy"], rel=1e-9)
        assert [step["step"] for step in one["trajectory"]] == list(range(one["steps"] + 1))


def test_other_calculations_in_a_batch(context: InProcess) -> None:
    atoms = [bulk("Ar", "fcc", a=A0), bulk("Ar", "fcc", a=1.1 * A0)]
    result = run("batch", body(atoms, task="bulk_modulus", task_params={"relax_ions": False}), context)
    assert result["results"][0]["bulk_modulus"] > 0
    assert result["results"][1]["error"]["code"] == "fit_failed"
    assert result["results"][1]["error"]["points"]
    assert set(context.results) == {"structure-0", "structure-1"}


def test_one_model_that_fails_leaves_the_comparison_of_the_others(tmp_path: Path) -> None:
    context = InProcess(tmp_path / "task", missing=("broken",))
    atoms = bulk("Ar", "fcc", a=A0)
    data = {"model_names": ["lj-argon", "broken", "stiffer"], "task": "bulk_modulus", "atoms": body(atoms)["atoms"]}
    result = run("multi-model", data, context)
    assert [entry["status"] for entry in result["results"]] == ["success", "error", "success"]
    assert result["results"][1]["error"]["code"] == "gate_failed"
    values = result["comparison"]["quantities"]["bulk_modulus"]["values"]
    assert values["stiffer"] == pytest.approx(1.1 * values["lj-argon"])  # pressures scale with the depth of the well
    assert "equilibrium_energy" not in result["comparison"]["quantities"]  # each model has a zero of its own


def test_single_points_are_compared_as_they_are_at_once(context: InProcess) -> None:
    data = {"model_names": ["lj-argon", "stiffer"], "task": "single_point", "atoms": body(argon())["atoms"]}
    comparison = run("multi-model", data, context)["comparison"]
    assert comparison["forces"]["pairs"][0]["cosine"] == pytest.approx(1.0)
    atomization = comparison["energy"]["atomization_energy_per_atom"]
    assert atomization["stiffer"] == pytest.approx(1.1 * atomization["lj-argon"])


def test_dispersion_is_asked_for_wherever_forces_are(tmp_path: Path) -> None:
    """Left out of the relaxation in silence it would be in no number at all."""
    wanted: dict[str, dict[str, Any]] = {
        "optimization": {},
        "bulk-modulus": {"relax_cell": True},
        "elasticity": {"relax_cell": True, "relax_ions": False, "num_strains": 1},
        "single-point": {},
        "stability": {"equilibration_steps": 1, "production_steps": 1},
    }
    for kind, parameters in wanted.items():
        context = InProcess(tmp_path / kind)
        run(kind, body(bulk("Ar", "fcc", a=A0), use_d3=True, **parameters), context)
        assert set(context.asked) == {("lj-argon", None, "d3bj")}, kind
    several = InProcess(tmp_path / "batch")
    run("batch", body([argon()], task="optimization", task_params={"dispersion": "d3bj"}), several)
    assert set(several.asked) == {("lj-argon", None, "d3bj")}


@pytest.mark.parametrize(
    ("kind", "changes", "error"),
    [
        ("optimization", {"fmax": -1}, errors.InvalidRequest),
        ("optimization", {"fmax": True}, errors.InvalidRequest),
        ("optimization", {"max_steps": 2.5}, errors.InvalidRequest),
        ("optimization", {"optimizer": "bfgs2"}, errors.InvalidRequest),
        ("optimization", {"fix_cell": True, "pressure": 1}, errors.InvalidRequest),
        ("optimization", {"use_d3": True, "dispersion": "none"}, errors.InvalidRequest),
        ("optimization", {"options": {"priority": "URGENT"}}, errors.InvalidRequest),
        ("optimization", {"options": {"timeout_seconds": 59}}, errors.InvalidRequest),
        ("optimization", {"options": {"callback": {"url": "ftp://example.org"}}}, errors.InvalidRequest),
        ("stability", {"ensemble": "nve", "pressure": 1}, errors.InvalidRequest),
        ("stability", {"production_steps": 10**8, "sample_interval": 1}, errors.InvalidRequest),
        ("bulk-modulus", {"num_points": 4}, errors.InvalidRequest),
        ("heat-capacity", {"supercell": [2, 2]}, errors.InvalidRequest),
        ("heat-capacity", {"supercell": [50, 50, 50]}, errors.StructureTooLarge),
        ("heat-capacity", {"mesh_length": 1000}, errors.InvalidRequest),
        ("interaction-energy", {"guest": "Xe2"}, errors.InvalidRequest),
        ("interaction-energy", {"guest": {"symbols": ["Qq"], "positions": [[0, 0, 0]]}}, errors.InvalidStructure),
        ("interaction-energy", {"spacing": 0.1, "orientations": 1000}, errors.InvalidRequest),
        ("interaction-energy", {"placement": "given", "positions": []}, errors.InvalidRequest),
        ("multi-model", {"task": "dance"}, errors.UnsupportedTask),
        ("batch", {"task": 3}, errors.InvalidRequest),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_queue(kind: str, changes: dict[str, Any], error: type[Exception]) -> None:
    data = body(argon()) | {"model_names": ["lj-argon"]} | changes
    with pytest.raises(error):
        read_body(kind, data, LIMITS)


def test_what_needs_a_crystal_refuses_a_molecule() -> None:
    pair = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.8]])
    for kind in ("bulk-modulus", "heat-capacity", "elasticity"):
        with pytest.raises(errors.InvalidRequest, match="periodic"):
            read_body(kind, body(pair), LIMITS)
    with pytest.raises(errors.InvalidRequest, match="periodic"):
        read_body("stability", body(pair, pressure=0), LIMITS)
    assert read_body("optimization", body(pair), LIMITS).parameters["parameters"]["cell_filter"] is None


def test_every_form_of_a_structure_is_queued_as_one() -> None:
    text = {"format": "extxyz", "text": '1\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3 pbc="T T T"\nAr 0 0 0\n'}
    lists = {"numbers": [18], "positions": [[0, 0, 0]], "cell": [5, 5, 5]}
    forms = [read_body("optimization", {"model_name": "m", "atoms": form}, LIMITS).parameters["atoms"] for form in (text, lists)]
    assert (
        forms[0]
        == forms[1]
        == {"symbols": ["Ar"], "positions": [[0.0, 0.0, 0.0]], "cell": np.diag([5.0] * 3).tolist(), "pbc": [True] * 3}
    )
