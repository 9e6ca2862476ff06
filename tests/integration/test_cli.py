"""The commands and the examples of docs/clients.md, run as a user runs them, against a real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from forcefields import catalogue
from tests.service import ROOT, RunningService

DOCS = ROOT / "docs"
PAGE = (DOCS / "clients.md").read_text()


def run(service: RunningService, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "FORCEGATE_URL": service.url,
        "FORCEGATE_GRPC": service.grpc,
        "COLUMNS": "200",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run([sys.executable, *map(str, command)], env=variables, cwd=cwd, capture_output=True, text=True, timeout=300)


def forcegate(service: RunningService, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return run(service, "-m", "forcegate.cli", *command)


def test_models_lists_what_is_served(service: RunningService) -> None:
    table = forcegate(service, "models")
    assert table.returncode == 0, table.stderr
    sha256 = catalogue.load().resolve("sevennet-0").checkpoint.sha256
    (line,) = [line for line in table.stdout.splitlines() if re.search(r"\bsevennet-0 ", line)]
    assert "ready" in line
    assert sha256[:12] in line
    listed = json.loads(forcegate(service, "models", "--json").stdout)
    assert {model["name"] for model in listed if model["state"] == "ready"} >= {"sevennet-0", "chgnet-0.3.0", "sevennet-mf-0"}


def test_evaluate_writes_what_ase_reads_back(service: RunningService, tmp_path: Path) -> None:
    trajectory, poscar, out = tmp_path / "many.traj", tmp_path / "POSCAR", tmp_path / "out.extxyz"
    write(trajectory, [bulk("Cu", cubic=True, a=a) for a in (3.5, 3.6, 3.7)])
    write(poscar, bulk("NaCl", "rocksalt", a=5.64), format="vasp")
    done = forcegate(service, "evaluate", trajectory, poscar, "-m", "sevennet-0", "-m", "chgnet-0.3.0", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "pressure" in done.stdout
    assert "GPa" in done.stdout
    images = read(out, ":")
    assert [atoms.info["model"] for atoms in images] == ["sevennet-0"] * 4 + ["chgnet-0.3.0"] * 4
    assert f"{images[0].get_potential_energy():.6f}" in done.stdout
    assert images[0].info["checkpoint_sha256"] == catalogue.load().resolve("sevennet-0").checkpoint.sha256
    assert images[0].get_stress()[0] < images[2].get_stress()[0], "compressed copper pushes, stretched copper pulls"
    assert "magmoms" not in images[4].calc.results, "nothing that was not asked for"


def test_evaluate_goes_on_after_a_bad_structure_and_says_so(service: RunningService, tmp_path: Path) -> None:
    good, bad, broken = tmp_path / "good.extxyz", tmp_path / "bad.extxyz", tmp_path / "broken.cif"
    write(good, bulk("Ar", a=5.3))
    write(bad, [Atoms("Ar2", [[0, 0, 0], [0, 0, 0.01]]), bulk("Ar", a=5.4)])
    broken.write_text("data_\nnothing")
    done = forcegate(service, "evaluate", bad, broken, good, "-m", "lj-argon", "--json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(line["file"]).name, line["image"]) for line in lines] == [
        ("bad.extxyz", 0),
        ("bad.extxyz", 1),
        ("good.extxyz", 0),
    ]
    assert lines[0]["error"]["code"] == "coincident_atoms"
    assert np.array(lines[2]["forces"]).shape == (1, 3)
    assert "broken.cif cannot be read" in done.stderr
    assert "1 of 3 evaluations and 1 of 3 files failed." in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["evaluate", "x.cif", "-m", "sevennet-9"], 3, "There is no model 'sevennet-9'"),
        (["evaluate", "x.cif", "-m", "sevennet-0", "--grpc", "127.0.0.1:9"], 3, "forcegate serve"),
        (["models", "--url", "http://127.0.0.1:9"], 3, "forcegate serve"),
        (["compare", "no-such-file.cif", "-m", "sevennet-0"], 1, "cannot be read"),
        (["evaluate"], 2, "Missing argument"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(service: RunningService, command: list[str], code: int, words: str) -> None:
    done = forcegate(service, *command)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_sets_models_side_by_side(service: RunningService, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    path = tmp_path / "Cu.extxyz"
    write(path, atoms)
    done = forcegate(service, "compare", path, "-m", "sevennet-0", "-m", "chgnet-0.3.0")
    assert done.returncode == 0, done.stderr
    assert "Forces, sevennet-0 and chgnet-0.3.0: RMSE" in done.stdout
    assert "stress xx" in done.stdout
    answer = json.loads(forcegate(service, "compare", path, "-m", "sevennet-0", "-m", "lj-argon", "--json").stdout)
    assert answer["results"][1]["error"]["code"] == "unsupported_element"


def test_demo_shows_three_structures_and_leaves_the_service_up(service: RunningService) -> None:
    done = forcegate(service, "demo", "--url", service.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("energy per atom") >= 3
    for words in ("Rock salt", "Perovskite", "Copper", "sevennet-0", "chgnet-0.3.0"):
        assert words in done.stdout
    assert service.process.poll() is None


def test_the_page_shows_the_example_as_it_is() -> None:
    example = (DOCS / "examples" / "plain_triton.py").read_text()
    assert f"```python\n{example}```" in PAGE
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 25


def test_plain_tritonclient_gives_the_energy_of_the_calculator(service: RunningService) -> None:
    from forcegate import ForcegateCalculator

    done = run(service, DOCS / "examples" / "plain_triton.py", service.grpc)
    assert done.returncode == 0, done.stderr
    with ForcegateCalculator("sevennet-0", service.grpc) as calc:
        expected = calc.get_potential_energy(bulk("NaCl", "rocksalt", a=5.64))
    match = re.search(r"energy (\S+) eV", done.stdout)
    assert match is not None
    assert float(match[1]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("number", range(4))
def test_every_python_block_of_the_page_runs(service: RunningService, number: int, tmp_path: Path) -> None:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "from forcegate import" in block]
    assert len(blocks) == 4
    done = run(service, "-c", blocks[number], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "eV" in done.stdout or number == 1
