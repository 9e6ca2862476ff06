"""Which models exist and what state they are in: Triton's index, the catalogue and the models' own reports, merged every second.

Everything here is answered from the last poll, so nobody who asks ever waits for Triton.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forcefields.catalogue import Catalogue, Family, Variant, load
from forcefields.verification import how_to_place
from forcegate.errors import (
    CheckpointMismatch,
    CheckpointMissing,
    EnvironmentBroken,
    ForcegateError,
    ModelNotReady,
    from_wire,
)
from frontend.triton.control import ModelState, TritonControl
from frontend.triton.facts import Facts
from frontend.triton.reports import Report, Reports, alive, current

log = logging.getLogger(__name__)

READY, LOADING, LOADABLE, MISSING, FAILED = "ready", "loading", "loadable", "missing checkpoint", "failed"
STATES = (READY, LOADING, LOADABLE, MISSING, FAILED)
DIED = "is not healthy"
"""Triton's words of a process that ended or was halted while it loaded: the supervisor loads the model again."""
POLL_SECONDS = 1.0
FIRST_PAUSES = (0.1, 0.2, 0.0)
"""s between the first polls, until one is answered."""


@dataclass(frozen=True)
class Entry:
    """One variant as of the last poll. ``error`` says why it is not ready; ``facts`` are there while Triton serves it."""

    variant: Variant
    family: Family
    state: str
    error: ForcegateError | None = None
    facts: Facts | None = None
    report: Report = field(default_factory=Report)
    ready_until: float = -1e9
    """``time.monotonic()`` when it was last seen ready; a model that is just being reloaded was ready a moment ago."""

    @property
    def dtype(self) -> str:
        """The floating-point type that it runs in; that of the variant where Triton does not serve it."""
        return self.variant.dtype if self.facts is None else self.facts.dtype


