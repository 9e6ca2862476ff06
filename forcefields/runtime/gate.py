"""The readiness gate: a model serves nothing until it has shown that what it says is physics.

Energies against the values recorded at export; forces and stress against finite differences; a batch against its structures
one by one; and the symmetries that any force field has.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from forcefields.base import Result
from forcefields.catalogue import HERE, Family, Variant
from forcefields.cost import Cost
from forcefields.processes import processes, siblings
from forcefields.runtime import golden
from forcefields.runtime.arithmetic import Arithmetic
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.settings import ModelSettings
from forcegate.contract import VOIGT
from forcegate.errors import ForcegateError, GateFailed
from forcegate.structure import Structure

log = logging.getLogger(__name__)

STEP = 0.02
"""A, of the displacements. Large for float32 energies; the fourth-order formula keeps the truncation error below 1e-3 eV/A."""
STRAIN = 0.004
"""Step of the strains, for the same reason."""
FOURTH_ORDER = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
"""Central difference of fourth order: f'(0) = sum c f(k h) / h (Fornberg, Math. Comp. 51, 699 (1988))."""
DIRECTIONS = 3
TOLERANCES = "of tolerance"
"""Unit of a check of energy, forces and stress together: the largest of the three deviations, each over its own tolerance."""


@dataclass(frozen=True)
class Check:
    """One check of the gate: the largest deviation, None where the check is skipped as declared, against its tolerance."""

    name: str
    passed: bool
    deviation: float | None
    tolerance: float
    unit: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class GateReport:
    """All checks; ``mode`` is ``full``, or ``golden`` when the full gate had been passed before by the same combination."""

    mode: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


