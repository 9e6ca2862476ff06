"""Calculations with served models: the service's numbers, batches, commands, and dispersion that is never left out in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

from forcegate import errors
from forcegate.calculations.bulk_modulus import BulkModulusParameters, bulk_modulus
from forcegate.calculations.forces import Served
from forcegate.calculations.optimization import OptimizationParameters, optimization
from tests.service import RunningService
from tests.unit.calculations.potentials import fcc, lattice_minimum


def test_served_argon_is_the_lattice_sum_with_its_cutoff(service: RunningService) -> None:
    answer = optimization(Served("lj-argon", service.grpc), fcc(5.3), OptimizationParameters(fmax=1e-5, smax=1e-3))
    a, energy, _ = lattice_minimum()
    assert answer.converged
    assert answer.final_volume == pytest.approx(a**3, rel=1e-3)  # 1e-3 GPa of a solid of 3 GPa
    assert answer.final_energy / 4 == pytest.approx(energy, abs=1e-6)


# Silicon with PBE: 5.47 A, 89 GPa (Haas, Tran and Blaha, Phys. Rev. B 79, 085104 (2009)). Models trained on MPtrj soften it by up
# to a fifth (Deng et al., npj Comput. Mater. 11, 9 (2025)), hence the range.
def test_sevennet_has_silicon_right(service: RunningService) -> None:
    answer = bulk_modulus(Served("sevennet-0", service.grpc), bulk("Si"), BulkModulusParameters(relax_ions=False))
    assert (4 * answer.equilibrium_volume) ** (1 / 3) == pytest.approx(5.46, abs=0.03)
    assert 70 < answer.bulk_modulus < 100


def test_dispersion_is_not_skipped_in_silence(service: RunningService) -> None:
    source = Served("lj-argon", service.grpc, dispersion="d3bj")
    with pytest.raises(errors.DispersionNotSupported):
        source.evaluate([fcc(5.3)])
    with pytest.raises(errors.DispersionNotSupported):
        optimization(source, fcc(5.3))


def test_dispersion_is_in_both_ways_of_asking(service: RunningService) -> None:
    atoms = bulk("Si")
    corrected = Served("sevennet-0", service.grpc, dispersion="d3bj")
    plain = Served("sevennet-0", service.grpc)
    (many,) = corrected.evaluate([atoms])
    atoms.calc = corrected.calculator()
    assert many.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)  # float32 model
    assert many.energy < plain.evaluate([bulk("Si")])[0].energy - 0.01


def test_the_command_saves_json_and_a_picture(service: RunningService, tmp_path: Path) -> None:
    file = tmp_path / "argon.extxyz"
    write(file, fcc(5.3))
    command = [sys.executable, "-m", "forcegate.cli", "elasticity", str(file), "-m", "lj-argon", "--grpc", service.grpc]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "C44" in done.stdout
    saved = json.loads((tmp_path / "argon-elasticity.json").read_text())
    assert saved["is_stable"]
    assert saved["provenance"]["checkpoint_sha256"]
    assert (tmp_path / "argon-elasticity.png").read_bytes().startswith(b"\x89PNG")
