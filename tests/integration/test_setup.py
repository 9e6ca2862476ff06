"""Setting up: what is wrong with the machine is told in one sentence, and nothing half-built is taken for whole."""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from exporters import checkpoints, environments
from exporters.environments import Environment
from exporters.prepare import at_hand
from forcefields.catalogue import load
from forcegate.errors import SetupError
from frontend.settings import Settings
from frontend.settings import load as load_settings
from frontend.supervisor import checks
from tests.service import ROOT, environment, free_ports

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "available")


def serve(state: Path, ports: list[int], *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """``forcegate serve`` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "forcegate.cli", "serve", *arguments],
        env=environment(state, ("lj-argon",), ports, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    ports = free_ports(4)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[1]))
        taken.listen()
        result = serve(tmp_path, ports)
    assert result.returncode != 0
    assert f"Port {ports[1]} on 127.0.0.1 (grpc_port) cannot be used" in " ".join(result.stderr.split())
    assert "FORCEGATE_GRPC_PORT" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_the_same_port_twice_is_one_sentence(tmp_path: Path) -> None:
    port, other, third = free_ports(3)
    result = serve(tmp_path, [port, other, other, third])
    assert result.returncode != 0
    assert "are both" in result.stderr


def test_an_unknown_model_is_named_before_anything_starts(tmp_path: Path) -> None:
    result = serve(tmp_path, free_ports(4), "--models", "sevenet")
    assert result.returncode != 0
    assert "sevennet" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_setting_that_does_not_fit_is_named(tmp_path: Path) -> None:
    result = serve(tmp_path, free_ports(4), device="quantum")
    assert result.returncode != 0
    assert "device" in result.stderr
    assert "quantum" in result.stderr


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(int(0.7e9)))
    with pytest.raises(SetupError, match=r"0\.7 GB of memory are free"):
        checks.check_machine(_settings(tmp_path))


@pytest.mark.parametrize(
    ("full", "told"),
    [
        ("state", r"Only 0\.01 GB of disk are free at .*state\..*FORCEGATE_STATE"),
        ("/dev/shm", r"Only 5 MB of shared memory \(/dev/shm\) are free.*--shm-size"),
    ],
)
def test_a_disk_too_small_to_serve_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: str, told: str) -> None:
    settings = _settings(tmp_path / "state")
    checks.check_machine(settings)
    small = Path(tmp_path, full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, 5e6 if Path(path) == small else 1e12))
    with pytest.raises(SetupError, match=told):
        checks.check_machine(settings)


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1e12, 1e12, 5e6))
    environment = Environment("small", _requirements(tmp_path, "six==1.17.0"), project=False)
    with pytest.raises(SetupError, match=r"0\.0 GB of disk are free"):
        environments.ensure(environment, tmp_path, print)
    assert not environments.complete(environment, tmp_path)


def test_no_libpython(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _name: "libpython3.11.a")
    with pytest.raises(SetupError, match=r"libpython3\.\d+\.so\.1\.0 .* was not found") as caught:
        environments.ensure(Environment("small", _requirements(tmp_path, "six==1.17.0"), project=False), tmp_path, print)
    assert "apt-get install libpython3" in caught.value.hint


def test_a_library_that_vanished_is_told_before_triton_hangs_on_it(tmp_path: Path) -> None:
    small = Environment("small", _requirements(tmp_path, "six==1.17.0"), project=False)
    _build(small, tmp_path)
    library = next((tmp_path / "environments" / "small" / "lib").glob("libpython*"))
    library.unlink()
    with pytest.raises(SetupError, match="has no libpython"):
        environments.check(small, tmp_path)


def test_no_network_is_one_sentence_and_nothing_is_taken_for_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/nothing")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    small = Environment("small", _requirements(tmp_path, "six==1.17.0"), project=False)
    with pytest.raises(SetupError, match=r"registry cannot be reached"):
        _build(small, tmp_path)
    assert not environments.complete(small, tmp_path)
    monkeypatch.undo()
    _build(small, tmp_path)
    assert environments.complete(small, tmp_path)


BUILD = """
import sys
from pathlib import Path
from exporters import environments
from forcegate.errors import SetupError
root = Path(sys.argv[1])
try:
    environments.ensure(environments.Environment("small", root / "requirements.txt", project=False), root, print)
except SetupError as error:
    sys.exit(f"told: {error}")
"""


def test_on_a_terminal_no_network_is_the_same_sentence_and_progress_is_shown(tmp_path: Path) -> None:
    status, seen = _build_on_a_terminal(tmp_path, UV_DEFAULT_INDEX="http://127.0.0.1:9/nothing")
    assert status == 1
    assert "told: The package registry cannot be reached." in seen
    assert "Resolving dependencies" in seen, "uv's own progress"
    assert not environments.complete(Environment("small", tmp_path / "requirements.txt", project=False), tmp_path)


def test_on_a_terminal_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """uv's cache on a disk of 8 kB, mounted where no other process sees it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = f"mount -t tmpfs -o size=8k none {cache}"
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    _status, seen = _build_on_a_terminal(tmp_path, *within)
    assert "told: The disk is full." in seen


def test_make_tells_a_missing_network_in_one_sentence(tmp_path: Path) -> None:
    _uv(tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/gateway.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    result = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "environments/gateway/.made"],
        env=_unreachable(tmp_path) | {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/nothing"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    (line,) = [line for line in result.stdout.splitlines() if "could not be installed" in line]
    assert "is the package registry reachable" in line
    assert not (tmp_path / "environments" / "gateway" / ".made").exists()


def test_two_builders_at_once_build_once(tmp_path: Path) -> None:
    small = Environment("small", _requirements(tmp_path, "six==1.17.0"), project=False)
    _uv(tmp_path)
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda _: environments.ensure(small, tmp_path, said.append), range(2)))
    assert sorted(built) == [False, True]
    assert environments.ensure(small, tmp_path, said.append) is False


