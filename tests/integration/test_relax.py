"""``forcegate relax`` as users run it: against ASE's optimizer structure by structure, with a bad structure, and killed midway."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE
from ase.units import GPa

from forcegate import ForcegateCalculator
from forcegate.relaxation import relax_many
from tests.service import ROOT, RunningService

PER_ATOM = 1e-6
"""eV/atom. The paths are the same to rounding, and near a minimum the energy is flat; another minimum is 1e-3 away."""


def crystal(seed: int) -> Atoms:
    """Argon, displaced by 0.15 A along each axis and strained by 2 %."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True)
    atoms.rattle(0.15, seed=seed)
    strain = 0.02 * np.random.default_rng(seed).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def cluster() -> Atoms:
    atoms = Atoms("Ar5", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [0, 0, 3.8], [3.5, 3.5, 3.5]])
    atoms.rattle(0.1, seed=2)
    return atoms


def command(service: RunningService, *arguments: str | Path) -> subprocess.Popen[str]:
    variables = os.environ | {"FORCEGATE_GRPC": service.grpc, "COLUMNS": "200", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "forcegate.cli", "relax", *map(str, arguments), "-m", "lj-argon"]
    return subprocess.Popen(whole, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_minima_and_paths_are_those_of_ase_one_by_one(service: RunningService, tmp_path: Path) -> None:
    pressure = 0.05  # GPa: enough to move the volume by some 2 %
    structures = [crystal(seed) for seed in range(3)]
    write(tmp_path / "cells.traj", structures)
    out = tmp_path / "relaxed.extxyz"
    code, table, err = finished(
        command(service, tmp_path / "cells.traj", "--fmax", "0.005", "--pressure", str(pressure), "--in-flight", "2", "-o", out)
    )
    assert code == 0, err
    assert table.count(" converged ") == 3
    images = read(out, ":")
    assert not list(tmp_path.glob("relaxed.extxyz.*")), "neither state nor a part of the file is left"
    with ForcegateCalculator("lj-argon", service.grpc) as calculator:
        for start, image in zip(structures, images, strict=True):
            start.calc = calculator
            with FIRE(FrechetCellFilter(start, scalar_pressure=pressure * GPa), logfile=None) as alone:
                assert alone.run(fmax=0.005, steps=500)
            assert image.info["converged"]
            assert image.info["steps"] == alone.nsteps > 10
            assert image.get_potential_energy() == pytest.approx(start.get_potential_energy(), abs=PER_ATOM * len(start))
            assert image.get_volume() == pytest.approx(start.get_volume(), rel=1e-5)  # the file has 8 digits
            assert image.info["checkpoint_sha256"] == calculator.provenance["checkpoint_sha256"]


def test_a_cluster_keeps_its_cell_and_an_unknown_element_fails_alone(service: RunningService, tmp_path: Path) -> None:
    write(tmp_path / "a.traj", [crystal(1), bulk("Cu", cubic=True), cluster()])
    out = tmp_path / "out.extxyz"
    code, table, err = finished(command(service, tmp_path / "a.traj", "--fmax", "0.002", "--optimizer", "lbfgs", "-o", out))
    assert code == 1
    assert "1 of 3 relaxations and 0 of 1 files failed." in err
    assert "a.traj image 1 (Cu4)" in err
    assert "unsupported_element" in table
    cell, atom_cluster = read(out, ":")
    assert (cell.info["image"], atom_cluster.info["image"]) == (0, 2)
    assert (cell.info["cell_filter"], atom_cluster.info["cell_filter"]) == ("frechet", "fixed")
    assert np.linalg.norm(atom_cluster.get_forces(), axis=1).max() < 0.002
    assert not (tmp_path / "out.extxyz.state").exists(), "the same element would be refused again"


def test_a_killed_run_goes_on_and_repeats_nothing_that_was_finished(service: RunningService, tmp_path: Path) -> None:
    structures = [crystal(seed) for seed in range(70)]
    write(tmp_path / "many.traj", structures)
    out, state = tmp_path / "many.extxyz", tmp_path / "many.extxyz.state"
    # Two at once, so that the run outlasts the first writing of the state, 3 s after its start, by far.
    arguments = (tmp_path / "many.traj", "--fmax", "0.001", "--in-flight", "2", "-o", out)

    first = command(service, *arguments)
    while not _finished_in(state, locked=True):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert not out.exists()
    done = _finished_in(state)
    under_way = _steps_under_way(state)
    assert 0 < len(done) < len(structures) - 2
    assert under_way

    before = service.metric("nv_inference_count", model="lj-argon")
    code, _, err = finished(command(service, *arguments))
    assert code == 0, err
    evaluations = service.metric("nv_inference_count", model="lj-argon") - before
    images = read(out, ":")
    assert not state.exists()
    assert len(images) == len(structures)
    steps = [image.info["steps"] for image in images]
    expected = sum(taken + 1 - under_way.get(k, 0) for k, taken in enumerate(steps) if k not in done)
    assert evaluations == expected, "one evaluation for each step that was missing"

    picked = sorted({*under_way, *list(done)[:4], len(structures) - 1})
    whole = relax_many([structures[k] for k in picked], "lj-argon", address=service.grpc, fmax=0.001)
    for k, result in zip(picked, whole, strict=True):
        assert result.energy is not None
        assert images[k].info["steps"] == result.steps
        assert images[k].get_potential_energy() == pytest.approx(result.energy, abs=PER_ATOM * len(structures[k]))


def _finished_in(state: Path, locked: bool = False) -> set[int]:
    """What is finished according to the file; with ``locked`` while another process writes it, when a look may fail."""
    if not state.exists():
        return set()
    try:
        rows = _rows(state, "SELECT number FROM structures WHERE outcome IS NOT NULL", "?immutable=1" if locked else "")
    except sqlite3.DatabaseError:
        if locked:
            return set()
        raise
    return {number for (number,) in rows}


def _steps_under_way(state: Path) -> dict[int, int]:
    rows = _rows(state, "SELECT number, arrays FROM structures WHERE outcome IS NULL")
    return {number: int(np.load(io.BytesIO(arrays))["progress"][0]) for number, arrays in rows}


def _rows(state: Path, query: str, options: str = "") -> Sequence[tuple]:
    database = sqlite3.connect(f"file:{state}{options}", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()
