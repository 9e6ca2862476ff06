"""``<environment>/bin/python -m forcefields.runtime.export COMMAND ANSWER ...``: what an export asks of a family's environment.

The answer goes into the JSON file ANSWER, since packages print to stdout whatever they like.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forcefields import catalogue
from forcefields.catalogue import Family, Variant, variant_from
from forcefields.runtime import gate, golden, loading
from forcefields.runtime.engine import Engine
from forcefields.runtime.settings import ModelSettings, keep_out_of_home
from forcefields.verification import verify_package
from forcegate.errors import EnvironmentBroken, ForcegateError, GateFailed


class Unreadable(Exception):
    """The package cannot make a force field of the checkpoint."""


def check(family: str) -> dict[str, Any]:
    """Imports the adapter, and with it the family's package, and makes sure that the package is the pinned one."""
    found = catalogue.load().families[family]
    verify_package(found)
    return {"version": found.version, "adapter": loading.adapter(found).__name__}


def examine(family: str, path: str, entry: str) -> dict[str, Any]:
    """The elements and the cutoff (A) of a checkpoint; ``entry`` is its entry as in family.toml, in JSON, with neither."""
    found = catalogue.load().families[family]
    verify_package(found)
    known = found.variants[0]
    draft = variant_from(family, {"name": "own", "elements": "1", "cutoff": known.cutoff} | json.loads(entry))
    force_field = _read(found, draft, Path(path))
    return {"elements": sorted(int(number) for number in force_field.elements), "cutoff": float(force_field.cutoff)}


def judge(name: str, path: str, device: str) -> dict[str, Any]:
    """Runs the gate on the checkpoint at ``path``; where no golden energies are recorded, they are when it has passed."""
    settings = ModelSettings.from_environment()
    families = catalogue.load()
    variant = families.resolve(name)
    family = families.family_of(variant)
    try:
        force_field = loading.load(families, variant, Path(path), device)
    except ForcegateError:
        raise
    except Exception as error:
        raise Unreadable(_told(error)) from error
    engine = Engine(force_field, variant, loading.limits(variant, settings.max_atoms, settings.memory_gb))
    report = gate.pass_or_raise(engine, family, device, settings)
    recorded = golden.recorded(family.golden, variant, settings.state) is None
    if recorded:
        structures = golden.structures(variant)
        jobs = engine.evaluate(list(structures.values()))
        energies = {key: job.result.energy for key, job in zip(structures, jobs, strict=True) if job.result}
        golden.record(golden.of_state(settings.state, variant), variant, energies)
    checks = [asdict(check) for check in report.checks]
    return {"mode": report.mode, "checks": checks, "recorded": recorded}


def _read(family: Family, variant: Variant, path: Path) -> Any:
    try:
        return loading.adapter(family).load(path, variant, "cpu")
    except Exception as error:
        raise Unreadable(_told(error)) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "examine": examine, "judge": judge}


def main() -> None:
    """Runs one command and writes what it gave: ``result``, or ``error`` as it crosses Triton, or ``unreadable``."""
    command, answer, *arguments = sys.argv[1:]
    keep_out_of_home(ModelSettings.from_environment().state)
    told: dict[str, Any]
    try:
        told = {"result": COMMANDS[command](*arguments)}
    except Unreadable as error:
        traceback.print_exc()
        told = {"unreadable": str(error)}
    except ForcegateError as error:
        told = {"error": error.to_wire()}
    except Exception as error:
        traceback.print_exc()
        failed = GateFailed if command == "judge" else EnvironmentBroken
        told = {"error": failed(f"{arguments[0]}: {_told(error)}").to_wire()}
    Path(answer).write_text(json.dumps(told, default=float))


if __name__ == "__main__":
    main()
