"""Processes that evaluate without our service: in process (``in_process.py``) and the peers, as seen from here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from forcefields import catalogue
from forcegate.errors import SetupError
from forcegate.relaxation.driver import Evaluated
from forcegate.structure import Structure
from frontend.settings import Settings
from frontend.supervisor import triton


class Refused(Exception):
    """The runtime refused what it was given, such as a structure that does not fit into memory."""


class Commanded:
    """A process that says ``{"ready": ...}`` in JSON on a line of standard output, then answers one command on each line of input.

    Raises:
        SetupError: it did not start; its log says why.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._output = log.open("wb")
        self._process = subprocess.Popen(
            command,
            env=dict(variables),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
        )
        self.ready = self._answer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Ends it, by ending what it reads."""
        self._process.communicate()
        self._output.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, **command: Any) -> Any:
        """The answer to one command.

        Raises:
            Refused: the answer is an error.
        """
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
            raise SetupError(f"{self._log.stem} ended with status {self._process.returncode}: {tail}", "")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Worker(Commanded):
    """One model, loaded in its family's environment, with the variables of the service's own model processes.

    Args:
        further: variables besides, or in place of these.
        log: ends the name of its log, where several have the same model.
    """

    def __init__(self, model: str, settings: Settings, further: Mapping[str, str] | None = None, log: str = "") -> None:
        command = [str(python_of(model, settings)), "-m", "benchmarks.in_process", model]
        path = settings.state / f"in-process-{model}{log}.log"
        super().__init__(command, triton.environment(settings) | dict(further or {}), path)

    def engine(self, atoms: int, count: int) -> float:
        """Seconds for ``count`` structures through the runtime."""
        return float(self.ask(do="engine", atoms=atoms, count=count))

    def bare(self, atoms: int, count: int, pack: int) -> float:
        """Seconds for ``count`` structures through the adapter alone, ``pack`` in each forward pass."""
        return float(self.ask(do="bare", atoms=atoms, count=count, pack=pack))

    def calculator(self, atoms: int, count: int) -> float:
        """Seconds for ``count`` structures through the package's own ASE calculator, one by one."""
        return float(self.ask(do="calculator", atoms=atoms, count=count))

    def single(self, atoms: int, calls: int) -> list[float]:
        """Seconds of each of ``calls`` evaluations of one structure through the runtime."""
        return [float(value) for value in self.ask(do="single", atoms=atoms, calls=calls)]

    def evaluate(self, given: Sequence[Structure]) -> tuple[float, list[Evaluated]]:
        """Seconds that the runtime takes for structures in one call, the way to it not counted, and its answers."""
        sent = [{name: getattr(each, name).tolist() for name in ("numbers", "positions", "cell", "pbc")} for each in given]
        answer = self.ask(do="evaluate", structures=sent)
        return float(answer["seconds"]), [
            Evaluated(each["energy"], np.array(each["forces"]), None if each["stress"] is None else np.array(each["stress"]))
            for each in answer["answers"]
        ]


def python_of(model: str, settings: Settings) -> Path:
    """The interpreter of the environment that serves ``model``."""
    families = catalogue.load()
    environment = settings.environments / families.family_of(families.resolve(model)).environment
    return environment.resolve() / "bin" / "python"