class Directory:
    """The models of one Triton server. ``run`` keeps it current; everything else reads the last poll."""

    def __init__(self, control: TritonControl, catalogue: Catalogue, repositories: Sequence[Path], state: Path) -> None:
        self.catalogue = catalogue
        self._control = control
        self._repositories = repositories
        # Joined once: a poll asks for most of them every second.
        self._checkpoints = {
            name: tuple(str(repository / name / "1" / variant.checkpoint.file) for repository in repositories)
            for name, variant in catalogue.variants.items()
        }
        self._reports = Reports(state / "reports")
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._asked_for: dict[str, str] = {}
        self._reloaded: set[str] = set()
        self._first = asyncio.Event()
        self._polling = asyncio.Lock()
        self._seen_alive: dict[str, int] = {}
        self._polled = float("-inf")
        self.reachable = False
        self.on_demand = False
        """Whether a model that is not loaded is loaded when it is asked for."""
        self.on_poll: Callable[[Directory], None] = lambda _: None
        self._entries = {name: self._entry(name, None) for name in catalogue.variants}

    async def run(self) -> None:
        """Polls until cancelled."""
        # While everything starts, a server that answers may fail to do so once.
        for pause in FIRST_PAUSES:
            await self.poll()
            if self.reachable:
                break
            await asyncio.sleep(pause)
        self._first.set()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def first_poll(self) -> None:
        """Returns when ``run`` has seen what there is, or that nothing answers."""
        await self._first.wait()

    async def poll(self) -> None:
        """Brings all entries up to date; what goes wrong is logged and shows in ``reachable``."""
        async with self._polling:  # or what one was told before a load could overwrite what another was told after it
            await self._poll()

    async def _poll(self) -> None:
        try:
            states = await self._control.states()
            for name in self.catalogue.variants:
                await self._refresh(name, states.get(name))
            if not self.reachable:
                log.info("the inference server answers")
            self.reachable = True
            self._polled = time.monotonic()
        except ForcegateError as error:
            if self.reachable:
                log.warning("the inference server does not answer", extra={"code": error.code})
            self.reachable = False
            self._entries = {name: self._unreachable(entry) for name, entry in self._entries.items()}
        except Exception:
            log.exception("the model directory could not be refreshed")
        self.on_poll(self)

    @property
    def age(self) -> float:
        """Seconds since Triton last answered; infinite where it never did."""
        return time.monotonic() - self._polled

    def entries(self) -> list[Entry]:
        """The models that users see; a hidden one is among them only while it is served."""
        return [entry for entry in self._entries.values() if not entry.variant.hidden or entry.state in (READY, LOADING)]

    def entry(self, name: str) -> Entry:
        """The model of that name or alias.

        Raises:
            UnknownModel: there is none.
        """
        return self._entries[self.catalogue.resolve(name).name]

    def facts(self, name: str) -> Facts:
        """The facts of a model that can be asked now.

        Raises:
            UnknownModel: there is no such model.
            ModelNotReady: it is not loaded.
            CheckpointMissing, CheckpointMismatch, GateFailed, EnvironmentBroken: it cannot be loaded as things are.
        """
        entry = self.entry(name)
        if entry.facts is not None and (entry.state == READY or self.recently_ready(entry.variant.name)):
            return entry.facts
        raise entry.error or ModelNotReady(f"The model {entry.variant.name!r} is not ready.", "Try again in a few seconds.")

    def recently_ready(self, name: str, within: float = 60.0) -> bool:
        """Whether a model that is not ready now is on its way back: it was ready a moment ago and nobody unloaded it."""
        entry = self._entries[name]
        return entry.state in (READY, LOADING) and time.monotonic() - entry.ready_until < within

    def process(self, name: str) -> int | None:
        """Process id of the model as its newest report says; read from the file, not from the last poll."""
        return current(self._reports.read(name)).pid

    def last_process(self, name: str) -> int | None:
        """The same as of the last poll, without touching a file."""
        return self._entries[name].report.pid

    async def load(self, name: str, patience: float, dtype: str = "") -> Entry:
        """Loads a model and waits for it, at most ``patience`` seconds; the loading itself goes on after that.

        What is loaded already stays as it is, unless it runs in another dtype than the one that is asked for: then it answers
        until the new copy has passed its gate and takes its place.

        Args:
            dtype: empty for the variant's own, or for the one that it is loaded in.

        Raises:
            UnsupportedDtype: it cannot be evaluated in this dtype.
            ForcegateError: what the model said, or that Triton does not answer.
        """
        variant = self.catalogue.resolve(name)
        name = (variant.with_dtype(dtype) if dtype else variant).name
        until = time.monotonic() + patience
        while (task := self._loading.get(name)) is not None and dtype not in ("", self._asked_for[name]):
            # Somebody else has asked for another dtype a moment ago. Whoever asks last has it.
            await asyncio.wait((task,), timeout=until - time.monotonic())
            if not task.done():
                return self._entries[name]
            await self.poll()
        entry = self._entries[name]
        if entry.state == READY and dtype in ("", entry.dtype):
            return entry
        if entry.state == MISSING and entry.error is not None:
            raise entry.error
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load(entry, dtype))
            self._asked_for[name] = dtype or entry.dtype
            task.add_done_callback(lambda done: self._loaded(name, done))
        if entry.state != READY:
            self._entries[name] = replace(entry, state=LOADING, error=_being_loaded(name))
        await asyncio.wait((task,), timeout=until - time.monotonic())
        if task.done():
            failure = task.exception()
            await self.poll()
            if failure is not None:
                raise self._entries[name].error or failure
            return self._entries[name]
        return replace(self._entries[name], state=LOADING, error=_being_loaded(name))

    async def _load(self, entry: Entry, dtype: str) -> None:
        name = entry.variant.name
        # Triton takes a copy whose process has died for ready, and would not load it again as it is.
        dead = entry.state == FAILED and entry.facts is not None
        if entry.state == READY or dead:
            await self._control.reload(name, dtype)
        elif dtype:
            await self._control.load_in(name, dtype, self._repositories)
        else:
            await self._control.load(name)

    async def unload(self, name: str) -> Entry:
        """Unloads a model; what it is evaluating is finished first.

        Raises:
            ForcegateError: Triton does not answer.
        """
        name = self.catalogue.resolve(name).name
        # Nobody should wait for a model that somebody has just asked to go.
        self._entries[name] = replace(self._entries[name], ready_until=-1e9)
        await self._control.unload(name)
        await self.poll()
        return self._entries[name]

    async def close(self) -> None:
        """Forgets loads that are under way; Triton finishes them by itself."""
        for task in self._loading.values():
            task.cancel()

    def _loaded(self, name: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(name, None)
        self._reloaded.add(name)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a model was not loaded", extra={"model": name, "code": getattr(error, "code", type(error).__name__)})

    async def _refresh(self, name: str, state: ModelState | None) -> None:
        entry, old = self._entry(name, state), self._entries[name]
        if state is not None and state.state == "READY":
            known = old.facts if self.reachable and old.report.pid == entry.report.pid else None
            if name in self._reloaded or (known is not None and entry.report.dtype not in (None, known.dtype)):
                known = None  # a new process tells of itself a moment before Triton puts it in the old one's place
            self._reloaded.discard(name)
            facts = known or await self._facts(name)
            if facts is not None:
                # A report of a load that failed says nothing of the copy that goes on answering.
                told = entry.report.arithmetic or (old.facts.arithmetic if old.facts else ())
                facts = facts if facts.arithmetic == told else replace(facts, arithmetic=told)
            entry = self._living(self._verified(replace(entry, facts=facts, ready_until=time.monotonic())))
        elif entry.state == LOADING:
            entry = replace(entry, facts=old.facts, ready_until=old.ready_until)
        if entry.state != old.state:
            log.info("model state", extra={"model": name, "state": entry.state, "was": old.state})
        self._entries[name] = entry

    def _living(self, entry: Entry) -> Entry:
        """Triton goes on calling a model ready whose process has died; requests for it wait until it is back."""
        pid, name = entry.report.pid, entry.variant.name
        if pid is None or entry.state != READY:
            return entry
        if entry.report.error is not None and not entry.report.ready:
            return self._not_replaced(entry, entry.report.error)
        if entry.report.memory_mb is not None:
            self._seen_alive[name] = pid
            return entry
        # A process that was never visible lives in another container, and its absence says nothing.
        if self._seen_alive.get(name) != pid:
            return entry
        error = ModelNotReady(f"The process of {name!r} has ended; it is being brought back.", "Try again in a few seconds.")
        return replace(entry, state=LOADING, error=error)

    def _not_replaced(self, entry: Entry, error: ForcegateError) -> Entry:
        """The last load of a model that Triton calls ready has failed: the copy before it answers, if its process is alive."""
        name = entry.variant.name
        served = self._seen_alive.get(name)
        # One that was never visible may live in another container.
        if served is None or alive(served):
            return entry
        if name in self._loading:
            return replace(entry, state=LOADING, error=_being_loaded(name), ready_until=-1e9)
        return replace(entry, state=FAILED, error=_conflict(error), ready_until=-1e9)

    async def _facts(self, name: str) -> Facts | None:
        try:
            return Facts.from_config(name, await self._control.config(name))
        except (KeyError, ValueError):
            log.exception("the configuration of a model is not ours", extra={"model": name})
        except ForcegateError:
            pass  # unloaded since the index was read
        return None

    def _verified(self, entry: Entry) -> Entry:
        """Not ready unless Triton's copy names the checkpoint that the catalogue vouches for."""
        expected = entry.variant.checkpoint.sha256
        if entry.facts is not None and entry.facts.checkpoint_sha256 == expected:
            return entry
        name = entry.variant.name
        # Or it is what the catalogue has by now: the supervisor is about to start this gateway anew.
        if entry.facts is None or entry.facts.checkpoint_sha256 == load().variants.get(name, entry.variant).checkpoint.sha256:
            return replace(entry, state=LOADING, error=_being_loaded(name), ready_until=-1e9)
        error = CheckpointMismatch(
            f"Triton serves {name!r} with the checkpoint {entry.facts.checkpoint_sha256}, and the catalogue has {expected}.",
            "Export the repository again and reload the model.",
        )
        return replace(entry, state=FAILED, error=error, facts=None, ready_until=-1e9)

    def _entry(self, name: str, state: ModelState | None) -> Entry:
        variant = self.catalogue.variants[name]
        report = current(self._reports.read(name))
        word, error = self._judge(variant, state, report)
        return Entry(variant, self.catalogue.family_of(variant), word, error, report=report)

    def _judge(self, variant: Variant, state: ModelState | None, report: Report) -> tuple[str, ForcegateError | None]:
        name = variant.name
        if state is not None and state.state == "READY":
            return READY, None
        if name in self._loading or (state is not None and (state.state == "LOADING" or DIED in state.reason)):
            return LOADING, _being_loaded(name)
        if not any(map(os.path.exists, self._checkpoints[name])):
            return MISSING, CheckpointMissing(
                f"The checkpoint of {name!r} is not in place: {variant.checkpoint.file}, "
                f"{f'sha256 {variant.checkpoint.sha256}' if variant.checkpoint.sha256 else 'its hash is recorded at export'}.",
                how_to_place(variant)
                if variant.checkpoint.source in ("download", "own")
                else f"Start the service with {name} among FORCEGATE_MODELS: it puts the checkpoint in place.",
            )
        if state is not None and state.reason and state.reason != "unloaded":
            error = (
                from_wire(state.reason)
                or report.error
                or EnvironmentBroken(f"The model {name!r} could not be loaded; its log says why.")
            )
            return (MISSING if isinstance(error, CheckpointMissing) else FAILED), _conflict(error)
        return LOADABLE, ModelNotReady(f"The model {name!r} is not loaded.", f"POST /api/v1/models/{name}/load loads it.")

    def _unreachable(self, entry: Entry) -> Entry:
        if entry.state != READY:
            return entry
        error = ModelNotReady(f"The model {entry.variant.name!r} is being brought back.", "Try again in a few seconds.")
        return replace(entry, state=LOADING, error=error)


def _being_loaded(name: str) -> ModelNotReady:
    return ModelNotReady(f"The model {name!r} is being loaded.", "Try again in a few seconds.")


def _conflict(error: ForcegateError) -> ForcegateError:
    """A failed load does not heal by asking again, whatever the model's error said of itself."""
    return EnvironmentBroken(error.detail, error.hint) if error.retryable else error
