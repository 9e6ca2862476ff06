"""NVIDIA's perf_analyzer: where it is, what it is given, and what it says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters import environments
from exporters.environments import Environment, Say
from forcegate import tensors
from forcegate.errors import SetupError
from forcegate.structure import Structure

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""What the binary links against beyond the system's own libraries, and where Triton's wheel holds it. The wheel's files carry a
hash in their names, so they are given their usual ones in a folder of ours; no system package is needed."""


@dataclass(frozen=True)
class Program:
    """The executable and the folder of its libraries."""

    executable: Path
    libraries: Path

    def run(self, arguments: Sequence[str], timeout: float) -> str:
        """Runs it and returns what it printed.

        Raises:
            SetupError: it ended with an error or took longer than ``timeout`` seconds.
        """
        variables = dict(os.environ)
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(self.libraries), variables.get("LD_LIBRARY_PATH")]))
        try:
            done = subprocess.run(
                [str(self.executable), *arguments],
                env=variables,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(f"perf_analyzer did not end within {timeout:.0f} s.", "See the log of the service.") from None
        if done.returncode:
            tail = " ".join(done.stdout.split())[-400:]
            raise SetupError(f"perf_analyzer ended with status {done.returncode}: {tail}", "")
        return done.stdout


def ensure(root: Path, say: Say) -> Program:
    """Installs perf_analyzer into ``environments/perf_analyzer`` unless it is there.

    Raises:
        SetupError: it cannot be installed, or does not run on this machine.
    """
    environment = Environment("perf_analyzer", Path(__file__).parent / "requirements-perf-analyzer.txt", project=False)
    environments.ensure(environments.of_triton(root), root, say)
    environments.ensure(environment, root, say)
    folder = root / "environments" / environment.name
    program = Program(folder / "bin" / "perf_analyzer", folder / "libraries")
    if not program.executable.is_file():
        raise SetupError("The wheel of tritonclient for this machine holds no perf_analyzer.", "It is made for x86-64 Linux alone.")
    _link_libraries(program.libraries, root / "environments" / environments.TRITON)
    program.run(["--version"], timeout=30)
    return program


def _link_libraries(folder: Path, triton: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        found = next((environments.site_packages(triton) / "nvidia_pytriton.libs").glob(pattern), None)
        if found is None:
            continue  # the system may have it; if not, the loader says so when the binary is tried
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(found.resolve())


def input_data(structures: Sequence[Structure]) -> dict[str, Any]:
    """The structures as perf_analyzer's ``--input-data``: one step each, with its own shapes.

    Shapes leave out the batch axis, and a number of type FP64 has to have a decimal point: ``tolist`` writes 0.0 for zero.
    """
    steps = []
    for structure in structures:
        arrays = tensors.pack([structure])
        steps.append(
            {name: {"content": array[0].ravel().tolist(), "shape": list(array.shape[1:])} for name, array in arrays.items()}
        )
    return {"data": steps}


@dataclass(frozen=True)
class Load:
    """One level of load.

    Attributes:
        structures_per_second: from the time stamps of every request. perf_analyzer's own ``Inferences/Second`` is too low for a
            short run with ``--request-count``: it looks for the end once a second.
        p50, p90, p99: seconds from sending a request to its answer.
        queue, infer: mean seconds of a request in Triton's queue and in the model.
    """

    concurrency: int
    requests: int
    structures_per_second: float
    p50: float
    p90: float
    p99: float
    queue: float
    infer: float


def measure(program: Program, model: str, address: str, data: Path, concurrency: int, requests: int, timeout: float) -> Load:
    """Sends ``requests`` requests, ``concurrency`` of them in flight at any time.

    Raises:
        SetupError: perf_analyzer failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, profile = Path(folder) / "report.csv", Path(folder) / "profile.json"
        program.run(
            [
                *("-m", model, "-u", address, "-i", "grpc", "--async"),
                *("--input-data", str(data), "--concurrency-range", str(concurrency), "--request-count", str(requests)),
                *("-f", str(report), "--profile-export-file", str(profile)),
            ],
            timeout,
        )
        return read(report.read_text(), json.loads(profile.read_text()))


def read(report: str, profile: dict[str, Any]) -> Load:
    """One level of load from perf_analyzer's CSV report and its profile export.

    Raises:
        ValueError: the report has not exactly one row, or the profile no request.
    """
    rows = list(csv.DictReader(report.splitlines()))
    if len(rows) != 1:
        raise ValueError(f"perf_analyzer's report has {len(rows)} rows, 1 is expected")
    sent, answered = time_stamps(profile)
    latencies = answered - sent
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    return Load(
        concurrency=int(rows[0]["Concurrency"]),
        requests=len(sent),
        structures_per_second=len(sent) / float(answered.max() - sent.min()),
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        queue=float(rows[0]["Server Queue"]) * 1e-6,
        infer=float(rows[0]["Server Compute Infer"]) * 1e-6,
    )


def time_stamps(profile: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """When each request was sent and answered, in seconds after the first was sent.

    Raises:
        ValueError: there is no request in it.
    """
    requests = [request for experiment in profile["experiments"] for request in experiment["requests"]]
    if not requests:
        raise ValueError("perf_analyzer's profile holds no request")
    # Nanoseconds since 1970 do not fit into a float; their differences do.
    start = min(request["timestamp"] for request in requests)
    sent = np.array([request["timestamp"] - start for request in requests]) * 1e-9
    answered = np.array([request["response_timestamps"][-1] - start for request in requests]) * 1e-9
    return sent, answered
