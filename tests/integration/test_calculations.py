"""Calculations with served models: the service's numbers, batches, commands, and dispersion that is never left out in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, surface
from ase.collections import dcdft
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


# What CHIPS-FF (Wines and Choudhary, arXiv:2412.10516; results/mlff_properties_conventional.csv of usnistgov/chipsff, JVASP-1002
# and -867) reports of the same two checkpoints: the cubic lattice constant in A, C11 and C12 in GPa by finite strains, from which B
# follows. Its column of bulk moduli is not in GPa: it is not (C11 + 2 C12) / 3. MgO is not among its crystals. CHGNet's copper is
# stiffer by finite strains than by our curve of energies.
REPORTED = {
    ("sevennet-0", "Si2"): (5.46411, 147.12, 68.85, 0.03),
    ("sevennet-0", "Cu"): (3.61205, 176.12, 126.72, 0.03),
    ("chgnet-0.3.0", "Si2"): (5.46100, 120.54, 53.85, 0.05),
    ("chgnet-0.3.0", "Cu"): (3.61712, 191.85, 164.87, 0.15),
}


# Both models learnt PBE from MPtrj. For the elements the reference is all-electron PBE: WIEN2k in Lejaeghere et al., Science 351,
# aad3000 (2016), as ASE carries it (ase.collections.dcdft). For MgO it is the all-electron PBE that GPAW's documentation compares
# itself with in its bulk tests, 4.259 A and 147.8 GPa (G. Madsen, private communication there; GPAW had 4.267 A and 150.3 GPa).
# These numbers were read in ASE and in GPAW's page, not in the papers. Such models are known to be off in the curvature, mostly
# soft (Deng et al., npj Comput. Mater. 11, 9 (2025), doi:10.1038/s41524-024-01500-6); 1 % of the lattice constant and a fifth of
# the modulus are margins of ours, between what was seen and what another unit or a linear strain would make of it.
# Seen: SevenNet-0 94.6, 143.5, 134.6 GPa, CHGNet 77.8, 154.0, 134.3 GPa for Si, Cu, MgO.
@pytest.mark.parametrize("model", ["sevennet-0", "chgnet-0.3.0"])
@pytest.mark.parametrize(
    ("atoms", "volume", "modulus"),
    [
        (bulk("Si"), 2 * dcdft.data["Si"]["wien2k_volume"], dcdft.data["Si"]["wien2k_B"]),
        (bulk("Cu"), dcdft.data["Cu"]["wien2k_volume"], dcdft.data["Cu"]["wien2k_B"]),
        (bulk("MgO", "rocksalt", a=4.21), 4.259**3 / 4, 147.8),
    ],
    ids=["Si", "Cu", "MgO"],
)
def test_crystals_are_those_of_pbe_and_of_a_public_benchmark(
    service: RunningService, model: str, atoms: Atoms, volume: float, modulus: float
) -> None:
    answer = bulk_modulus(Served(model, service.grpc), atoms, BulkModulusParameters(relax_ions=False))
    if reported := REPORTED.get((model, atoms.get_chemical_formula())):
        lattice, c11, c12, within = reported
        assert (4 * answer.equilibrium_volume) ** (1 / 3) == pytest.approx(lattice, rel=2e-3)
        assert answer.bulk_modulus == pytest.approx((c11 + 2 * c12) / 3, rel=within)
    assert (answer.equilibrium_volume / volume) ** (1 / 3) == pytest.approx(1, abs=0.01)
    assert answer.bulk_modulus == pytest.approx(modulus, rel=0.2)


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


# What each command says on the terminal, what it saves, and a number that argon must have: C44 > 0; B of the bulk; a solid at 5 K
# that stays one; no imaginary modes of fcc argon; argon is bound to argon.
COMMANDS = {
    "elasticity": ((), "C44", lambda saved: saved["is_stable"]),
    "bulk-modulus": ((), "bulk modulus", lambda saved: 2 < saved["bulk_modulus"] < 4),
    "md": (("--temperature", "5", "--equilibration", "20", "--steps", "40"), "temperature", lambda saved: saved["is_stable"]),
    "phonons": (("--supercell", "2,2,2"), "Cv at 300 K", lambda saved: not saved["has_imaginary_modes"]),
    "interaction": (("--guest", "GUEST", "--spacing", "2"), "interaction", lambda saved: saved["interaction_energy"] < 0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_saves_json_and_a_picture(service: RunningService, tmp_path: Path, name: str) -> None:
    options, said, holds = COMMANDS[name]
    file, guest = tmp_path / "argon.extxyz", tmp_path / "guest.xyz"
    # A layer with vacuum above it is a host with a place for a guest.
    write(file, surface(fcc(5.3), (1, 1, 1), 1, vacuum=8) if name == "interaction" else fcc(5.3))
    write(guest, Atoms("Ar"))
    arguments = [str(guest) if option == "GUEST" else option for option in options]
    command = [sys.executable, "-m", "forcegate.cli", name, str(file), "-m", "lj-argon", "--grpc", service.grpc, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    saved = json.loads((tmp_path / f"argon-{name}.json").read_text())
    assert holds(saved)
    assert saved["provenance"]["checkpoint_sha256"]
    assert (tmp_path / f"argon-{name}.png").read_bytes().startswith(b"\x89PNG")
