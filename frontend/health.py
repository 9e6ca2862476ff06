"""``python -m frontend.health triton|gateway|worker``: whether a part does its work, for the health checks of containers.

Exit status 0 where it does, else 1 with the reason in one line.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence

import httpx

from forcegate.errors import ForcegateError, SetupError
from frontend import settings as all_settings
from frontend.settings import Settings

PATIENCE = 5.0


def triton(settings: Settings) -> str:
    """Why the models of FORCEGATE_MODELS, with the scheduler on those that are loaded, do not all answer; empty where they do."""
    from forcefields import catalogue
    from frontend.triton import restriction
    from frontend.triton.control import TritonControl
    from frontend.triton.reports import Reports, alive, current

    async def states() -> dict[str, str]:
        control = TritonControl(settings.model_copy(update={"triton_host": "127.0.0.1"}).grpc_address, restriction.key_of(settings))
        try:
            return {name: found.state for name, found in (await control.states()).items()}
        finally:
            await control.close()

    found, reports = asyncio.run(states()), Reports(settings.state / "reports")
    known = catalogue.load()
    wanted = [known.chosen(model).name for model in settings.models]
    if settings.scheduler == "on":  # it decides what is loaded, and may have unloaded these for others
        wanted = [name for name, state in found.items() if state == "READY"]
    missing = [name for name in wanted if found.get(name) != "READY"]
    # Triton goes on calling a model ready whose process has died.
    missing += [name for name in wanted if name not in missing and not alive(current(reports.read(name)).pid)]
    return f"not ready: {', '.join(missing)}" if missing else ""


def gateway(settings: Settings) -> str:
    """Why the gateway does not answer; empty where it does."""
    from frontend.supervisor.launch import address

    # On this machine the certificate is for another name.
    status = httpx.get(f"{address(settings)}/live", timeout=PATIENCE, trust_env=False, verify=False).status_code
    return "" if status == httpx.codes.OK else f"/live answers {status}"


def worker(settings: Settings) -> str:
    """Why the worker shows no sign of life in the database; empty where it does."""
    if not settings.worker_metrics_port:
        return "FORCEGATE_WORKER_METRICS_PORT is not set"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.internal_host, settings.internal_host)
    text = httpx.get(f"http://{host}:{settings.worker_metrics_port}/metrics", timeout=PATIENCE, trust_env=False).text
    found = re.search(r"^forcegate_worker_beat_timestamp_seconds (\S+)$", text, re.MULTILINE)
    age = time.time() - float(found[1]) if found else float("inf")
    return "" if age < settings.task_lease_seconds else f"the last sign of life is {age:.0f} s old"


PARTS: dict[str, Callable[[Settings], str]] = {"triton": triton, "gateway": gateway, "worker": worker}


def main(arguments: Sequence[str]) -> int:
    """Asks the part that is named; returns the exit status."""
    if len(arguments) != 1 or arguments[0] not in PARTS:
        reason = f"name one of {', '.join(PARTS)}"
    else:
        try:
            reason = PARTS[arguments[0]](all_settings.load())
        except (ForcegateError, SetupError, httpx.HTTPError) as error:
            reason = str(error) or type(error).__name__
    print(reason or "well")  # noqa: T201
    return int(bool(reason))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
