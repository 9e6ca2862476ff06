"""CONTRIBUTING.md's new family, made of the files that it shows, is served and says what ASE's own calculator says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.morse import MorsePotential

from forcefields import catalogue
from forcegate import ForcegateCalculator
from tests.service import ROOT, RunningService, serving

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
ROUNDING = 1e-10
"""eV, eV/A, eV/A^3: both codes sum the same pairs in float64."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page has it: the new family, the state folder, the environments."""
    folder = tmp_path_factory.mktemp("clone")
    shown = re.findall(r"`(families/morse/[\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert [Path(name).name for name, _ in shown] == ["copper.json", "family.toml", "adapter.py"]
    for name, text in shown:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "environments").symlink_to(ROOT / "environments")
    return folder


@pytest.fixture(scope="module")
def morse(clone: Path) -> Iterator[RunningService]:
    """The service with that family."""
    assert "FORCEGATE_FAMILIES=$PWD/families forcegate serve --models morse-copper" in PAGE
    with serving(clone / "var", ("morse-copper",), families=clone / "families") as service:
        yield service


def test_the_hash_in_the_page_is_that_of_the_checkpoint(clone: Path) -> None:
    variant = catalogue.load([clone / "families"]).resolve("morse-copper")
    assert variant.checkpoint.sha256 == hashlib.sha256((clone / "families/morse/copper.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "atoms",
    [bulk("Cu", cubic=True), bulk("Cu") * (3, 2, 1), fcc111("Cu", (2, 2, 3), vacuum=8.0), Atoms("Cu2", [[0, 0, 0], [0, 0, 6.5]])],
    ids=["crystal", "skewed", "slab", "dimer in the cut"],
)
def test_it_says_what_ase_says(morse: RunningService, atoms: Atoms) -> None:
    atoms.rattle(0.05, seed=3)
    # ASE's parameters are relative to r0: rho0 = alpha r0, and the cut goes from rcut1 r0 = 6 A to rcut2 r0 = 7 A.
    r0 = 2.866
    reference = atoms.copy()
    reference.calc = MorsePotential(epsilon=0.3429, rho0=1.3588 * r0, r0=r0, rcut1=6 / r0, rcut2=7 / r0)
    with ForcegateCalculator("morse-copper", morse.grpc) as calculator:
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(reference.get_potential_energy(), abs=ROUNDING)
        np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(), rtol=0, atol=ROUNDING)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), reference.get_stress(), rtol=0, atol=ROUNDING)
        assert calculator.provenance["functional"] == "Morse"


def test_its_whole_gate_was_run(morse: RunningService) -> None:
    card = httpx.get(f"{morse.url}/api/v1/models/morse", timeout=10).json()
    assert card["state"] == "ready"
    assert card["gate"]["mode"] == "full"
    assert all(check["passed"] for check in card["gate"]["checks"])


def test_its_golden_energies_are_recorded_and_compared_from_then_on(morse: RunningService, clone: Path) -> None:
    (block,) = re.findall(r"```bash\n(cd var\n.*?)```", PAGE, re.DOTALL)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-ec", block], cwd=clone, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    golden = clone / "families" / "morse" / "golden.json"
    energies = json.loads(golden.read_text())["morse-copper:float64"]["energies"]
    assert set(energies) == {"Cu fcc"}
    _again(morse)
    assert _golden_note(morse) == "1 structures"
    golden.write_text(golden.read_text().replace(str(energies["Cu fcc"]), str(energies["Cu fcc"] + 1e-6)))
    assert _again(morse).json()["code"] == "gate_failed"


def _again(service: RunningService) -> httpx.Response:
    url = f"{service.url}/api/v1/models/morse-copper"
    assert httpx.post(f"{url}/unload", timeout=60).status_code == 200
    return httpx.post(f"{url}/load", timeout=120)


def _golden_note(service: RunningService) -> str:
    checks = httpx.get(f"{service.url}/api/v1/models/morse-copper", timeout=10).json()["gate"]["checks"]
    return str(next(check["note"] for check in checks if check["name"] == "golden"))
