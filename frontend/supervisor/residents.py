"""The owner of the residents in the supervisor: carries its decisions out through Triton, and tells it what is really there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue
from forcefields.cost import Cost
from forcegate.errors import Conflict, InvalidRequest, NotFound, ServerUnavailable, SetupError, UnknownModel
from frontend.scheduler import profile as profiles
from frontend.scheduler.application import apply
from frontend.scheduler.device import Device
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.inventory import Inventory, readers
from frontend.scheduler.owner import Owner
from frontend.scheduler.plan import devices_for
from frontend.scheduler.policy import Policy
from frontend.scheduler.profile import Profile
from frontend.scheduler.server import Server
from frontend.settings import Settings
from frontend.supervisor.heartbeat import Heartbeat
from frontend.supervisor.memory import Notes
from frontend.supervisor.overview import overview
from frontend.supervisor.rates import Rates
from frontend.supervisor.watch import ModelWatch
from frontend.triton import canary
from frontend.triton.control import Answers, ModelState, TritonControl
from frontend.triton.reports import Reports, resident_mb

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 1.0
NOTED_SECONDS: Final = 2.0
CANARY_SECONDS: Final = 3600.0


class Bring(Protocol):
    """Loads the named model in a dtype, with its instance_group of ``Residents.groups``, and sends a canary."""

    def __call__(self, name: str, *, dtype: str) -> Awaitable[None]: ...


class Residents:
    """See the module. ``start`` before anything else.

    Args:
        watch: brings models back whose process dies; it is told which ones should be there.
    """

    owner: Owner

    def __init__(self, settings: Settings, catalogue: Catalogue, control: TritonControl, watch: ModelWatch, bring: Bring) -> None:
        self._settings, self.catalogue, self._control, self._watch, self._bring = settings, catalogue, control, watch, bring
        self.inventory = Inventory(readers())
        self._read_at = self._looked_at = float("-inf")
        self._notes, self._reports = Notes(settings.state / "memory"), Reports(settings.state / "reports")
        self._applying = asyncio.Lock()
        self._profile = settings.scheduler_profile
        self.heartbeat = Heartbeat(
            control,
            watch,
            self._canary,
            self._dead,
            self._used,
            settings.heartbeat_seconds,
            settings.heartbeat_dead_seconds,
            counted=self._counted,
        )
        self._rates = Rates()
        self.groups: dict[str, list[dict[str, Any]]] = {}
        """The instance_group of each model that was placed here, for when it has to be brought back."""

    @property
    def active(self) -> bool:
        """Whether models are loaded and unloaded by themselves."""
        return self._settings.scheduler == "on"

    async def start(self) -> Server:
        """Reads the devices, and makes the owner and its server.

        Raises:
            SetupError: the profile of the settings is made for another machine.
        """
        await self.inventory.refresh()
        settings = self._settings
        footprints = Footprints(settings.state / "footprints.json")
        self.owner = Owner(self, self.devices, self._policy(), footprints, self.active, settings.scheduler_load_seconds)
        commands = {
            "load": self._load,
            "unload": self._unload,
            "drain": self._drain,
            "quarantine": self._drain,
            "return": self._return,
            "out of memory": self._out_of_memory,
            "apply": self._apply,
        }
        return Server(self.owner, settings.state, self._observe, self.state, commands)

    @property
    def _on_cpu(self) -> bool:
        return all(device.kind == "cpu" for device in self.inventory.devices)

    def _policy_of(self, profile: Profile) -> Policy:
        """The policy of a profile on the devices that are there."""
        settings = self._settings
        made = profiles.policy(profile, self.catalogue, self.inventory.devices)
        pinned = made.pinned | {self.catalogue.resolve(name).name for name in settings.scheduler_pinned}
        return replace(
            made,
            # A budget that a person has set is exact.
            margin_mb=0 if settings.scheduler_memory_gb and self._on_cpu else made.margin_mb,
            pinned=pinned,
            instances=settings.scheduler_replicas,
            replica_wait_seconds=settings.scheduler_replica_wait_seconds,
            replica_sustained_seconds=settings.scheduler_replica_sustained_seconds,
            replica_idle_seconds=settings.scheduler_replica_idle_seconds,
        )

    def _fitting(self, profile: Profile, name: str) -> Policy:
        """The same for a profile that somebody has named.

        Raises:
            SetupError: it names what does not exist, or is made for another machine.
        """
        profiles.check(profile, self.catalogue, name)
        if devices_for(profile, self.inventory.devices)[1]:
            wanted = profile.devices
            raise SetupError(
                f"{name} is made for {wanted.count} x {wanted.kind}, and this machine has {len(self.inventory.devices)} devices.",
                "`forcegate placement list` tells which profile is for which machine.",
            )
        return self._policy_of(profile)

    def _policy(self) -> Policy:
        """That of the profile of the settings; else of a CPU or a GPU, with the settings in place of what they say.

        Raises:
            SetupError: the profile is made for another machine.
        """
        settings = self._settings
        if settings.scheduler_profile:
            return self._fitting(profiles.load(settings.scheduler_profile), settings.scheduler_profile)
        made = self._policy_of(profiles.load("cpu" if self._on_cpu else "gpu1"))
        return replace(
            made,
            idle_seconds=settings.scheduler_idle_seconds,
            models_per_device=settings.scheduler_models_per_device or made.models_per_device,
        )

    def devices(self) -> list[Device]:
        """The newest readings. A CPU with a budget is as large as that, and what models hold is all that counts of it."""
        budget = round(self._settings.scheduler_memory_gb * 1024)
        return [
            replace(device, memory_total_mb=budget, memory_used_mb=self._all_mb()) if budget and device.kind == "cpu" else device
            for device in self.inventory.devices
        ]

    def _all_mb(self) -> int:
        return sum(resident_mb(pid) or 0 for pid in self._watch.processes)

    # What the owner asks for.

    async def load(self, model: str, device: Device, dtype: str) -> None:
        """See ``Machine``."""
        self.groups[model] = [_group(device, 1)]
        variant = self.catalogue.resolve(model)
        dtype = dtype or variant.dtype
        await self._bring(model, dtype=dtype)
        self._watch.wanted[model] = dtype

    async def unload(self, model: str) -> None:
        """See ``Machine``."""
        self._watch.wanted.pop(model, None)
        await self._control.unload(model)

    async def scale(self, model: str, instances: Sequence[tuple[Device, int]]) -> None:
        """See ``Machine``."""
        groups, count = [_group(device, number) for device, number in instances], sum(number for _, number in instances)
        expected = self._watch.instances.get(model, 1)
        # Of those that end nobody shall think that they have died, nor of those that are not there yet.
        self._watch.instances[model] = min(count, expected)
        try:
            await self._watch.launches.watched(model, self._control.place(model, groups))
        except BaseException:
            self._watch.instances[model] = expected
            raise
        self._watch.refresh()
        self.groups[model], self._watch.instances[model] = groups, count

    def alone(self, model: str) -> list[dict[str, Any]] | None:
        """The instance_group with which a model is loaded from the beginning; None for the one in its file."""
        self._watch.instances.pop(model, None)
        self.owner.alone(model)
        if (groups := self.groups.get(model)) is not None:
            groups = self.groups[model] = [groups[0] | {"count": 1}]
        return groups

    def steady(self, model: str) -> bool:
        """See ``Machine``."""
        return model in self._watch.steady()

    def processes(self, model: str) -> int:
        """See ``Machine``."""
        return len(self._watch.processes_of(model))

    def look(self) -> None:
        """See ``Machine``. It reads the process table, so once serves all models."""
        self._watch.refresh()

    def held_mb(self, model: str, device: Device) -> int:
        """See ``Machine``. On the CPU it is resident memory, pages that processes share counted for each: too much rather than too
        little."""
        pids = self._watch.processes_of(model)
        if device.kind == "cpu":
            return sum(resident_mb(pid) or 0 for pid in pids)
        newest = next((each for each in self.inventory.devices if each.id == device.id), device)
        return sum(process.memory_mb or 0 for process in newest.processes if process.pid in pids)

    def end(self, model: str) -> None:
        """See ``Machine``."""
        self._watch.wanted.pop(model, None)
        self._watch.end(model)

    def cost(self, model: str) -> Cost | None:
        """See ``Machine``."""
        return self._reports.read(model).cost

    def family(self, model: str) -> str:
        """See ``Machine``."""
        try:
            return self.catalogue.resolve(model).family
        except UnknownModel:
            return ""

    # What is really there.

    async def _observe(self) -> None:
        now = time.monotonic()
        if now - self._read_at >= REFRESH_SECONDS:
            self._read_at = now
            await self.inventory.refresh(0.5)
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        with suppress(ServerUnavailable):  # it is being restarted, and its models are brought back
            states = await self._control.states()
            for name in self.catalogue.variants:
                self._compare(name, states.get(name))
        for name in list(self._watch.wanted):
            self._learn(name)

    def _learn(self, model: str) -> None:
        """What the model's process has noted of its memory."""
        news = self._notes.news(model, self._watch.processes_of(model))
        for edges, mb in news.peaks:
            self.owner.peak(model, edges, mb, self._reports.read(model).cost)
        for edges, times in news.ran_out:
            self.owner.ran_out(model, edges, times)

    def _compare(self, name: str, found: ModelState | None) -> None:
        """Tells the owner of a model that has come or gone without it."""
        life = self.owner.lives.get(name)
        if found is not None and found.state == "READY":
            self.owner.adopt(name, self._device_of(name), self._watch.wanted.get(name, ""))
            return
        gone = (found is None or found.state == "UNAVAILABLE") and name not in self._watch.wanted
        if gone and life is not None and life.residency.state == "resident":
            self.owner.lost(name, "asked" if found is not None and found.reason == "unloaded" else "lost")

    def _device_of(self, model: str) -> str:
        """The device that a model's processes are on."""
        devices = self.inventory.devices
        pids = set(self._watch.processes_of(model))
        on = [device.id for device in devices if any(process.pid in pids for process in device.processes)]
        return on[0] if on else devices[0].id if devices else ""

    async def _canary(self, model: str) -> None:
        """The smallest structure whose energy is known, without a limit: how long to wait is the heartbeat's matter."""
        known = catalogues.load()
        variant = known.resolve(model)
        variant = variant.with_dtype(self._watch.wanted.get(model) or variant.dtype)
        await canary.check(self._settings.grpc_address, known, variant, self._settings.state, CANARY_SECONDS, smallest=True)

    def _dead(self, model: str, why: str) -> None:
        """A model that does not answer may be its device's fault."""
        life = self.owner.lives.get(model)
        device = life.device if life is not None and life.device else self._device_of(model)
        if device:
            self.owner.fault(device, f"{model}: {why}")

    def _used(self, models: Iterable[str]) -> None:
        """Somebody was answered, be it over gRPC, which no gateway sees."""
        self.owner.used(models)

    def _counted(self, answers: Mapping[str, Answers]) -> None:
        """What Triton has counted says how long requests wait there, and how busy the instances are."""
        for model, seen in self._rates.look(answers, time.monotonic()).items():
            self.owner.seen(model, seen)

    async def prewarm(self, model: str, dtype: str) -> None:
        """Loads a model of the start, where there is room without unloading another one.

        Raises:
            NoRoom: there is none; it is loaded when it is asked for.
            ForcegateError: it cannot be used.
        """
        self.owner.life(model).dtype = dtype
        await self.owner.bring(model)

    # What people ask for.

    async def _load(self, message: Mapping[str, Any]) -> None:
        """The model shall run in this dtype; whoever asks for it next gets it so."""
        variant = self.catalogue.resolve(str(message.get("model")))
        life, dtype = self.owner.life(variant.name), str(message.get("dtype") or "")
        life.residency.retry_at = float("-inf")  # a person may have put right what was wrong
        if dtype and dtype != (life.dtype or variant.dtype):
            life.dtype = variant.with_dtype(dtype).dtype
            self.owner.evict(variant.name, "asked")

    async def _unload(self, message: Mapping[str, Any]) -> None:
        name = self.catalogue.resolve(str(message.get("model"))).name
        life = self.owner.life(name)
        self.owner.evict(name, "asked")
        await self.owner.departure(life)

    async def _drain(self, message: Mapping[str, Any]) -> None:
        device = self._known(message)
        health = self.owner.ward.of(device)
        health.drain() if message["what"] == "drain" else health.quarantine()
        self.owner.empty(device, "drain")

    async def _out_of_memory(self, message: Mapping[str, Any]) -> None:
        """A caller was told that its structure does not fit; when this returns, what follows from it has been done."""
        model = self.catalogue.resolve(str(message.get("model"))).name
        life, until = self.owner.life(model), self.owner.clock() + NOTED_SECONDS
        self._learn(model)
        while self.owner.clock() - life.ran_out_at > NOTED_SECONDS and self.owner.clock() < until:
            await asyncio.sleep(0.05)  # the process writes its notes behind the answer
            self._learn(model)
        await self.owner.room_made(model)

    async def _apply(self, message: Mapping[str, Any]) -> None:
        """A profile, as its text, from now on."""
        name = str(message.get("name"))[:80]
        if not self.active:
            raise Conflict("The scheduler is off.", "Start the service with FORCEGATE_SCHEDULER=on.")
        async with self._applying:
            try:
                profile = profiles.parse(str(message.get("profile")), name)
                policy = self._fitting(profile, name)
            except SetupError as error:
                raise InvalidRequest(error.detail, error.hint) from None
            await apply(self.owner, policy, [model for model, _ in profiles.prewarmed(profile, self.catalogue)])
            self._profile = name

    async def _return(self, message: Mapping[str, Any]) -> None:
        self.owner.ward.of(self._known(message)).give_back()
        self.owner.tick()

    def _known(self, message: Mapping[str, Any]) -> str:
        device = str(message.get("device"))
        if device not in self.owner.cluster.position:
            raise NotFound(f"There is no device {device[:60]!r}.", "GET /api/v1/scheduler/devices lists them.")
        return device

    def state(self) -> dict[str, Any]:
        """See ``overview``."""
        state = overview(self.owner, self.active, self._settings.scheduler_load_seconds)
        state["stats"]["heartbeat"] = self.heartbeat.as_dict()
        state["config"]["profile"] = self._profile
        return state


def _group(device: Device, count: int) -> dict[str, Any]:
    """So many instances on one device, as a part of an instance_group."""
    if device.kind == "cpu":
        return {"kind": "KIND_CPU", "count": count}
    return {"kind": "KIND_GPU", "count": count, "gpus": [device.index]}
