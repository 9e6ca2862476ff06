"""Relaxations of many structures against ASE's optimizers, which move each of them alone with the same potential."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from forcegate import errors
from forcegate.relaxation import Relaxation, Store, iterate_relaxations, relax_many, with_calculator
from forcegate.relaxation.relaxation import EV_PER_A3_IN_GPA

ASE = {"fire": FIRE, "lbfgs": LBFGS, "bfgs": BFGS}
FILTERS = {"frechet": FrechetCellFilter, "unit": UnitCellFilter}
PRESSURE = 0.1  # GPa

PATH = 1e-9
"""A, for each position and cell vector after each step: rounding, which a hundred steps let grow to some 1e-11. The next term that
could differ, such as another longest step or another first Hessian, shows at 1e-3."""


def argon() -> LennardJones:
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=7.0, smooth=True)


def crystal(seed: int, fixed: bool = False) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True)
    atoms.rattle(0.15, seed=seed)
    strain = 0.03 * np.random.default_rng(seed).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    if fixed:
        atoms.set_constraint(FixAtoms([0, 3]))
    return atoms


def cluster(seed: int) -> Atoms:
    atoms = Atoms("Ar5", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8], [3.5, 3.5, 3.5]])
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("cell", ["frechet", "unit", "fixed"])
@pytest.mark.parametrize("optimizer", ["fire", "lbfgs", "bfgs"])
def test_each_step_is_that_of_ase(optimizer: str, cell: str, fixed: bool) -> None:
    pressure = 0.0 if cell == "fixed" else PRESSURE
    path: list[tuple[np.ndarray, np.ndarray]] = []
    options = {"optimizer": optimizer, "cell": cell, "pressure": pressure, "fmax": 1e-3}
    (result,) = relax_many(
        [crystal(1, fixed)],
        with_calculator(argon()),
        on_step=lambda relaxation: path.append((relaxation.atoms.positions.copy(), np.array(relaxation.atoms.cell))),
        **options,
    )

    alone = crystal(1, fixed)
    alone.calc = argon()
    expected: list[tuple[np.ndarray, np.ndarray]] = []
    moved = alone if cell == "fixed" else FILTERS[cell](alone, scalar_pressure=pressure / EV_PER_A3_IN_GPA)
    with ASE[optimizer](moved, logfile=None) as reference:
        reference.attach(lambda: expected.append((alone.positions.copy(), np.array(alone.cell))))
        assert reference.run(fmax=1e-3, steps=500) == result.converged

    assert result.steps == reference.nsteps > 10
    assert len(path) == len(expected)
    for (positions, vectors), (positions_of_ase, vectors_of_ase) in zip(path[:-1], expected[1:], strict=True):
        assert positions == pytest.approx(positions_of_ase, abs=PATH)
        assert vectors == pytest.approx(vectors_of_ase, abs=PATH)
    assert result.energy == pytest.approx(alone.get_potential_energy(), abs=1e-9)
    if fixed and cell == "fixed":
        assert np.array_equal(result.atoms.positions[[0, 3]], crystal(1).positions[[0, 3]])


def test_company_changes_nothing_and_a_bad_structure_fails_alone() -> None:
    structures = [crystal(1), cluster(2), Atoms("ArX", [[0, 0, 0], [0, 0, 4]]), crystal(3) * (2, 1, 1), cluster(4)]
    together = relax_many(structures, with_calculator(argon()), raise_errors=False, in_flight=3)
    assert [result.index for result in together] == list(range(5))
    assert isinstance(together[2].error, errors.InvalidStructure)
    assert [result.cell_filter for result in together] == ["frechet", "fixed", "fixed", "frechet", "fixed"]
    for index in (0, 1, 3, 4):
        (alone,) = relax_many([structures[index]], with_calculator(argon()))
        assert together[index].converged
        assert together[index].steps == alone.steps
        assert np.array_equal(together[index].atoms.positions, alone.atoms.positions)


def test_max_steps_reached_is_not_converged() -> None:
    (result,) = relax_many([crystal(1)], with_calculator(argon()), max_steps=3, fmax=1e-3)
    assert (result.converged, result.steps, result.error) == (False, 3, None)
    assert result.fmax is not None
    assert result.fmax > 1e-3


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs", "bfgs"])
def test_a_run_goes_on_from_its_file_along_the_same_path(tmp_path: Path, optimizer: str) -> None:
    structures = [crystal(seed) for seed in range(4)]
    options = {"optimizer": optimizer, "fmax": 1e-3, "in_flight": 2}
    whole = relax_many(structures, with_calculator(argon()), **options)

    class Stopped(Exception):
        pass

    seen: list[int] = []

    def stop(relaxation: Relaxation) -> None:
        seen.append(relaxation.index)
        if relaxation.index == 2 and relaxation.steps == 9:
            raise Stopped

    first = Store(tmp_path / "state", seconds=0.0)
    with pytest.raises(Stopped):
        relax_many(structures, with_calculator(argon()), on_step=stop, store=first, **options)
    assert first._database is not None
    first._database.close()  # without a last commit, as a killed process leaves it

    again: list[int] = []
    second = Store(tmp_path / "state")
    resumed = relax_many(
        structures, with_calculator(argon()), on_step=lambda relaxation: again.append(relaxation.index), store=second, **options
    )
    second.remove()
    assert not (tmp_path / "state").exists()
    assert set(again) >= {2, 3}
    assert len(seen) + len(again) <= sum(result.steps + 1 for result in whole) + 4  # nothing but a step on the way is repeated
    for result, expected in zip(resumed, whole, strict=True):
        assert result.steps == expected.steps
        assert np.array_equal(result.atoms.positions, expected.atoms.positions)
        assert np.array_equal(np.array(result.atoms.cell), np.array(expected.atoms.cell))


def test_the_file_of_another_run_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    next(iterate_relaxations([crystal(1), crystal(2)], with_calculator(argon()), store=store))
    store.close()
    for structures, options in (([crystal(1)], {"fmax": 0.01}), ([crystal(5)], {})):
        other = Store(tmp_path / "state")
        with pytest.raises(errors.InvalidRequest, match=r"another run|is not the one"):
            relax_many(structures, with_calculator(argon()), store=other, **options)
        other.close()


def test_a_pressure_on_what_has_no_cell_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="fixed cell"):
        relax_many([crystal(1)], with_calculator(argon()), cell="fixed", pressure=1.0)
    (result,) = relax_many([cluster(1)], with_calculator(argon()), pressure=1.0, raise_errors=False)
    assert isinstance(result.error, errors.InvalidStructure)
