"""``make loadtest`` against a real service, with the real perf_analyzer."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from tests.service import ROOT, RunningService


def test_load_test_of_the_running_service(service: RunningService, tmp_path: Path) -> None:
    before = service.metric("nv_inference_count", model="lj-argon")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")}
    variables |= {
        "FORCEGATE_PORT": str(service.port),
        "FORCEGATE_GRPC_PORT": str(service.grpc_port),
        "FORCEGATE_METRICS_PORT": str(service.metrics_port),
        "FORCEGATE_HTTP_PORT": str(service.http_port),
        "FORCEGATE_STATE": str(tmp_path / "state"),
    }
    arguments = ["--models", "lj-argon", "--concurrency", "1,16", "--seconds", "1", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loadtest", *arguments],
        cwd=ROOT,
        env=variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"using the service that runs at {service.grpc}" in done.stderr
    with (tmp_path / "loadtest.csv").open() as file:
        alone, together = csv.DictReader(file)
    assert (alone["concurrency"], together["concurrency"]) == ("1", "16")
    assert float(alone["mean_batch"]) == 1.0
    # Sixteen requests in flight wait while the model is busy, so they share batches, though their sizes differ.
    assert float(together["mean_batch"]) > 2
    for row in (alone, together):
        assert 0 < float(row["p50"]) <= float(row["p90"]) <= float(row["p99"])
        # Little's law for a closed loop: what is in flight is the rate times the mean wait. The median stands in for the mean.
        in_flight = float(row["structures_per_second"]) * float(row["p50"])
        assert 0.3 * float(row["concurrency"]) < in_flight < 1.5 * float(row["concurrency"])
    sent = int(alone["requests"]) + int(together["requests"])
    assert service.metric("nv_inference_count", model="lj-argon") - before >= sent
    assert (tmp_path / "loadtest.png").read_bytes().startswith(b"\x89PNG")
    assert "| lj-argon | 16 |" in done.stdout
