"""``make bench`` for real: one section, one model that takes no time, a service of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.service import ROOT


def test_one_section_from_start_to_report(tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("FORCEGATE_")}
    arguments = ["--quick", "--sections", "clients", "--models", "lj-argon", "--output", str(tmp_path), "--name", "one"]
    arguments += ["--state", str(tmp_path / "state")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", *arguments],
        cwd=ROOT,
        env=variables,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "one.json").read_text())
    rows = {(row["protocol"], row["clients"]): row for row in results["sections"]["clients"]}
    assert set(rows) == {(protocol, number) for protocol in ("grpc", "rest") for number in (1, 32, 256)}
    for (protocol, number), row in rows.items():
        seen = row["service"]
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["longest_ms"]
        assert row["atoms_per_second"] > 7.9 * row["structures_per_second"]
        # Within its cutoff of 8.5 A an argon atom of a crystal has between 50 and 150 neighbours.
        assert 50 < seen["edges_per_second"] / row["atoms_per_second"] < 150
        # Over gRPC the gateway has nothing to do but to look after the models, once in a while.
        assert (seen["cpu_ms_gateway"] > 0.5 * rows["rest", number]["service"]["cpu_ms_gateway"]) == (protocol == "rest"), rows
        assert seen["cpu_ms_model"] > 0
        # Requests that wait while the model is busy share its next batch.
        assert seen["mean_batch_structures"] == 1 if number == 1 else seen["mean_batch_structures"] > 2
    assert "| lj-argon | grpc | 32 | **1.00** |" in (tmp_path / "one.md").read_text()
    assert (tmp_path / "one-clients.png").read_bytes().startswith(b"\x89PNG")
