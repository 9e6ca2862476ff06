"""Every block of README.md and docs/operations.md is run as it stands, but for addresses and the state folder.

``make test`` is the one that is not: it is what runs this file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.service import ROOT, RunningService, environment, free_ports

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
README = BLOCK.findall((ROOT / "README.md").read_text())
OPERATIONS = BLOCK.findall((ROOT / "docs" / "operations.md").read_text())
# The environment that make serve made is the one that runs these tests; make would otherwise judge by its stamp whether to build it
# again, under our feet.
STAMP = "environments/gateway/.made"
PLAIN = [
    (page, number, code)
    for page, blocks in (("README", README), ("operations", OPERATIONS))
    for number, (kind, code) in enumerate(blocks)
    if kind == "bash" and code.strip() not in ("make serve", "make test")
]


def make(command: str) -> list[str]:
    """The command line of ``make TARGET``."""
    program, target = command.split()
    assert program == "make"
    return ["make", "-o", STAMP, f"PYTHON={sys.executable}", target]


def run(service: RunningService, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a block of bash as a user would, against the service under test."""
    for port, there in ((8000, service.port), (8001, service.grpc_port), (8002, service.metrics_port)):
        code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{there}")
    code = code.replace("var/", f"{service.state}/").replace("make demo", f"make -o {STAMP} demo")
    ports = (service.port, service.grpc_port, service.metrics_port, service.http_port)
    variables = environment(service.state, (), ports, url=service.url, grpc=service.grpc) | {"COLUMNS": "132"}
    variables["PATH"] = f"{ROOT / 'environments' / 'gateway' / 'bin'}:{variables['PATH']}"
    variables = {key: value for key, value in variables.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def shown_after(fragment: str, kind: str) -> str:
    """The first block of that kind after the one that holds ``fragment``."""
    start = next(number for number, (_, code) in enumerate(README) if fragment in code)
    return next(code for found, code in README[start + 1 :] if found == kind)


@pytest.mark.parametrize(("page", "number", "code"), PLAIN, ids=[f"{page} {number}" for page, number, _ in PLAIN])
def test_a_block_runs(service: RunningService, page: str, number: int, code: str) -> None:  # noqa: ARG001
    done = run(service, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not re.search(r'(^|\})\{"detail"', done.stdout, re.MULTILINE), "no answer is an error"


@pytest.mark.parametrize("code", [code for kind, code in README if kind == "python"])
def test_a_block_of_python_runs(service: RunningService, code: str, tmp_path: Path) -> None:
    variables = os.environ | {"FORCEGATE_GRPC": service.grpc, "FORCEGATE_URL": service.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    energy = re.match(r"(\S+) eV", done.stdout)
    assert energy is not None
    # The table of forcegate evaluate has the same crystal.
    assert energy[1][:8] in shown_after("forcegate evaluate", "text")


def test_the_answer_that_is_shown_is_the_one_that_comes(service: RunningService) -> None:
    code = next(code for _, code in README if code.startswith("curl"))
    answer, shown = json.loads(run(service, code).stdout), json.loads(shown_after("single_point", "json"))
    assert [*_paths(answer)] == [*_paths(shown)], "the same keys in the same order"
    assert answer["provenance"] == shown["provenance"]
    assert answer["units"] == shown["units"]
    for name in ("energy", "energy_per_atom", "max_force"):
        assert answer[name] == pytest.approx(shown[name], abs=2e-5), name
    np.testing.assert_allclose(answer["forces"], shown["forces"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(answer["stress"], shown["stress"], rtol=0, atol=1e-5)


def _paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _paths(entry, f"{path}.{key}")
    else:
        yield path


def test_the_table_that_is_shown_is_the_one_that_comes(service: RunningService) -> None:
    done = run(service, next(code for _, code in README if "forcegate evaluate" in code))
    came, shown = _rows(done.stdout), _rows(shown_after("forcegate evaluate", "text"))
    assert len(shown) == 4
    for row in shown:
        (same,) = [other for other in came if other[:4] == row[:4]]
        # The last digit of a float32 sum depends on the batch.
        assert [float(cell) for cell in same[4:]] == pytest.approx([float(cell) for cell in row[4:]], abs=1e-3)


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if re.match(r"│ (docs/examples)", line)]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_make_serve_starts_and_says_what_the_page_says(tmp_path: Path) -> None:
    """One model that loads in a moment, in place of the defaults."""
    command = next(code for _, code in README if code.strip() == "make serve")
    state, ports = tmp_path / "state", free_ports(4)
    variables = environment(state, ("lj-argon",), ports)
    variables = {key: value for key, value in variables.items() if not key.startswith("MAKE")}
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(make(command), cwd=ROOT, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_for("serving after", log, process, 180)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        # What the terminal does on Ctrl-C: the signal goes to make and to all that it started.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(90)
    told = log.read_text()
    assert "nothing is left behind" in told
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(Path("/dev/shm").glob(f"forcegate_{ports[1]}_*")) == []
    for line in shown_after("make serve", "text").splitlines():
        # Times, numbers, models and addresses differ; the words, in their order, do not. Rows of the table are of other models.
        words = [word for word in line.split() if re.fullmatch(r"[A-Za-z]+[:;,]?", word)]
        assert line.startswith("│") or re.search(".*".join(map(re.escape, words)), told), line


def test_make_test_runs_every_test() -> None:
    command = next(code for _, code in README if code.strip() == "make test")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run([*make(command), "--dry-run"], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("tests/run")
    # A folder below one that is named is run with it.
    folders = {"/".join(path.relative_to(ROOT).parts[:2]) for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders <= set(re.findall(r"tests/\w+", (ROOT / "tests" / "run").read_text())), "no folder of tests is left out"


def _wait_for(line: str, log: Path, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while line not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
