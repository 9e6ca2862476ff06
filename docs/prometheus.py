"""``python -m docs.prometheus``: docs/prometheus.png, what Prometheus draws of a service while more and more clients use it.

docs/monitoring.md shows it. A service of its own is started on free ports, a Prometheus with the checked-in rules reads its
metrics, and a browser without a window takes the picture of Prometheus' own page. Both programs are looked for in PATH; Debian
has them: ``apt-get install prometheus chromium``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import yaml

from benchmarks.service import end_on_sigterm, free_ports, own, say
from benchmarks.structures import crystals
from docker.compose import FOLDER
from forcefields import catalogue
from forcegate import Client
from forcegate.errors import ForcegateError, SetupError
from frontend import settings as all_settings
from frontend.settings import Settings
from frontend.supervisor.process import die_with

PICTURE = Path(__file__).with_suffix(".png")
MODEL = "lj-argon"
CLIENTS = (2, 8, 32, 4)
"""Clients at once, one step after the other. One of two sends single structures, the other batches."""
ATOMS, BATCH = 32, 16
SCRAPE_SECONDS = 2
QUERIES = (
    "sum by (model) (rate(nv_inference_count[20s])) / sum by (model) (rate(nv_inference_exec_count[20s]))",
    "histogram_quantile(0.95, sum by (le, route) (rate(forcegate_request_seconds_bucket{model!=''}[20s])))",
)
"""Structures in a batch, and the time of a request in s: the panels from above to below."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1000, 1560)
DRAWING_MILLISECONDS = 20_000
"""Of the browser's own time, which runs ahead of the clock: requests and animations of the page end within it."""


def program(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Raises:
        SetupError: there is none.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise SetupError(f"There is no {' and no '.join(names)} here.", f"Debian: apt-get install {names[0]}.")


@contextmanager
def scraping(settings: Settings, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that reads the metrics of a service, with the checked-in rules, until the block ends."""
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    targets = {"gateway": settings.port, "triton": settings.metrics_port}
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()
    ]
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{SCRAPE_SECONDS}s")
    for name in config["rule_files"]:
        shutil.copy(FOLDER / "prometheus" / name, folder)
    with started(program("prometheus"), config, folder) as url:
        yield url


@contextmanager
def started(prometheus: str, config: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The address of a Prometheus with this configuration, from when it scrapes the one target of each job, until the block ends.

    Args:
        prometheus: path of the program.
        folder: for its configuration, data and log; the rule files are there.

    Raises:
        SetupError: it did not start, or does not scrape all of them after 30 s; its log says why.
    """
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        prometheus,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    parent = os.getpid()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=lambda: die_with(parent))
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while not _scrapes(url, len(config["scrape_configs"])):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SetupError("Prometheus did not start.", (folder / "prometheus.log").read_text()[-1000:])
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _scrapes(url: str, targets: int) -> bool:
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": "up == 1"}, timeout=5, trust_env=False)
        return answer.is_success and len(answer.json()["data"]["result"]) == targets
    except httpx.HTTPError:
        return False


def load(settings: Settings, clients: int, seconds: float) -> int:
    """So many clients ask for different structures, one request after the other; returns how many requests were answered."""
    until = time.monotonic() + seconds
    url = f"http://127.0.0.1:{settings.port}"

    def use(number: int) -> int:
        structures = crystals(catalogue.load().resolve(MODEL), ATOMS, BATCH, seed=number)
        answers = 0
        with Client(url) as client:
            while time.monotonic() < until:
                with suppress(ForcegateError):  # a machine that is busy refuses some
                    if number % 2:
                        client.batch(structures, MODEL)
                    else:
                        client.single_point(structures[answers % BATCH], MODEL)
                    answers += 1
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(use, range(clients)))


def photograph(url: str, seconds: float, path: Path) -> None:
    """The page of Prometheus with the queries drawn over the last ``seconds``.

    Raises:
        SetupError: there is no browser, or it took no picture.
    """
    page: list[tuple[str, str]] = []
    for at, expression in enumerate(QUERIES):
        drawn = {"expr": expression, "tab": "0", "stacked": "0", "range_input": f"{seconds:.0f}s"}
        page += [(f"g{at}.{name}", value) for name, value in drawn.items()]
    with tempfile.TemporaryDirectory(prefix="forcegate-browser-") as home:
        command = [
            program(*BROWSERS),
            "--headless",
            f"--user-data-dir={home}",
            # Its own box of namespaces is not to be had for root; the page is ours.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--virtual-time-budget={DRAWING_MILLISECONDS}",
            f"--screenshot={path.resolve()}",
            f"{url}/graph?{urlencode(page)}",
        ]
        path.unlink(missing_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode or not path.is_file():
        raise SetupError("The browser took no picture.", done.stderr[-1000:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts all of it, and writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m docs.prometheus", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help=f"of each of {len(CLIENTS)} steps")
    seconds = parser.parse_args(arguments).seconds
    end_on_sigterm()
    for names in (("prometheus",), BROWSERS):  # before anything takes time
        program(*names)
    with tempfile.TemporaryDirectory(prefix="forcegate-prometheus-") as folder:
        state = Path(folder)
        with own((MODEL,), state / "service", all_settings.load()) as settings, scraping(settings, state) as url:
            began = time.monotonic()
            for clients in CLIENTS:
                answers = load(settings, clients, seconds)
                say(f"{clients} clients: {answers / seconds:.1f} requests answered a second")
            photograph(url, time.monotonic() - began, PICTURE)
    say(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    try:
        main()
    except ForcegateError as error:
        raise SystemExit(str(error)) from None
