"""The process that evaluates without a server (``benchmarks/in_process.py``), as seen from here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from forcefields import catalogue
from forcegate.errors import SetupError
from frontend.settings import Settings
from frontend.supervisor import triton


class Refused(Exception):
    """The runtime refused what it was given, such as a structure that does not fit into memory."""


class Worker:
    """One model, loaded in its family's environment, with the variables of the service's own model processes.

    Raises:
        SetupError: it did not start; its log says why.
    """

    def __init__(self, model: str, settings: Settings) -> None:
        families = catalogue.load()
        environment = settings.environments / families.family_of(families.resolve(model)).environment
        self._log = settings.state / f"in-process-{model}.log"
        self._output = self._log.open("wb")
        self._process = subprocess.Popen(
            [str(environment.resolve() / "bin" / "python"), "-m", "benchmarks.in_process", model],
            env=triton.environment(settings),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Ends it."""
        self._process.communicate()
        self._output.close()

    def engine(self, atoms: int, count: int) -> float:
        """Seconds for ``count`` structures through the runtime."""
        return float(self._ask(do="engine", atoms=atoms, count=count))

    def bare(self, atoms: int, count: int, pack: int) -> float:
        """Seconds for ``count`` structures through the adapter alone, ``pack`` in each forward pass."""
        return float(self._ask(do="bare", atoms=atoms, count=count, pack=pack))

    def calculator(self, atoms: int, count: int) -> float:
        """Seconds for ``count`` structures through the package's own ASE calculator, one by one."""
        return float(self._ask(do="calculator", atoms=atoms, count=count))

    def single(self, atoms: int, calls: int) -> list[float]:
        """Seconds of each of ``calls`` evaluations of one structure through the runtime."""
        return [float(value) for value in self._ask(do="single", atoms=atoms, calls=calls)]

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["value"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = " ".join(self._log.read_text(errors="replace").split())[-400:]
            raise SetupError(f"The in-process evaluation ended with status {self._process.returncode}: {tail}", "")
        answer: dict[str, Any] = json.loads(line)
        return answer
