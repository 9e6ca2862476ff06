"""What models take of a device's memory: estimated from their calibration, corrected by what is measured, kept over restarts.

``memory = base + factor * bytes_per_edge * edges``. The base is measured when a model has been loaded. The factor is learned for
each model, kind of device and size (powers of two of neighbour pairs): observed over estimated peaks move it, and running out of
memory raises it by 1.2 for that size and all larger ones. What a model has come to hold counts where that is more.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from forcefields.cost import Cost
from forcefields.runtime.gate import write_json

log = logging.getLogger(__name__)

MB: Final = 2**20
BASE_MB: Final = 1500
"""Before a model has been loaded once: 350 to 950 MB were measured for most, 1,400 for UMA."""
OUT_OF_MEMORY: Final = 1.2
MOST_RAISED: Final = 4.0
EASED: Final = 1.05
"""What each load takes back of that."""
FORGETTING: Final = 0.2
"""Weight of a new peak that is below the estimate; one above it counts in full, since too little is worse than too much."""
LEAST, MOST = 0.25, 20.0
DEFAULT_BYTES_PER_EDGE: Final = 100_000.0


@dataclass
class Footprint:
    """What is known of one model on one kind of device.

    Attributes:
        base_mb: MB that it has come to hold; 0 where that was never measured. Allocators keep what a peak took, so this is more
            than it holds right after a load.
        loaded_mb: MB that it held right after its last load; 0 where that was never measured.
        factors: observed over estimated memory of work, by size class.
        out_of_memory: how often work of it ran out of memory.
        raised: what ``base_mb`` is multiplied by since then.
    """

    base_mb: int = 0
    loaded_mb: int = 0
    factors: dict[int, float] = field(default_factory=dict)
    out_of_memory: int = 0
    raised: float = 1.0

    def need_mb(self, held_mb: int, largest_mb: int) -> int:
        """MB that it is given while it holds ``held_mb``. What is added for safety keeps it from no device of ``largest_mb``."""
        held = max(self.base_mb, held_mb)
        return min(math.ceil(held * self.raised), max(held, largest_mb))

    def factor(self, size: int) -> float:
        """The factor of a size class: its own, else that of the next smaller one that is known, else of the next larger, else 1."""
        if size in self.factors:
            return self.factors[size]
        smaller = [known for known in self.factors if known < size]
        larger = [known for known in self.factors if known > size]
        if smaller:
            return self.factors[max(smaller)]
        return self.factors[min(larger)] if larger else 1.0


class Footprints:
    """The footprints of all models, in a file that survives restarts.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Footprint] = {} if path is None else _read(path)

    def of(self, model: str, kind: str) -> Footprint:
        """What is known of a model on a kind of device (``cpu``, ``gpu``, ``mig``)."""
        return self._known.setdefault(f"{model} on {kind}", Footprint())

    def base_mb(self, model: str, kind: str) -> int:
        """MB of the loaded model, idle."""
        return self.of(model, kind).base_mb or BASE_MB

    def knows(self, model: str, kind: str) -> bool:
        """Whether the base of a model was measured on a kind of device."""
        known = self._known.get(f"{model} on {kind}")
        return known is not None and known.base_mb > 0

    def measured(self, kind: str) -> dict[str, int]:
        """The bases that were measured on a kind of device, by model."""
        ending = f" on {kind}"
        return {
            name.removesuffix(ending): each.base_mb for name, each in self._known.items() if name.endswith(ending) and each.base_mb
        }

    def need_mb(self, model: str, kind: str, held_mb: int, largest_mb: int, edges: int, cost: Cost | None) -> int:
        """MB that an instance is given that holds ``held_mb`` and is asked for a structure of ``edges`` neighbour pairs.

        No more than ``largest_mb``, what the largest device has, unless it holds more: the model itself says what does not fit.
        """
        known = self.of(model, kind)
        need = known.need_mb(held_mb, largest_mb)
        if not edges:
            return need
        idle = (known.loaded_mb or need) * known.raised
        return max(need, min(math.ceil(idle) + self.work_mb(model, kind, edges, cost), largest_mb))

    def work_mb(self, model: str, kind: str, edges: int, cost: Cost | None) -> int:
        """MB that work of ``edges`` neighbour pairs takes at its peak, above the base.

        A model cuts its work into passes that fit, so that no more counts than the largest structure that it takes.
        """
        bounded = min(edges, cost.edges) if cost is not None and cost.edges else edges
        return math.ceil(self.of(model, kind).factor(size_class(bounded)) * bounded * _bytes_per_edge(cost) / MB)

    def measured_base(self, model: str, kind: str, mb: int) -> None:
        """A model holds so much."""
        self.of(model, kind).base_mb = mb
        self._write()

    def loaded(self, model: str, kind: str, mb: int) -> None:
        """A model holds so much right after its load: less than it came to hold before takes the estimate back, slowly."""
        known = self.of(model, kind)
        known.loaded_mb = mb
        known.base_mb = max(mb, math.ceil(known.base_mb + FORGETTING * (mb - known.base_mb)))
        known.raised = max(1.0, known.raised / EASED)
        self._write()

    def measured_peak(self, model: str, kind: str, edges: int, mb: float, cost: Cost | None) -> None:
        """Work of this size took ``mb`` above the base."""
        known, size = self.of(model, kind), size_class(edges)
        estimated = edges * _bytes_per_edge(cost) / MB
        if estimated <= 0:
            return
        observed, before = mb / estimated, known.factor(size)
        known.factors[size] = _within(observed if observed > before else before + FORGETTING * (observed - before))
        self._write()

    def ran_out(self, model: str, kind: str, edges: int) -> None:
        """Work of this size ran out of memory: it, and all that is larger, is estimated 1.2 times as high from now on."""
        known, size = self.of(model, kind), size_class(edges)
        known.out_of_memory += 1
        known.raised = min(known.raised * OUT_OF_MEMORY, MOST_RAISED)
        known.factors[size] = _within(known.factor(size) * OUT_OF_MEMORY)
        for larger in known.factors:
            if larger > size:
                known.factors[larger] = max(_within(known.factors[larger] * OUT_OF_MEMORY), known.factors[size])
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, {name: asdict(known) for name, known in self._known.items()})


def size_class(edges: int) -> int:
    """Works of one class differ by less than a factor of two in their pairs."""
    return max(int(edges), 1).bit_length()


def _within(factor: float) -> float:
    return min(max(factor, LEAST), MOST)


def _bytes_per_edge(cost: Cost | None) -> float:
    return cost.bytes_per_edge if cost is not None and cost.bytes_per_edge else DEFAULT_BYTES_PER_EDGE


def _read(path: Path) -> dict[str, Footprint]:
    try:
        return {name: _footprint(data) for name, data in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        # It is learned again; a service that does not start would be worse.
        log.warning("what was learned of models' memory cannot be read", extra={"detail": str(error)})
        return {}


def _footprint(data: Mapping[str, Any]) -> Footprint:
    factors = {int(size): _within(float(factor)) for size, factor in data["factors"].items()}
    return Footprint(
        int(data["base_mb"]), int(data.get("loaded_mb", 0)), factors, int(data["out_of_memory"]), float(data.get("raised", 1.0))
    )
