"""Samples of molecular dynamics: what is recorded, averaged with its error, and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.units import bar

from forcegate.calculations import geometry

if TYPE_CHECKING:
    from forcegate.calculations.stability import StabilityParameters

BLOCKS = 8
"""Blocks of a mean's error: few enough to be longer than correlations, many enough for an estimate."""

DRIFT_OF = {"nve": "total energy", "npt": "extended energy", "nvt": "potential energy"}


@dataclass(frozen=True)
class Criterion:
    """One condition of stability: ``value`` was to be at most ``limit``, in ``unit``."""

    name: str
    value: float | None
    limit: float | None
    unit: str
    passed: bool
    explanation: str


class Samples:
    """Time series of one run, measured from the structure ``start``."""

    def __init__(self, start: Atoms) -> None:
        self._start = start
        self._radii = geometry.neighbour_radii(start)
        self._neighbours = geometry.coordination(start, self._radii)
        self._series: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._series.get("time", ()))

    @property
    def last_pressure(self) -> float | None:
        """Of the last sample, bar."""
        pressures = self._series.get("pressure")
        return pressures[-1] if pressures else None

    def add(self, atoms: Atoms, time: float, conserved: float | None) -> None:
        """Records ``atoms`` at ``time`` (ps)."""
        moved = geometry.displacements(self._start, atoms.positions, atoms.cell.array)
        neighbours = geometry.coordination(atoms, self._radii)
        record = {
            "time": time,
            "energy": float(atoms.get_potential_energy()),
            "temperature": float(atoms.get_temperature()),
            "rmsd": geometry.rms(moved),
            "max_displacement": geometry.largest_norm(moved),
            "coordination": float(neighbours.mean()),
            "coordination_change": float(np.abs(neighbours - self._neighbours).mean()),
        }
        if atoms.pbc.all():
            # The kinetic part, N kT / V on the mean, is what makes this the pressure of a gas or a hot solid.
            stress = atoms.get_stress(include_ideal_gas=True)
            record |= {"pressure": float(-stress[:3].mean() / bar), "volume": float(atoms.get_volume())}
        if conserved is not None:
            record["conserved"] = conserved
        for name, value in record.items():
            self._series.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The series by name."""
        return {name: np.array(values) for name, values in self._series.items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what ``arrays`` gave."""
        self._series = {name: values.tolist() for name, values in arrays.items()}

    def summary(self, discard: float, ensemble: str) -> dict[str, Any]:
        """Averages without the first share ``discard``; NaN where there is no sample."""
        series = self.arrays()
        kept = {name: values[int(discard * len(values)) :] for name, values in series.items()}
        start = float(self._neighbours.mean())
        volume, start_volume = kept.get("volume"), self._start.get_volume() if self._start.pbc.all() else None
        changes = kept.get("coordination_change", np.array([]))
        drift, drift_error = self._drift(kept, "energy" if ensemble == "nvt" else "conserved")
        return {
            "mean_energy": _mean(kept.get("energy")),
            "energy_std": float(np.std(kept["energy"])) if len(self) else float("nan"),
            "mean_temperature": _mean(kept.get("temperature")),
            "temperature_error": standard_error(kept.get("temperature")),
            "mean_pressure": _mean(kept["pressure"]) if "pressure" in kept else None,
            "pressure_error": standard_error(kept["pressure"]) if "pressure" in kept else None,
            "mean_volume": None if volume is None else _mean(volume),
            "volume_change_percent": None if volume is None or start_volume is None else 100 * (_mean(volume) / start_volume - 1),
            "rmsd": _mean(kept.get("rmsd")),
            "final_rmsd": float(series["rmsd"][-1]) if len(self) else float("nan"),
            "max_displacement": float(series["max_displacement"].max()) if len(self) else float("nan"),
            "coordination_start": start,
            "coordination_mean": _mean(kept.get("coordination")),
            "coordination_change": _mean(changes) / start if start else _mean(changes),
            "energy_drift": drift,
            "energy_drift_error": drift_error,
            "drift_of": DRIFT_OF[ensemble],
        }

    def _drift(self, kept: dict[str, np.ndarray], name: str) -> tuple[float, float]:
        """Slope against time and its standard error, meV/atom/ps."""
        times, values = kept.get("time"), kept.get(name)
        if times is None or values is None or len(times) < 3:
            return float("nan"), float("nan")
        (slope, _), covariance = np.polyfit(times, 1000 * values / len(self._start), 1, cov="unscaled")
        residual = 1000 * values / len(self._start) - np.polyval(np.polyfit(times, 1000 * values / len(self._start), 1), times)
        return float(slope), float(np.sqrt(covariance[0, 0] * (residual**2).sum() / (len(times) - 2)))


def standard_error(values: np.ndarray | None) -> float:
    """Standard error of the mean of a correlated series, from the means of ``BLOCKS`` blocks; NaN where it is too short.

    Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989), with one size of block.
    """
    if values is None or len(values) < 2 * BLOCKS:
        return float("nan")
    means = [block.mean() for block in np.array_split(values, BLOCKS)]
    return float(np.std(means, ddof=1) / np.sqrt(BLOCKS))


def criteria(summary: dict[str, Any], parameters: StabilityParameters, ensemble: str, blow_up: str | None) -> tuple[Criterion, ...]:
    """The conditions of stability, each with what was measured."""
    judged = [Criterion("no_blow_up", None, None, "", blow_up is None, blow_up or "The run reached its end.")]

    def at_most(name: str, value: float, limit: float, unit: str, explanation: str) -> None:
        judged.append(Criterion(name, value, limit, unit, bool(np.isfinite(value) and value <= limit), explanation))

    at_most("rmsd", summary["rmsd"], parameters.max_rmsd, "A", "Mean over the samples, from the start, without drift and strain.")
    at_most(
        "coordination_change",
        summary["coordination_change"],
        parameters.max_coordination_change,
        "",
        "Mean change of an atom's number of neighbours, as a share of the mean number at the start.",
    )
    if ensemble == "npt":
        change = abs(summary["volume_change_percent"])
        at_most("volume_change", change, parameters.max_volume_change, "%", "Mean volume against that of the start.")
    if ensemble != "nvt" and np.isfinite(summary["energy_drift"]):
        # A slope that its own error explains is none.
        drift = max(0.0, abs(summary["energy_drift"]) - 2 * summary["energy_drift_error"])
        at_most(
            "energy_drift",
            drift,
            parameters.max_energy_drift,
            "meV/atom/ps",
            f"Slope of the {summary['drift_of']} against time, less twice its standard error.",
        )
    return tuple(judged)


def _mean(values: np.ndarray | None) -> float:
    return float("nan") if values is None or len(values) == 0 else float(values.mean())