class Gate:
    """Runs the checks on one engine."""

    def __init__(self, engine: Engine, recorded: dict[str, float] | None) -> None:
        self._engine = engine
        self._tolerances = engine.variant.gate
        self._recorded = recorded
        self._structures = golden.structures(engine.variant)
        if not self._structures:
            raise GateFailed(f"{engine.variant.name} knows none of the elements of the gate's structures.", "Add one to golden.py.")
        self._results = dict(zip(self._structures, self._evaluate(list(self._structures.values())), strict=True))
        self._crystal = next(name for name, s in self._structures.items() if s.pbc.all())

    def run(self, full: bool) -> GateReport:
        """All checks, or the golden energies alone."""
        checks: list[tuple[str, str, float, Callable[[], tuple[float, str]]]] = [
            ("golden", "eV/atom", self._tolerances.energy, self._golden),
        ]
        if full:
            checks += [
                ("forces", "eV/A", self._tolerances.forces, self._forces),
                ("stress", "eV/A^3", self._tolerances.stress, self._stress),
                ("batch", TOLERANCES, 1.0, self._batch),
                ("translation", TOLERANCES, 1.0, lambda: self._same(self._translated())),
                ("lattice shift", TOLERANCES, 1.0, lambda: self._same(self._lattice_shifted())),
                ("permutation", TOLERANCES, 1.0, self._permutation),
                ("left-handed cell", TOLERANCES, 1.0, lambda: self._same(self._left_handed())),
                ("isolated atom", "eV/A", self._tolerances.invariance_forces, self._isolated_atom),
            ]
        return GateReport("full" if full else "golden", tuple(self._check(*entry) for entry in checks))

    def _check(self, name: str, unit: str, tolerance: float, measure: Callable[[], tuple[float, str]]) -> Check:
        started = time.perf_counter()
        if name in self._tolerances.skip:
            return Check(name, True, None, tolerance, unit, 0.0, f"declared: {self._tolerances.skip[name]}")
        deviation, note = measure()
        return Check(name, bool(deviation <= tolerance), float(deviation), tolerance, unit, time.perf_counter() - started, note)

    def _evaluate(self, structures: Sequence[Structure], outputs: frozenset[str] = DEFAULT_OUTPUTS) -> list[Result]:
        results = []
        for job in self._engine.evaluate(structures, outputs=outputs):
            if job.result is None:
                raise GateFailed(f"{self._engine.variant.name} cannot evaluate a structure of its gate: {job.error}", "")
            results.append(job.result)
        return results

    def _golden(self) -> tuple[float, str]:
        if self._recorded is None:
            return 0.0, f"no recorded values for this checkpoint in {self._engine.variant.dtype}"
        deviations = [
            abs(self._results[name].energy - energy) / len(self._structures[name]) for name, energy in self._recorded.items()
        ]
        return max(deviations), f"{len(deviations)} structures"

    def _forces(self) -> tuple[float, str]:
        """-dE/dx along random directions in every golden structure."""
        generator = np.random.default_rng(1)
        displaced, expected = [], []
        for name, structure in self._structures.items():
            for _ in range(DIRECTIONS):
                direction = generator.normal(size=(len(structure), 3))
                direction /= np.linalg.norm(direction)
                expected.append(float(-np.sum(_forces(self._results[name]) * direction)))
                displaced += [replace(structure, positions=structure.positions + k * STEP * direction) for k, _ in FOURTH_ORDER]
        return float(np.abs(self._slopes(displaced, STEP) - expected).max()), f"{len(expected)} directions, fourth order"

    def _stress(self) -> tuple[float, str]:
        """(1/V) dE/de for the six components of strain."""
        structure = self._structures[self._crystal]
        strained = []
        for i, j in VOIGT:
            generator = np.zeros((3, 3))
            generator[i, j] += 0.5
            generator[j, i] += 0.5
            for k, _ in FOURTH_ORDER:
                deformation = np.eye(3) + k * STRAIN * generator
                strained.append(replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation))
        slopes = self._slopes(strained, STRAIN) / abs(np.linalg.det(structure.cell))
        return float(np.abs(slopes - self._results[self._crystal].stress).max()), f"{self._crystal}, fourth order"

    def _slopes(self, structures: Sequence[Structure], step: float) -> np.ndarray:
        energies = np.array([result.energy for result in self._evaluate(structures, frozenset({"energy"}))]).reshape(
            -1, len(FOURTH_ORDER)
        )
        return energies @ np.array([weight for _, weight in FOURTH_ORDER]) / step

    def _batch(self) -> tuple[float, str]:
        """Every golden structure alone against the batch of all of them."""
        deviations = []
        for name, structure in self._structures.items():
            deviations.append(self._difference(self._evaluate([structure])[0], self._results[name], len(structure)))
        return max(deviations), f"{len(deviations)} structures"

    def _same(self, moved: Structure) -> tuple[float, str]:
        (result,) = self._evaluate([moved])
        return self._difference(result, self._results[self._crystal], len(moved)), self._crystal

    def _difference(self, one: Result, other: Result, atoms: int) -> float:
        """The largest of the deviations in energy per atom, forces and stress, each over its tolerance."""
        allowed = self._tolerances
        energy = abs(one.energy - other.energy) / atoms / allowed.invariance_energy
        forces = float(np.abs(_forces(one) - _forces(other)).max()) / allowed.invariance_forces
        stress = 0.0
        if one.stress is not None and other.stress is not None and not np.isnan(one.stress).any():
            stress = float(np.abs(one.stress - other.stress).max()) / allowed.invariance_stress
        return max(energy, forces, stress)

    def _translated(self) -> Structure:
        structure = self._structures[self._crystal]
        return replace(structure, positions=structure.positions + np.array([0.71, -1.13, 2.37]))

    def _lattice_shifted(self) -> Structure:
        structure = self._structures[self._crystal]
        shifts = np.random.default_rng(2).integers(-3, 4, structure.positions.shape)
        return replace(structure, positions=structure.positions + shifts @ structure.cell)

    def _left_handed(self) -> Structure:
        structure = self._structures[self._crystal]
        return replace(structure, cell=structure.cell[[1, 0, 2]])

    def _permutation(self) -> tuple[float, str]:
        structure = self._structures[self._crystal]
        (result,) = self._evaluate([replace(structure, numbers=structure.numbers[::-1], positions=structure.positions[::-1])])
        result.forces = _forces(result)[::-1]
        return self._difference(result, self._results[self._crystal], len(structure)), self._crystal

    def _isolated_atom(self) -> tuple[float, str]:
        number = self._structures[self._crystal].numbers[:1]
        (result,) = self._evaluate([Structure(number, np.zeros((1, 3)))])
        stress = result.stress is not None and not np.isnan(result.stress).all()
        return float("inf") if stress else float(np.abs(_forces(result)).max()), "forces, and no stress"


def _forces(result: Result) -> np.ndarray:
    assert result.forces is not None
    return result.forces


def pass_or_raise(engine: Engine, family: Family, device: str, settings: ModelSettings) -> GateReport:
    """Runs the gate: in full, or its golden part when this very combination has passed the full one before.

    Raises:
        GateFailed: names the checks that failed, with their deviations.
    """
    memory = _memory(settings.state, engine.variant)
    key = combination(engine.variant, family, device, os.environ.get("OMP_NUM_THREADS", ""), settings)
    before = _passed_before(memory, key) if settings.gate == "cached" else None
    report = Gate(engine, golden.recorded(family.golden, engine.variant, settings.state)).run(full=before is None)
    failed = [check for check in report.checks if not check.passed]
    if failed:
        memory.unlink(missing_ok=True)
        told = "; ".join(f"{c.name} deviates by {c.deviation:.2g} {c.unit} (tolerance {c.tolerance:.2g})" for c in failed)
        raise GateFailed(
            f"{engine.variant.name} did not pass its readiness gate: {told}.", "Its numbers cannot be trusted on this machine."
        )
    if before is None:
        write_json(memory, {"key": key, "checks": [asdict(check) for check in report.checks]})
        return report
    # The checks that were not run again are shown with what they gave when they were.
    remembered = [Check(**check) for check in before if check["name"] != "golden"]
    return GateReport("golden", (*report.checks, *(replace(check, seconds=0.0) for check in remembered)))


