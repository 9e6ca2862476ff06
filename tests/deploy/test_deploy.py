"""``forcegate deploy``: what it would run, and what the doctor finds on this and on other machines."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from forcefields import catalogue as catalogues
from forcegate.cli import application
from forcegate.cli.deploy import services
from forcegate.errors import SetupError
from frontend.deployment import doctor
from frontend.deployment.commands import PARTS, PROFILES, Deployment, make_secrets
from tests.deploy.tools import run
from tests.service import ROOT

COMMANDS = (
    "build",
    "up",
    "down",
    "status",
    "logs",
    "logs gateway",
    "restart",
    "restart triton",
    "scale 3",
    "clean",
    "export",
    "key admin",
)


def forcegate(*words: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(application(), list(words))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_what_docker_compose_understands(command: str, profile: str) -> None:
    done = forcegate("deploy", *command.split(), "--profile", profile, "--dry-run")
    assert done.exit_code == 0, done.output
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["docker", "compose"]
        assert f"compose.{profile}.yaml" in line
        files = [word for word in words if word.endswith(".yaml")]
        assert all(Path(path).is_file() for path in files)
    last = done.stdout.splitlines()[-1]
    assert all(word in last for word in command.split()[1:])


def test_the_commands_are_ones_that_compose_has() -> None:
    for command in COMMANDS:
        for line in forcegate("deploy", *command.split(), "--dry-run").stdout.splitlines():
            words = shlex.split(line)[2:]
            at = next(n for n, word in enumerate(words) if word in ("build", "up", "run", "down", "ps", "exec", "logs", "restart"))
            asked = run("docker-compose", words[at], "--help")
            assert asked.returncode == 0, line
            own = words[at + 1 :]
            if words[at] == "run" and "worker" in own:  # what follows is for the command in the container
                own = own[: own.index("worker")]
            options = [word for word in own if word.startswith("--")]
            assert all(option in asked.stdout for option in options), line


def test_up_puts_the_models_in_place_first_and_waits() -> None:
    first, second = forcegate("deploy", "up", "-p", "gpu1", "--monitoring", "--postgres", "--dry-run").stdout.splitlines()
    assert first.endswith("run --rm export")
    assert "up --detach --wait" in second
    assert all(f"compose.{part}.yaml" in second for part in PARTS)
    assert "--profile gpu " in second


def test_a_key_is_made_before_the_gateway_runs() -> None:
    database, key = forcegate("deploy", "key", "admin", "--scope", "operate", "--postgres", "--dry-run").stdout.splitlines()
    assert database.endswith("up --detach --wait postgres")
    assert key.endswith("run --rm --no-deps worker keys create admin --scope operate")
    (alone,) = forcegate("deploy", "key", "admin", "--dry-run").stdout.splitlines()
    assert "postgres" not in alone


def test_a_profile_that_does_not_exist_and_a_folder_without_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="There is no profile"):
        Deployment(ROOT, "gpu3")
    with pytest.raises(SetupError, match="There is no"):
        Deployment(tmp_path, "cpu")


def test_secrets_are_made_once(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets", PARTS)
    assert {path.name for path in made} == {"postgres_password", "database_url", "grafana_password"}
    before = {path: path.read_text() for path in made}
    assert before[tmp_path / "secrets" / "postgres_password"] in before[tmp_path / "secrets" / "database_url"]
    assert make_secrets(tmp_path / "secrets", PARTS) == []
    assert before == {path: path.read_text() for path in made}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_the_table_shows_services_devices_and_models() -> None:
    lines = [{"Service": "triton", "State": "running", "Health": "healthy"}, {"Service": "worker", "State": "exited", "Health": ""}]
    for text in ("\n".join(map(json.dumps, lines)), json.dumps(lines)):  # the forms of older and newer versions
        found = doctor.containers(text)
        assert [each["health"] for each in found] == ["healthy", "-"]
    worker = {"models": ["sevennet-0"], "device": "cuda:0", "gpu_name": "NVIDIA H100", "status": "healthy"}
    table = services(found, {"workers": {"sevennet": worker, "mace": worker | {"models": []}}})
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["triton", "  sevennet", "worker"]
    assert cells[3][1] == "cuda:0 NVIDIA H100"
    assert cells[4][1] == "sevennet-0"


class Machine:
    """Answers of programs, by the beginning of their command lines; the others are not installed."""

    def __init__(self, **answers: str) -> None:
        self._answers = answers

    def __call__(self, command: Sequence[str]) -> str | None:
        words = "_".join(command).replace("-", "_").replace(" ", "_")
        return next((answer for start, answer in self._answers.items() if words.startswith(start)), None)


GOOD = {
    "docker_version": "28.2.2\n",
    "docker_compose": "2.40.0\n",
    "docker_info": '{"nvidia":{},"runc":{}}',
    "nvidia_smi": "NVIDIA H100\n" * 8,
    "timedatectl": "yes\n",
}


def examined(
    tmp_path: Path, profile: str = "gpu8", driver: str = "580.65.06", port: int = 0, **answers: str
) -> dict[str, doctor.Finding]:
    """The findings on a machine with these answers."""
    (tmp_path / "version").write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n")
    machine = doctor.Machine(Machine(**answers), tmp_path / "version")
    models = [catalogues.load().resolve(name) for name in ("lj-argon", "mace-mp-0-medium", "uma-s-1p1")]
    found = doctor.examine(profile, port, models, tmp_path, [], machine)
    return {finding.check: finding for finding in found}


def test_a_machine_that_has_everything(tmp_path: Path) -> None:
    found = examined(tmp_path, **GOOD)
    for check in ("container engine", "compose", "driver", "GPUs", "container toolkit", "port", "clock"):
        assert found[check].result == doctor.OK, found[check]
    assert found["checkpoints"].result == doctor.WARNING
    assert "mace-mp-0-medium" in found["checkpoints"].told
    assert "uma-s-1p1" in found["licences"].told
    assert "lj-argon" not in found["licences"].told


@pytest.mark.parametrize(
    ("check", "changed", "mend"),
    [
        ("container engine", {"docker_version": "\n"}, "systemctl start docker"),
        ("compose", {"docker_compose": "1.29.2"}, "docker-compose-plugin"),
        ("driver", {"driver": "535.183.01"}, "580"),
        ("GPUs", {"nvidia_smi": "NVIDIA H100\n"}, "gpu1"),
        ("container toolkit", {"docker_info": '{"runc":{}}'}, "nvidia-ctk runtime configure"),
        ("clock", {"timedatectl": "no\n"}, "chrony"),
    ],
)
def test_what_is_missing_is_told_with_how_to_mend_it(tmp_path: Path, check: str, changed: dict[str, str], mend: str) -> None:
    finding = examined(tmp_path, **(GOOD | changed))[check]
    assert finding.result != doctor.OK
    assert mend in finding.mend


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert examined(tmp_path, port=taken.getsockname()[1], **GOOD)["port"].result == doctor.FAILED


def test_the_doctor_of_this_machine() -> None:
    done = forcegate("deploy", "doctor", "--profile", "test", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert {"container engine", "compose", "port", "disk", "memory", "/dev/shm", "checkpoints", "licences", "clock"} == set(
        findings
    )
    assert all(finding["mend"] for finding in findings.values() if finding["result"] != "ok")
    assert done.exit_code == int(any(finding["result"] == "failed" for finding in findings.values()))
