"""Forces for tasks where the scheduler is on: each call holds its model, so that it is loaded first and stays until the answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from ase import Atoms

from forcefields import catalogue as catalogues
from forcefields.cost import largest_edges
from forcegate.calculations.forces import Point, Served
from forcegate.calculator import ForcegateCalculator
from forcegate.dispersion import correction_of
from forcegate.errors import ForcegateError, OutOfMemory
from forcegate.structure import from_atoms
from frontend.scheduler.follower import Follower
from frontend.scheduler.policy import TASK_PRIORITY
from frontend.triton.readiness import Readiness

WAIT_SECONDS: Final = 60.0
"""How long one call waits for its model before the task pauses and goes on later."""
CONNECT_SECONDS: Final = 5.0
MEMORY_SECONDS: Final = 60.0

Found = TypeVar("Found")


class Holder:
    """One worker's connection to the owner of the residents, for calls from threads."""

    def __init__(self, folder: Path) -> None:
        self._loop, self._catalogue = asyncio.new_event_loop(), catalogues.load()
        self._follower = Follower(folder, "worker")
        threading.Thread(target=self._run, name="residency", daemon=True).start()

    def _run(self) -> None:
        self._loop.run_until_complete(self._follower.run())

    @property
    def states(self) -> Mapping[str, Mapping[str, Any]] | None:
        """What the owner last told of each model; None without an owner."""
        told = self._follower.state
        return None if told is None else told["models"]

    @contextmanager
    def hold(self, models: Sequence[str], structures: Sequence[Atoms] = ()) -> Iterator[None]:
        """The models are resident while the block runs, and there is memory for the largest of the structures.

        Raises:
            ModelNotReady: not within ``WAIT_SECONDS``.
            NoRoom, and what a failed load ended with.
        """
        until = time.monotonic() + CONNECT_SECONDS
        while not self._follower.connected and time.monotonic() < until:
            time.sleep(0.05)
        given = [from_atoms(atoms) for atoms in structures]
        edges = {model: largest_edges(given, self._catalogue.resolve(model).cutoff) for model in models}
        deadline = time.monotonic() + WAIT_SECONDS
        held: AbstractAsyncContextManager[None] = self._follower.hold(models, deadline, TASK_PRIORITY, edges)
        asyncio.run_coroutine_threadsafe(held.__aenter__(), self._loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(held.__aexit__(None, None, None), self._loop).result()

    def carry_out(self, models: Sequence[str], structures: Sequence[Atoms], work: Callable[[], Found]) -> Found:
        """What ``work`` on the structures gives while the models are resident; once more, with more room for the first, where it
        ran out of memory.

        Raises:
            OutOfMemory: it still does not fit.
            ForcegateError: see ``hold``, and what else ``work`` raises.
        """
        try:
            with self.hold(models, structures):
                return work()
        except OutOfMemory:
            asked = self._follower.do("out of memory", MEMORY_SECONDS, model=models[0])
            with suppress(ForcegateError):  # it is tried in any case
                asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        with self.hold(models, structures):
            return work()


class Resident:
    """Whether a task can begin without a load, as far as its worker knows; the models of dispersion corrections are not looked at.

    The owner of the residents knows, where it is on the same machine. Else Triton is asked what is ready.

    Args:
        address: of Triton's gRPC.
        holder: the connection to the owner; None where the scheduler is off.
    """

    def __init__(self, address: str, holder: Holder | None) -> None:
        self._holder, self._readiness = holder, Readiness(address)

    def __call__(self, models: Sequence[str]) -> bool:
        """Whether all of ``models`` are there, or are being loaded already. Of what nobody knows anything it is taken to be."""
        states = None if self._holder is None else self._holder.states
        if states is None:
            return all(self._readiness.of(model) is not False for model in models)
        return all(states.get(model, {}).get("state") in ("resident", "loading") for model in models)


class HeldForces(Served):
    """``Served`` that holds its model, and the dispersion correction that belongs to it, for each call."""

    def __init__(self, holder: Holder, model: str, address: str, *, head: str | None, dispersion: str) -> None:
        super().__init__(model, address, head=head, dispersion=dispersion)
        variant = catalogues.load().resolve(model)
        added = correction_of(variant.name, variant, head, dispersion)
        self._holder, self._models = holder, (variant.name, *(() if added is None else (added,)))

    def calculator(self) -> HeldCalculator:
        """See ``Served``."""
        return HeldCalculator(
            self._holder,
            self._models,
            self.model,
            self.address,
            head=self.head,
            timeout=self.timeout,
            dispersion=self.dispersion,
            connect_timeout=2.0,
        )

    def provenance(self) -> dict[str, str]:
        """See ``Served``."""
        with self._holder.hold(self._models):
            return super().provenance()

    def evaluate(self, structures: Sequence[Atoms]) -> list[Point]:
        """See ``Served``."""
        return self._holder.carry_out(self._models, structures, lambda: super(HeldForces, self).evaluate(structures))


class HeldCalculator(ForcegateCalculator):
    """``ForcegateCalculator`` that holds its models whenever it asks them: once for what they can compute, then for each step."""

    def __init__(self, holder: Holder, models: tuple[str, ...], *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._holder, self._models = holder, models
        self._implemented: list[str] = []

    @property
    def implemented_properties(self) -> list[str]:  # type: ignore[override]
        """See ``ForcegateCalculator``. ASE looks at it before each number; it does not change."""
        # Not a cached_property: up to Python 3.11 one lock is held for all of a class, here while a model is loaded.
        if not self._implemented:
            with self._holder.hold(self._models):
                self._implemented = super().implemented_properties
        return self._implemented

    def calculate(self, atoms: Atoms | None = None, *args: Any, **named: Any) -> None:
        """See ``ForcegateCalculator``."""
        found = self.atoms if atoms is None else atoms
        given = [] if found is None else [found]
        self._holder.carry_out(self._models, given, lambda: super(HeldCalculator, self).calculate(atoms, *args, **named))