def passed(variant: Variant, family: Family, state: Path, threads: str) -> list[dict[str, Any]] | None:
    """What the full gate gave when this very combination passed it on the CPU, or None when it has not."""
    return _passed_before(_memory(state, variant), combination(variant, family, "cpu", threads, ModelSettings(state)))


def memory_of_calibration(settings: ModelSettings, variant: Variant, family: Family, device: str) -> tuple[Path, str]:
    """Where a model's calibration is remembered, and what it depends on."""
    key = combination(variant, family, device, os.environ.get("OMP_NUM_THREADS", ""), settings)
    return settings.state / "calibrations" / variant.dtype / f"{variant.name}.json", key


def _memory(state: Path, variant: Variant) -> Path:
    return state / "gates" / variant.dtype / f"{variant.name}.json"


def combination(variant: Variant, family: Family, device: str, threads: str, settings: ModelSettings) -> str:
    """A hash of all that the gate's outcome depends on: checkpoint, code, packages, device, its arithmetic, threads."""
    digest = hashlib.sha256(settings.compile.encode())
    if device != "cpu":
        # Whether `auto` finds cuEquivariance is a matter of what is installed, which the requirements do not say.
        policy = settings.matmul_precision, settings.cuequivariance, find_spec("cuequivariance_torch"), settings.neighbours
        digest.update(repr(policy).encode())
    for part in (variant, family.version, device, _device_name(device), threads):
        digest.update(repr(part).encode())
    # What every family shares, and this family's own: a change in another one is no reason to measure this one again.
    shared = [*HERE.glob("*.py"), *(HERE / "runtime").glob("*.py"), *(HERE.parent / "forcegate").glob("*.py")]
    for path in sorted([*shared, *family.folder.glob("*.py")]):
        digest.update(path.read_bytes())
    digest.update(family.requirements.read_bytes() if family.requirements.is_file() else b"")
    return digest.hexdigest()


def _device_name(device: str) -> str:
    if device == "cpu":
        return os.uname().machine
    import torch

    return str(torch.cuda.get_device_name(device))


def _passed_before(memory: Path, key: str) -> list[dict[str, Any]] | None:
    try:
        data = json.loads(memory.read_text())
    except (OSError, ValueError):
        return None
    return data["checks"] if data.get("key") == key else None


def write_report(
    state: Path, variant: Variant, device: str, seconds: float, report: GateReport, cost: Cost, arithmetic: Arithmetic
) -> None:
    """Tells supervisor and gateway that a model is ready, how its gate went, and what its passes cost."""
    path = state / "reports" / f"{variant.name}.json"
    write_json(
        path,
        {
            "model": variant.name,
            "ready": True,
            "error": None,
            "gate": {"mode": report.mode, "checks": [asdict(check) for check in report.checks]},
            "seconds": round(seconds, 3),
            "device": device,
            "dtype": variant.dtype,
            "arithmetic": arithmetic.as_dict(variant.dtype),
            "checkpoint_sha256": variant.checkpoint.sha256,
            "cost": cost.as_dict(),
            "pid": os.getpid(),
            "pids": [*_others(path), os.getpid()],
            "namespace": processes(),
            "resident_mb": _resident_mb(),
            "time": time.time(),
        },
    )


def write_failure(state: Path, name: str, error: ForcegateError) -> None:
    """Tells supervisor and gateway why a model is not served."""
    path, told = state / "reports" / f"{name}.json", error.as_dict()
    process = {"pid": os.getpid(), "pids": _others(path), "namespace": processes()}
    write_json(path, {"model": name, "ready": False, "error": told, **process, "time": time.time()})


def _others(path: Path) -> list[int]:
    """The processes of the model that run beside this one: its other instances, or a copy that this one replaces."""
    try:
        return siblings(map(int, json.loads(path.read_text()).get("pids", ())))
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a file that is always whole. A state folder that cannot be written costs the report, not the model."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(data, default=str))
        os.replace(partial, path)
    except OSError as error:
        log.warning("the report could not be written", extra={"path": path.name, "error": str(error)})


def _resident_mb() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
