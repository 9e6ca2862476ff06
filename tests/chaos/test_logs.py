"""Logs of a service that runs for months: one that has grown too long is set aside while everybody goes on writing."""

from __future__ import annotations

import os
import time

import httpx

from frontend.supervisor.process import LARGEST_LOG, LOG_SECONDS
from tests.service import RunningService


def test_logs_that_grow_too_long_are_set_aside(fragile: RunningService) -> None:
    logs = [fragile.state / "logs" / f"{name}.log" for name in ("triton", "gateway", "supervisor")]
    said = [path.read_bytes() for path in logs]
    for path in logs:
        os.truncate(path, LARGEST_LOG + 1)
    deadline = time.monotonic() + 3 * LOG_SECONDS
    while any(path.stat().st_size > LARGEST_LOG for path in logs) and time.monotonic() < deadline:
        time.sleep(0.2)
    for path, before in zip(logs, said, strict=True):
        assert path.stat().st_size < LARGEST_LOG, path.name
        with path.with_suffix(".old").open("rb") as old:
            assert old.read(len(before)) == before
    assert httpx.get(f"{fragile.url}/api/v1/models").status_code == 200
    assert httpx.post(f"{fragile.url}/api/v1/models/faulty/unload").status_code < 300
    assert httpx.post(f"{fragile.url}/api/v1/models/faulty/load", timeout=60).status_code < 300
    for path in logs[:2]:
        written = path.read_bytes()
        assert written
        assert b"\0" not in written, "whoever writes goes on at the end, not where it was"
