"""What ``forcegate serve`` prints and keeps: addresses that can be used, words as they are, logs that stay short."""

from __future__ import annotations

import asyncio
import io
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console

from forcefields import catalogue
from forcegate.errors import GateFailed, SetupError, UnsupportedDtype
from frontend import settings as all_settings
from frontend.supervisor import launch, process
from frontend.supervisor.process import ChildProcess
from frontend.supervisor.service import Loaded


@pytest.mark.parametrize("words", ["[enforce fail at alloc.cc:176] no memory", "cannot read [/tmp/a]", "a [red]herring", "end\\"])
def test_what_errors_say_is_printed_as_it_is(words: str) -> None:
    screen = io.StringIO()
    console = Console(file=screen, highlight=False, soft_wrap=True, width=132)
    launch._say(console, words)
    launch._print_outcomes(console, [Loaded(catalogue.load().resolve("lj-argon"), 1.0, GateFailed(words), {})])
    said, *_table, error = screen.getvalue().splitlines()
    assert said.endswith(f" {words}")
    assert error == f"lj-argon: {GateFailed(words)}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8765"),
        ("0.0.0.0", "http://127.0.0.1:8765"),
        ("::", "http://[::1]:8765"),
        ("::1", "http://[::1]:8765"),
        ("forces.example.org", "http://forces.example.org:8765"),
    ],
)
def test_the_address_printed_is_one_to_go_to(host: str, url: str) -> None:
    settings = all_settings.load(host=host, port=8765)
    lines = list(launch._where_to_go(settings, [Loaded(catalogue.load().resolve("lj-argon"), 1.0, None, {})]))
    assert lines[0].startswith(f"REST     {url} ")
    assert f"curl -s {url}/api/v1/single_point" in lines[-1]


def test_a_listener_on_the_ipv6_wildcard_is_reached_at_that_address() -> None:
    async def reach() -> None:
        try:
            server = await asyncio.start_server(lambda _reader, writer: writer.close(), "::", 0)
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.sockets[0].getsockname()[1]
        host = launch.address(all_settings.load(host="::", port=port)).removeprefix("http://[").split("]")[0]
        with socket.create_connection((host, port), 5):
            pass
        server.close()

    asyncio.run(reach())


def test_the_owner_of_a_state_folder_is_known_while_it_lives(tmp_path: Path) -> None:
    settings = all_settings.load(state=tmp_path, port=8765)
    assert launch.owner(settings) is None
    with launch._owned(settings):
        told = launch.owner(settings)
        assert told is not None
        assert told["url"] == "http://127.0.0.1:8765"
        with pytest.raises(SetupError, match="running already"), launch._owned(settings):
            pass
    assert launch.owner(settings) is None


WRITER = """
import sys, time
for number in range(100_000):
    print(f"line {number:06d} " + "x" * 87, flush=True)
    if number % 100 == 0:
        time.sleep(0.02)
"""


def test_a_log_stays_short_while_its_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes a line, 100 lines at least every 20 ms, and a limit of 50 kB: without it there would be 10 MB."""
    monkeypatch.setattr(process, "LARGEST_LOG", 50_000)
    monkeypatch.setattr(process, "LOG_SECONDS", 0.05)

    async def watch() -> None:
        child = ChildProcess("writer", tmp_path / "writer.log")
        await child.start([sys.executable, "-c", WRITER], {})
        keeper = asyncio.create_task(process.keep_short([child.log, tmp_path / "none.log"]))
        for _ in range(600):
            await asyncio.sleep(0.05)
            if _first(child.log) > 3_000:
                break
        keeper.cancel()
        await child.stop(5)

    asyncio.run(watch())
    log, old = tmp_path / "writer.log", tmp_path / "writer.old"
    assert _first(log) > 3_000, "it was emptied several times, and the process went on at its beginning"
    assert old.read_bytes().startswith(b"line ")
    assert b"\0" not in log.read_bytes()
    numbers = [int(line.split()[1]) for line in (old.read_text() + log.read_text()).splitlines() if len(line) == 99]
    assert numbers == sorted(numbers)
    assert len(numbers) >= 500, "what was set aside last is kept"
    # A loaded machine may look late; still far from all that was written.
    assert log.stat().st_size + old.stat().st_size < 100 * numbers[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["writer.log", "writer.old"]


def _first(log: Path) -> int:
    """The number of the first line, 0 where there is none."""
    with log.open() as file:
        line = file.readline()
    return int(line.split()[1]) if len(line) == 100 else 0


def test_a_model_may_be_named_with_a_dtype_and_once() -> None:
    known = catalogue.load()
    settings = all_settings.load(models="mace-mp:float64,lj-argon,mace-mp-0-medium:float64")
    assert launch._dtypes(settings, known) == {"mace-mp-0-medium": "float64", "lj-argon": "float64"}
    with pytest.raises(SetupError, match="float64 and in float32"):
        launch._dtypes(all_settings.load(models="mace-mp:float64,mace-mp"), known)
    with pytest.raises(UnsupportedDtype, match="float32"):
        launch._dtypes(all_settings.load(models="sevennet-0:float64"), known)
