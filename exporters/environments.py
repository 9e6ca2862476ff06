"""Builds what models and server run in: one pinned virtual environment per family, and one with tritonserver.

An environment is complete when its stamp is there and says what it was built from; anything else is built again. Two builders
at once wait for each other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.lock import locked
from forcefields.catalogue import Family
from forcegate.errors import SetupError

TRITON = "triton"
STAMP = ".forcegate.json"
FREE_DISK_GB = {"family": 3.0, TRITON: 0.6}
"""Free disk below which building is not begun: a family with a CUDA build of torch needs more, and pip's words for a full disk
come late and are long."""

KEPT_BYTES = 4096
"""Of what uv says, for the error when it fails."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Sequences that colour text and move a terminal's cursor."""
DECORATION = re.compile("[│├╰▶─×⠀-⣿]")
"""Lines and spinners that uv draws."""
OFFLINE = (
    "dns error",
    "failed to fetch",
    "error sending request",
    "network is unreachable",
    "connection refused",
    "network was disabled",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """One environment to be built.

    Attributes:
        name: its folder below ``environments/``.
        requirements: file with its pins.
        project: whether this repository is installed into it (without dependencies, so that pins stay pins).
    """

    name: str
    requirements: Path
    project: bool

    @property
    def overrides(self) -> Path:
        """File beside the requirements, where there is one, that replaces what a package asks for and never imports."""
        return self.requirements.with_name("overrides.txt")

    def fingerprint(self, root: Path) -> str:
        """A hash of all that the environment is built from."""
        digest = hashlib.sha256(self.requirements.read_bytes())
        digest.update(self.overrides.read_bytes() if self.overrides.is_file() else b"")
        digest.update(f"{sys.version_info[:3]} {sys._base_executable} {root.resolve() if self.project else ''}".encode())  # type: ignore[attr-defined]
        return digest.hexdigest()


def of_family(family: Family, folder_of_environments: dict[str, Path]) -> Environment:
    """The environment of a family; one that shares another's takes that one's requirements."""
    return Environment(family.environment, folder_of_environments.get(family.environment, family.requirements), project=True)


def of_triton(root: Path) -> Environment:
    """The environment of the embedded tritonserver. Its wheel alone: of its dependencies the server needs none."""
    return Environment(TRITON, root / "triton_configs" / "requirements.txt", project=False)


def stamp(environment: Environment, root: Path) -> dict[str, Any]:
    """What the environment was built from, and in how many seconds; empty where it is not there or was not finished."""
    try:
        found = json.loads((root / "environments" / environment.name / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def complete(environment: Environment, root: Path) -> bool:
    """Whether the environment is there and up to date."""
    return bool(stamp(environment, root).get("fingerprint") == environment.fingerprint(root))


def ensure(environment: Environment, root: Path, say: Say, again: bool = False) -> bool:
    """Builds an environment unless it is complete; ``again`` builds it in any case.

    Returns:
        Whether it was built.

    Raises:
        SetupError: no uv, no disk, no network, no libpython: one sentence each.
    """
    if complete(environment, root) and not again:
        return False
    waiting = f"environment {environment.name}: another process is building it, waiting"
    with locked(root / "environments" / f".{environment.name}.lock", say, waiting):
        if complete(environment, root) and not again:
            return False
        _build(environment, root, say)
    return True


def _build(environment: Environment, root: Path, say: Say) -> None:
    folder = root / "environments" / environment.name
    if folder.parent.is_dir() and not os.access(folder.parent, os.W_OK):  # an image: what is in it was decided when it was built
        raise SetupError(
            f"The environment {environment.name} is not there, or from other pins, and {folder.parent} cannot be written.",
            "Build the image with this family among FAMILIES (docs/deployment.md), or serve other models.",
        )
    _enough_disk(folder.parent, FREE_DISK_GB.get(environment.name, FREE_DISK_GB["family"]))
    library = _libpython()
    pins = [line for line in environment.requirements.read_text().splitlines() if line and not line.startswith("#")]
    say(f"environment {environment.name}: installing {len(pins)} pinned packages")
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    _uv(root, "venv", "--quiet", "--python", sys._base_executable, str(folder))  # type: ignore[attr-defined]
    extra = [] if environment.project else ["--no-deps"]
    extra += ["--override", str(environment.overrides)] if environment.overrides.is_file() else []
    _uv(root, "pip", "install", "--python", python, *extra, "-r", str(environment.requirements))
    if environment.project:
        _uv(root, "pip", "install", "--quiet", "--python", python, "--no-deps", "--editable", str(root))
    # The stub loads the libpython that it finds first. The system's, of another patch level, would break imports.
    (folder / "lib" / library.name).unlink(missing_ok=True)
    (folder / "lib" / library.name).symlink_to(library)
    if environment.name == TRITON:
        _arrange_backend(folder)
    (folder / STAMP).write_text(
        json.dumps({"fingerprint": environment.fingerprint(root), "seconds": round(time.perf_counter() - started, 1)})
    )
    say(f"environment {environment.name}: ready after {time.perf_counter() - started:.0f} s")


def _arrange_backend(folder: Path) -> None:
    """A backend directory of ours with the stub for this Python beside the backend: Triton looks for it there alone."""
    wheel = site_packages(folder) / "pytriton" / "tritonserver"
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for path in (wheel / "backends" / "python").iterdir():
        (target / path.name).symlink_to(path.resolve())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise SetupError(f"Triton's wheel has no stub for Python {version}.", "Use Python 3.11 or 3.12.")
    (target / stub.name).unlink(missing_ok=True)
    (target / stub.name).symlink_to(stub.resolve())
    for executable in (stub, wheel / "bin" / "tritonserver"):
        executable.chmod(0o755)


def site_packages(folder: Path) -> Path:
    """Where an environment's packages are."""
    return next(iter(sorted(folder.glob("lib/python3*/site-packages"))), folder / "lib")


def size(folder: Path) -> int:
    """Bytes of disk that an environment takes. uv links files from its cache, so several environments may share them."""
    seen: dict[tuple[int, int], int] = {}
    for path, _folders, files in os.walk(folder):
        for name in files:
            found = os.lstat(os.path.join(path, name))
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def check(environment: Environment, root: Path) -> None:
    """Makes sure that an environment can be loaded from; Triton 2.51 hangs for ever on one without libpython.

    Raises:
        SetupError: what is missing.
    """
    folder = root / "environments" / environment.name
    if not complete(environment, root):
        raise SetupError(
            f"The environment {environment.name} is not built, or from other pins than now.",
            f"Run `forcegate env build {environment.name}`.",
        )
    library = folder / "lib" / _libpython().name
    if not library.exists():
        raise SetupError(
            f"The environment {environment.name} has no {library.name}.",
            f"Run `forcegate env build --again {environment.name}`.",
        )


def _libpython() -> Path:
    """The shared library of the Python that the environments are made from.

    Raises:
        SetupError: this Python has none.
    """
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
    ]
    for folder in folders:
        if ".so" in name and folder and (path := Path(folder) / name).exists():
            return path.resolve()
    wanted = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    raise SetupError(
        f"{wanted} of {sys.base_prefix} was not found, and Triton's model processes need it.",
        f"Install it (Debian and Ubuntu: apt-get install libpython{sys.version_info.major}.{sys.version_info.minor}), "
        "or use a Python that was built with --enable-shared.",
    )


def _uv(root: Path, *arguments: str) -> None:
    """Runs uv with the machine's own settings; its progress goes to the terminal, and the end of it into an error."""
    environment = dict(os.environ)
    environment.pop("VIRTUAL_ENV", None)
    if "UV_FIND_LINKS" not in environment and environment.get("PIP_FIND_LINKS"):
        environment["UV_FIND_LINKS"] = environment["PIP_FIND_LINKS"]
    local = root / "environments" / "uv" / "bin" / "uv"
    program = str(local) if local.exists() else shutil.which("uv")
    if program is None:
        raise SetupError("uv was not found.", "Run `make serve`, which installs it into environments/uv.")
    status, said = _watched([program, *arguments], environment)
    if status:
        _explain(arguments, said)


def _watched(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Runs a program, shows what it says where there is a terminal, and returns its exit status and the end of what it said."""
    terminal = sys.stderr.isatty()
    # uv draws its progress for a terminal alone, so it gets one of the same width.
    reading, writing = os.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writing, termios.tcgetwinsize(sys.stderr))
    said = b""
    try:
        with open(writing, "wb", closefd=True) as output:
            process = subprocess.Popen(command, env=environment, stderr=output)
        try:
            while chunk := _read(reading):
                said = (said + chunk)[-KEPT_BYTES:]
                if terminal:
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.buffer.flush()
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    finally:
        os.close(reading)
    return status, said.decode(errors="replace")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError as error:
        if error.errno == errno.EIO:  # how a pty says that its other side was closed
            return b""
        raise


def _explain(arguments: tuple[str, ...], said: str) -> None:
    said = " ".join(DECORATION.sub(" ", CONTROL.sub("", said)).split())
    low = said.lower()
    # Before the network: a download that fills the disk is also one that failed.
    if "no space left" in low or "quota exceeded" in low:
        raise SetupError("The disk is full.", "Make room below environments/ and in uv's cache (`uv cache dir`).")
    if any(sign in low for sign in OFFLINE):
        raise SetupError(
            "The package registry cannot be reached.", "Check the network, or set UV_FIND_LINKS to a folder with the wheels."
        )
    raise SetupError(f"uv {arguments[0]} failed: {said[-400:] or 'it said nothing'}", "")


def _enough_disk(folder: Path, need: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if free < need:
        raise SetupError(
            f"Only {free:.1f} GB of disk are free; building this environment takes up to {need:.1f} GB.", "Make room and try again."
        )
