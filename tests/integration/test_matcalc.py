"""matcalc, which is other people's code, and ours say the same of one served model: equation of state, elasticity, phonons."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from forcegate.calculations.bulk_modulus import BulkModulusParameters, bulk_modulus
from forcegate.calculations.elasticity import ElasticityParameters, elasticity
from forcegate.calculations.forces import Served
from forcegate.calculations.heat_capacity import HeatCapacityParameters, heat_capacity
from tests.service import ROOT, RunningService
from tests.unit.calculations.potentials import fcc, lattice_minimum

PYTHON = ROOT / "environments" / "matcalc" / "bin" / "python"
WITHOUT = "FORCEGATE_TEST_WITHOUT_MATCALC"


def test_matcalc_and_ours_agree(service: RunningService, tmp_path: Path) -> None:
    if os.environ.get(WITHOUT):
        pytest.skip(f"{WITHOUT} is set: NOTHING IS COMPARED WITH MATCALC")
    assert PYTHON.exists(), f"Run `make environments/matcalc/.made`, or set {WITHOUT}=1 to do without."
    atoms = fcc(lattice_minimum()[0])
    write(tmp_path / "argon.extxyz", atoms)
    command = [str(PYTHON), "-m", "tests.integration.matcalc_numbers", service.grpc, "lj-argon", str(tmp_path / "argon.extxyz")]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])

    forces = Served("lj-argon", service.grpc)
    eos = bulk_modulus(forces, atoms, BulkModulusParameters(strain_range=0.03, relax_cell=False, relax_ions=False))
    stiff = elasticity(forces, atoms, ElasticityParameters(strain=0.01, num_strains=2, relax_cell=False, relax_ions=False))
    parameters = HeatCapacityParameters(temperatures=(50.0, 300.0), supercell=(2, 2, 2), displacement=0.01, relax=False)
    phonons = heat_capacity(forces, atoms, parameters)
    c = stiff.stiffness
    # The volumes are not quite the same, and shells that cross the cutoff of 8.5 A bend the curve: see test_bulk_modulus.py.
    assert eos.bulk_modulus == pytest.approx(theirs["bulk_modulus"], rel=0.02)
    # Theirs is Green's strain of a deformation, ours the deformation itself: 1 % of strain is the difference.
    assert [c[0, 0], c[0, 1], c[3, 3]] == pytest.approx(theirs["stiffness"], rel=0.01)
    assert stiff.bulk_modulus_vrh == pytest.approx(theirs["bulk_modulus_vrh"], rel=0.01)
    assert stiff.shear_modulus_vrh == pytest.approx(theirs["shear_modulus_vrh"], rel=0.01)
    # Both are of the four atoms that were given; the meshes of q-points differ, ours is of the primitive cell.
    assert np.allclose(phonons.heat_capacities, theirs["heat_capacities"], rtol=2e-3)
    assert np.allclose(phonons.free_energies, theirs["free_energies"], rtol=5e-3, atol=1e-5)
    assert np.allclose(phonons.entropies, theirs["entropies"], rtol=5e-3)