def test_changed_pins_are_built_again(tmp_path: Path) -> None:
    path = _requirements(tmp_path, "six==1.17.0")
    _build(Environment("small", path, project=False), tmp_path)
    path.write_text("six==1.16.0\n")
    assert not environments.complete(Environment("small", path, project=False), tmp_path)


def test_where_models_cannot_be_written_those_in_place_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container, where the export job alone writes."""
    catalogue, names, further = load(), ["sevennet-0"], {"sevennet-0-22may2024", "sevennet-l3i5", "sevennet-mf-0"}
    place = checkpoints.location(tmp_path / "model_repository", catalogue.resolve("sevennet-l3i5"))
    place.parent.mkdir(parents=True)
    place.touch()
    assert set(at_hand(tmp_path, tmp_path / "var", catalogue, names)) == further
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert at_hand(tmp_path, tmp_path / "var", catalogue, names) == ["sevennet-l3i5"]


def test_a_full_disk_leaves_no_half_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    catalogue = load()
    with pytest.raises(SetupError, match="No space left"):
        checkpoints.place(catalogue, catalogue.resolve("lj-argon"), tmp_path, ROOT / "environments", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_second_service_on_the_same_state_is_refused(service: object) -> None:
    result = serve(service.state, free_ports(4))  # type: ignore[attr-defined]
    assert result.returncode != 0
    assert "running already" in result.stderr


def test_environments_hold_what_they_pin_and_conflict_where_they_must() -> None:
    """Each family's Python is its own: the same module name, another installation."""
    found = {}
    for name in ("sevennet", "chgnet"):
        code = "import numpy, torch; print(torch.__version__, numpy.__version__, torch.__file__)"
        python = ROOT / "environments" / name / "bin" / "python"
        found[name] = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
        ).stdout.split()
    assert all(values[0].startswith("2.13.0") for values in found.values())
    assert found["sevennet"][2] != found["chgnet"][2]


def _settings(state: Path) -> Settings:
    ports = dict(zip(("port", "grpc_port", "metrics_port", "http_port"), free_ports(4), strict=True))
    return load_settings(state=state, models=("lj-argon",), **ports)


def _requirements(folder: Path, text: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text(text + "\n")
    return path


def _unreachable(folder: Path) -> dict[str, str]:
    """Variables with which uv knows no package but from its index, which it asks once."""
    variables = {key: value for key, value in os.environ.items() if key not in ("UV_FIND_LINKS", "PIP_FIND_LINKS")}
    return variables | {"UV_CACHE_DIR": str(folder / "cache"), "UV_HTTP_RETRIES": "0", "PYTHONPATH": str(ROOT)}


def _build_on_a_terminal(root: Path, *within: str, **variables: str) -> tuple[int, str]:
    """Builds a small environment below ``root`` by a process on a terminal: its exit status, and what is on its screen."""
    _requirements(root, "six==1.17.0")
    _uv(root)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as screen:
        process = subprocess.Popen(
            [*within, sys.executable, "-c", BUILD, str(root)], env=_unreachable(root) | variables, stdout=screen, stderr=screen
        )
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other side was closed
        pass
    os.close(ours)
    return process.wait(60), seen.decode()


def _uv(root: Path) -> None:
    """Lets a root of its own use this project's uv."""
    (root / "environments").mkdir(exist_ok=True)
    local = root / "environments" / "uv"
    if (ROOT / "environments" / "uv").is_dir() and not local.exists():
        local.symlink_to(ROOT / "environments" / "uv")


def _build(environment: Environment, root: Path) -> None:
    _uv(root)
    environments.ensure(environment, root, print)
