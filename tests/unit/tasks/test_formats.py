"""Trajectories in other formats: what ASE would write of all frames, from one frame in memory at a time."""

from __future__ import annotations

import io
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from forcegate.calculations.progress import Step
from forcegate.errors import InvalidRequest
from frontend.tasks.formats import FORMATS, converted
from frontend.tasks.kinds.trajectory import Trajectory
from tests.unit.calculations.potentials import fcc, lennard_jones

NAMES = {"xyz": "xyz", "pdb": "proteindatabank", "xsf": "xsf", "xdatcar": "vasp-xdatcar"}
"""What ASE calls them."""


def trajectory(path: Path, frames: int, repeat: int = 1) -> Path:
    atoms = fcc(5.3, repeat=repeat)
    atoms.calc = lennard_jones()
    atoms.get_forces()
    generator = np.random.default_rng(1)
    with Trajectory(path) as kept:
        for number in range(frames):
            frame = atoms.copy()
            frame.positions += generator.normal(0, 0.1, frame.positions.shape)
            frame.set_cell(frame.cell * (1 + 1e-3 * number))
            # Forces of one evaluation, whatever the positions: nothing but their columns matters here.
            frame.calc = SinglePointCalculator(frame, **atoms.calc.results)
            kept.add(number, Step("production", number, energy=-1.0, atoms=frame))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_what_ase_writes_of_the_whole(tmp_path: Path, name: str) -> None:
    path = trajectory(tmp_path / "trajectory.extxyz", 7)
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"4\nLattice=")  # a frame that is being written
    text = io.StringIO()
    write(text, read(io.StringIO(path.read_text()[:whole]), ":", format="extxyz"), format=NAMES[name])
    assert b"".join(converted(path, path.stat().st_size, name)).decode() == text.getvalue()
    assert set(FORMATS) == {*NAMES, "extxyz"}


def test_a_long_trajectory_is_converted_in_the_memory_of_a_frame(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "trajectory.extxyz", 90, repeat=3)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        sent = sum(map(len, converted(path, size, "xyz")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sent > 7e5
    assert peak < 1.2e6  # a frame of 108 atoms, its lines and columns; a text of all frames alone takes 3 MB in Python's memory


def test_a_reader_who_leaves_ends_the_conversion(tmp_path: Path) -> None:
    path = trajectory(tmp_path / "trajectory.extxyz", 40, repeat=3)
    pieces = converted(path, path.stat().st_size, "xyz")
    next(pieces)
    working = [thread for thread in threading.enumerate() if thread.name == "conversion"]
    assert working
    pieces.close()  # type: ignore[attr-defined]
    for thread in working:
        thread.join(10)
        assert not thread.is_alive()


def test_structures_that_a_format_cannot_hold_are_an_error_before_the_answer_begins(tmp_path: Path) -> None:
    path = tmp_path / "slab.extxyz"
    write(path, Atoms("Ar", cell=[5, 5, 5], pbc=[False, True, True], info={"frame": 0}), format="extxyz")
    with pytest.raises(InvalidRequest, match="xsf"):
        converted(path, path.stat().st_size, "xsf")
    assert b"".join(converted(path, path.stat().st_size, "pdb"))
