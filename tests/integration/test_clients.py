"""The clients against a real service. The truth for argon is ASE's own Lennard-Jones calculator: other code, the same formula."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from forcefields import catalogue
from forcegate import AsyncClient, Client, ForcegateCalculator, errors, evaluate, iterate
from tests.service import RunningService, wait_until

ROUNDING = 1e-12
"""eV, eV/A, eV/A^3: both codes work in double precision on the same formula, so only the order of the sums differs."""


def ase_argon() -> LennardJones:
    # rc is where both shift the pair energy to zero; the forces are cut there, without smoothing.
    return LennardJones(epsilon=0.0103, sigma=3.4, rc=8.5, smooth=False)


def argon(repeat: tuple[int, int, int] = (2, 1, 1), stdev: float = 0.1, seed: int = 0) -> Atoms:
    atoms = bulk("Ar", cubic=True, a=5.3) * repeat
    atoms.rattle(stdev, seed=seed)
    return atoms


@pytest.fixture
def calculator(service: RunningService) -> Iterator[ForcegateCalculator]:
    with ForcegateCalculator("lj-argon", service.grpc) as calc:
        yield calc


def requests_of(service: RunningService, model: str) -> float:
    return service.metric("nv_inference_request_success", model=model)


@pytest.mark.parametrize(
    "atoms",
    [
        argon(),
        bulk("Ar", a=5.3),
        Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]]),
        fcc111("Ar", (2, 2, 3), a=5.3, vacuum=6.0),
        Atoms("Ar", cell=[4.0, 4.2, 5.0], pbc=True),
        Atoms("Ar3", [[0.1, 0, 0], [4, 20, 0], [-13, 1, 3]], cell=[[5, 0, 0], [1, 6, 0], [0, -2, 7]], pbc=True),
    ],
    ids=["crystal", "primitive", "dimer", "slab", "one atom", "unwrapped triclinic"],
)
def test_energy_forces_and_stress_are_those_of_ase(calculator: ForcegateCalculator, atoms: Atoms) -> None:
    reference, served = atoms.copy(), atoms.copy()
    reference.calc, served.calc = ase_argon(), calculator
    assert served.get_potential_energy() == pytest.approx(reference.get_potential_energy(), abs=ROUNDING)
    np.testing.assert_allclose(served.get_forces(), reference.get_forces(), rtol=0, atol=ROUNDING)
    if atoms.pbc.all():
        np.testing.assert_allclose(served.get_stress(), reference.get_stress(), rtol=0, atol=ROUNDING)


def test_forces_and_stress_are_derivatives_of_the_energy(calculator: ForcegateCalculator) -> None:
    atoms = argon()
    atoms.calc = calculator
    # Central differences: the error of the third order is some 1e-8 at these steps; the cut at rc adds its jump only if crossed.
    np.testing.assert_allclose(calculate_numerical_forces(atoms, eps=1e-4), atoms.get_forces(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(calculate_numerical_stress(atoms, eps=1e-5), atoms.get_stress(), rtol=0, atol=1e-6)


def test_an_optimisation_takes_the_path_that_it_takes_in_process(calculator: ForcegateCalculator, service: RunningService) -> None:
    paths = []
    before = requests_of(service, "lj-argon")
    for calc in (ase_argon(), calculator):
        atoms = argon(stdev=0.15)
        atoms.calc = calc
        path: list[np.ndarray] = []
        optimiser = BFGS(atoms, logfile=None)
        optimiser.attach(lambda path=path, atoms=atoms: path.append(atoms.positions.copy()))
        assert optimiser.run(fmax=1e-4, steps=100)
        paths.append(np.array(path))
    assert paths[0].shape == paths[1].shape
    # Rounding grows along a path through BFGS's Hessian; 1e-8 A is far under anything that fmax resolves.
    np.testing.assert_allclose(paths[1], paths[0], rtol=0, atol=1e-8)
    assert requests_of(service, "lj-argon") - before == len(paths[1]), "one call for each geometry, the energy for the log included"


def test_dynamics_follow_the_same_trajectory_and_keep_the_energy(calculator: ForcegateCalculator) -> None:
    ends, drift = [], 0.0
    for calc in (ase_argon(), calculator):
        atoms = argon((2, 2, 1), stdev=0.02)
        atoms.set_momenta(
            np.random.default_rng(1).normal(scale=np.sqrt(atoms.get_masses()[0] * units.kB * 20), size=(len(atoms), 3))
        )
        atoms.calc = calc
        start = atoms.get_total_energy()
        VelocityVerlet(atoms, 2 * units.fs).run(60)
        ends.append(atoms.positions.copy())
        drift = abs(atoms.get_total_energy() - start) / len(atoms)
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-9)
    assert drift < 1e-4, "eV per atom; what the integrator itself leaves at 2 fs"


def test_a_cell_relaxation_ends_without_stress(calculator: ForcegateCalculator) -> None:
    atoms = bulk("Ar", cubic=True, a=5.1)
    atoms.calc = calculator
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=200)
    assert abs(atoms.get_stress()).max() < 1e-5
    # The lattice of this potential: between that of nearest neighbours alone, 2^(1/6) sqrt(2) sigma = 5.397 A, and that of the
    # full lattice sum, 1.5418 sigma = 5.242 A.
    assert 5.20 < atoms.cell.lengths()[0] < 5.40


def test_copies_work_side_by_side_in_threads(calculator: ForcegateCalculator) -> None:
    wrong: list[float] = []

    def work(seed: int) -> None:
        calc = copy.deepcopy(calculator)
        for step in range(10):
            atoms = argon(seed=100 * seed + step)
            expected = ase_argon().get_potential_energy(atoms)
            if abs(calc.get_potential_energy(atoms) - expected) > ROUNDING:
                wrong.append(expected)
        calc.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_structures_of_different_sizes_keep_their_answers(service: RunningService) -> None:
    structures = [argon((1 + seed % 3, 1, 1), seed=seed) for seed in range(120)]
    for result in evaluate(structures, "lj-argon", address=service.grpc):
        assert result.energy == pytest.approx(ase_argon().get_potential_energy(result.atoms), abs=ROUNDING)
        np.testing.assert_allclose(result.to_atoms().get_forces(), ase_argon().get_forces(result.atoms), rtol=0, atol=ROUNDING)


def test_many_structures_share_batches(service: RunningService) -> None:
    structures = [bulk("Cu", a=3.4 + 0.01 * number) * (1 + number % 3, 1, 1) for number in range(60)]
    before = [service.metric(f"nv_inference_{name}", model="sevennet-0") for name in ("count", "exec_count")]
    evaluate(structures, "sevennet-0", address=service.grpc)
    after = [service.metric(f"nv_inference_{name}", model="sevennet-0") for name in ("count", "exec_count")]
    evaluated, batches = (b - a for a, b in zip(before, after, strict=True))
    assert evaluated == len(structures)
    assert evaluated / batches > 4


def test_each_bad_structure_has_its_own_error(service: RunningService) -> None:
    bad = {
        0: (Atoms(), errors.EmptyStructure),
        2: (bulk("Cu"), errors.UnsupportedElement),
        4: (Atoms("Ar2", [[0, 0, 0], [0, 0, 0.01]]), errors.CoincidentAtoms),
        5: (Atoms("Ar", [[np.nan, 0, 0]]), errors.NonFiniteInput),
        7: (Atoms("ArX", [[0, 0, 0], [0, 0, 4]]), errors.InvalidStructure),
        8: (Atoms("Ar", cell=[4, 4, 0], pbc=True), errors.InvalidCell),
        9: (Atoms("Ar", info={"charge": 1}), errors.ChargeNotSupported),
    }
    structures = [bad[index][0] if index in bad else argon(seed=index) for index in range(12)]
    for result in iterate(structures, "lj-argon", address=service.grpc):
        if result.index in bad:
            assert type(result.error) is bad[result.index][1], result.error
            assert result.energy is None
        else:
            assert result.energy == pytest.approx(ase_argon().get_potential_energy(result.atoms), abs=ROUNDING)


def test_a_model_s_error_finds_its_line_in_the_log(service: RunningService, calculator: ForcegateCalculator) -> None:
    with pytest.raises(errors.UnsupportedElement, match="Cu") as caught:
        calculator.get_potential_energy(bulk("Cu"))
    # tritonserver writes the lines of its models' processes from a thread of its own, after the answer at times.
    wait_until(lambda: str(caught.value.request_id) in service.log("triton"), "its line is not in the log")


def test_an_unknown_model_is_refused_with_the_nearest_name(service: RunningService) -> None:
    with pytest.raises(errors.UnknownModel, match="lj-argon"):
        ForcegateCalculator("lj-argo", service.grpc).get_potential_energy(argon())


def test_magnetic_moments_are_an_ase_property(service: RunningService) -> None:
    atoms = bulk("Fe", cubic=True)
    with ForcegateCalculator("chgnet-0.3.0", service.grpc) as atoms.calc:
        moments = atoms.get_magnetic_moments()
        assert "magmoms" in atoms.calc.implemented_properties
    # Ferromagnetic iron has 2.2 mu_B an atom; CHGNet comes within some tenths of it.
    assert moments == pytest.approx([2.2, 2.2], abs=0.5)


def test_heads_differ_and_say_which_functional_they_are(service: RunningService) -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    energies, functionals = [], []
    for head in ("PBE", "R2SCAN"):
        with ForcegateCalculator("sevennet-mf-0", service.grpc, head=head) as calc:
            energies.append(calc.get_potential_energy(atoms))
            functionals.append(calc.provenance["functional"])
    assert abs(energies[0] - energies[1]) > 0.1
    assert len(set(functionals)) == 2
    with pytest.raises(errors.UnknownHead, match="PBE"):
        evaluate([atoms], "sevennet-mf-0", head="LDA", address=service.grpc)


def test_provenance_is_that_of_the_catalogue_and_of_the_rest_answer(service: RunningService) -> None:
    variant = catalogue.load().resolve("sevennet-0")
    with ForcegateCalculator("sevennet-0", service.grpc) as calc, Client(service.url) as client:
        provenance = calc.provenance
        answer = client.single_point(bulk("Cu"), "sevennet-0")
    assert provenance["checkpoint_sha256"] == variant.checkpoint.sha256
    arithmetic = answer["provenance"].pop("arithmetic")  # by the model's report, which clients of gRPC do not see
    assert arithmetic == {"summary": "full float32", "matmul_precision": "highest", "cuequivariance": False, "compile": False}
    assert {key: value or "" for key, value in answer["provenance"].items()} == provenance


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_rest_gives_the_numbers_of_grpc(service: RunningService, encoding: str) -> None:
    slab = fcc111("Cu", (1, 1, 3), vacuum=8.0)
    structures = [bulk("Cu", cubic=True), molecule("H2O"), slab]
    direct = evaluate(structures, "sevennet-0", address=service.grpc)
    with Client(service.url, encoding=encoding) as client:  # type: ignore[arg-type]
        answers = client.batch(structures, "sevennet-0")
        single = client.single_point(structures[0], "sevennet-0")
    assert single["energy"] == pytest.approx(answers[0]["energy"], abs=1e-5)
    for answer, result in zip(answers, direct, strict=True):
        # Float32 models: another batch adds up in another order, 1e-5 eV per atom and 1e-4 eV/A at most.
        assert answer["energy"] == pytest.approx(result.energy, abs=1e-5 * len(result.atoms))
        np.testing.assert_allclose(answer["forces"], result.forces, rtol=0, atol=1e-4)
        if result.stress is None:
            assert answer["stress"] is None
        else:
            np.testing.assert_allclose(answer["stress"], result.stress, rtol=0, atol=1e-5)


def test_rest_errors_are_typed_and_name_their_request(service: RunningService) -> None:
    with Client(service.url) as client:
        with pytest.raises(errors.UnknownModel) as caught:
            client.single_point(bulk("Cu"), "sevennet-9")
        assert caught.value.request_id
        results = client.batch([bulk("Ar", a=5.3), bulk("Cu")], "lj-argon")
    assert results[0]["energy"] < 0
    assert results[1]["error"]["code"] == "unsupported_element"


def test_asynchronous_rest(service: RunningService) -> None:
    async def work() -> tuple[list[dict[str, float]], dict[str, list[object]]]:
        async with AsyncClient(service.url) as client:
            points = await asyncio.gather(*(client.single_point(argon(seed=seed), "lj-argon") for seed in range(10)))
            return points, await client.multi_model(bulk("Cu"), ["sevennet-0", "chgnet-0.3.0"])

    points, both = asyncio.run(work())
    for seed, point in enumerate(points):
        assert point["energy"] == pytest.approx(ase_argon().get_potential_energy(argon(seed=seed)), abs=ROUNDING)
    assert [outcome["status"] for outcome in both["results"]] == ["success", "success"]  # type: ignore[index]
