"""Triton, gateway and worker as three programs that know of each other by their settings alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from forcegate.errors import SetupError
from frontend.settings import load
from frontend.supervisor.checks import check_machine
from tests.deploy.conftest import Parts, begun, parts_of
from tests.service import wait_until

ARGON = {"model_name": "lj-argon", "atoms": {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}}


def test_rest_is_answered_through_another_process_group_s_triton(parts: Parts) -> None:
    answer = httpx.post(f"{parts.url()}/api/v1/single_point", json=ARGON, timeout=30).json()
    assert answer["provenance"]["model"] == "lj-argon"
    assert answer["energy"] == pytest.approx(-0.0104, abs=2e-3)  # the depth of argon's well is 10.3 meV
    health = httpx.get(f"{parts.url()}/health", timeout=10).json()
    assert health["status"] == "healthy"
    if os.geteuid() == 0:  # then Triton has process ids of its own, which mean others here
        assert health["workers"]["lennard_jones"]["memory_usage_mb"] is None


def test_a_task_is_carried_out_by_the_worker(parts: Parts) -> None:
    body = ARGON | {"fmax": 0.001}
    task = httpx.post(f"{parts.url()}/api/v1/tasks/optimization", json=body, timeout=30).json()["task_id"]
    view = f"{parts.url()}/api/v1/tasks/{task}"
    wait_until(lambda: httpx.get(view, timeout=10).json()["status"] == "COMPLETED", "the task is not completed", 30)
    assert httpx.get(f"{view}/result", timeout=10).json()["converged"]


@pytest.mark.parametrize("part", ["triton", "gateway", "worker"])
def test_each_part_is_healthy_and_a_part_that_is_not_there_is_not(parts: Parts, part: str) -> None:
    if part != "triton" or os.geteuid() != 0:  # its check looks at processes, so it has to run in its container
        well = parts.run("health", part)
        assert (well.returncode, well.stdout.strip()) == (0, "well"), well
    nowhere = dict.fromkeys(("FORCEGATE_PORT", "FORCEGATE_GRPC_PORT", "FORCEGATE_WORKER_METRICS_PORT"), "9")
    assert parts.run("health", part, **nowhere).returncode == 1


def test_a_worker_tells_prometheus_of_itself(parts: Parts) -> None:
    text = httpx.get(parts.url("WORKER_METRICS_PORT") + "/metrics", timeout=10).text
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("forcegate_worker"))
    assert float(told["forcegate_worker_slots"]) == 32
    assert abs(time.time() - float(told["forcegate_worker_beat_timestamp_seconds"])) < 30
    assert {"forcegate_worker_tasks", "forcegate_worker_silent_seconds"} <= told.keys()


def test_a_model_process_that_dies_is_brought_back_and_the_caller_waits(parts: Parts) -> None:
    pid = json.loads((parts.state / "reports" / "lj-argon.json").read_text())["pid"]
    inner = parts.processes["triton"].pid
    if os.geteuid() == 0:  # its id here, by way of the ids that the kernel tells for both
        pid = next(
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _belongs(entry, inner) and _last_id(entry) == pid
        )
    os.kill(pid, signal.SIGKILL)
    answer = httpx.post(f"{parts.url()}/api/v1/single_point", json=ARGON, timeout=60)
    assert answer.status_code == 200, answer.text


def _last_id(entry: Path) -> int:
    try:
        return next(int(line.split()[-1]) for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid:"))
    except (OSError, StopIteration):
        return -1


def _belongs(entry: Path, container: int) -> bool:
    try:
        own = os.readlink(f"/proc/{container}/ns/pid_for_children")
        return os.readlink(entry / "ns" / "pid") == own
    except OSError:
        return False


def test_every_line_of_gateway_and_worker_is_json(parts: Parts) -> None:
    for part in ("gateway", "worker"):
        for line in parts.log(part).splitlines():
            assert json.loads(line)["process"] == part


def _line(parts: Parts, *words: str) -> bool:
    return any(all(word in line for word in words) for line in parts.log("gateway").splitlines())


def test_several_gateways_share_a_port_and_one_that_dies_comes_back(parts: Parts) -> None:
    with parts_of(parts.root, parts.state, **_same(parts, "GRPC_PORT"), GATEWAYS=2) as more:
        begun(more, "gateway")
        # The first of them answers for both; one that ends before it accepts is a start that failed.
        accepting = [f'"gateway":"{number}"' for number in (1, 2)]
        wait_until(lambda: all(_line(more, "Application startup complete", one) for one in accepting), "they do not both start", 60)
        time.sleep(1)  # between that line and the word to its parent there is a moment
        import psutil

        children = [child for child in psutil.Process(more.processes["gateway"].pid).children() if child.name() != "sh"]
        serving = [child for child in children if "frontend.gateway" in child.cmdline()]
        assert len(serving) == 2
        serving[0].kill()
        assert httpx.get(f"{more.url()}/live", timeout=10).status_code == 200
        wait_until(lambda: more.log("gateway").count("gateway ended") == 1, "its end is not told", 10)
        assert more.stop("gateway") == 0


def _same(parts: Parts, *names: str) -> dict[str, str]:
    return {name: parts.variables[f"FORCEGATE_{name}"] for name in names}


def test_a_secret_comes_from_a_file(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("postgresql://nobody@127.0.0.1:9/none\n")
    failed = parts.run("worker", FORCEGATE_DATABASE_URL_FILE=str(tmp_path / "secret"))
    assert failed.returncode == 2
    assert "database of tasks cannot be opened" in failed.stderr
    missing = parts.run("worker", FORCEGATE_DATABASE_URL_FILE=str(tmp_path / "other"))
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr


def test_a_state_folder_that_cannot_be_written_is_told(parts: Parts) -> None:
    failed = parts.run("gateway", FORCEGATE_STATE="/proc/nothing")
    assert failed.returncode == 1
    assert "mount a volume that belongs to this user" in failed.stderr


def test_the_embedded_server_does_not_listen_beyond_loopback(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="known holes"):
        check_machine(load(internal_host="0.0.0.0", state=tmp_path))
    with pytest.raises(SetupError, match="There is no"):
        check_machine(load(internal_host="0.0.0.0", tritonserver="/nowhere", state=tmp_path))
