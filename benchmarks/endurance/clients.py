"""The clients: each repeats one kind of request with pauses, by the shipped client and its retries, until the run is over."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.endurance.references import PATIENCE_SECONDS, Single, Task
from benchmarks.endurance.seen import Seen, Wrong
from benchmarks.sections.soak import WRONG
from forcegate import ForcegateCalculator
from forcegate.client import Client
from forcegate.errors import CoincidentAtoms, ForcegateError
from forcegate.evaluation import iterate
from forcegate.structure import from_atoms, to_mapping
from frontend.settings import Settings

TIMEOUT_SECONDS = 300.0
"""For one call, retries included: a service that starts from nothing on a busy machine takes a minute."""
BATCH = 8
BAD_IN_BATCH = 0.2
"""Share of batches in which one structure is bad."""
SHARES = {"rest": 16, "rest msgpack": 8, "batch": 8, "grpc": 8, "calculator": 8, "relaxation": 8, "dynamics": 4, "bad": 4}
"""Clients of each kind among 64."""


@dataclass(frozen=True)
class Asked:
    """What the clients draw from, and where they send it."""

    settings: Settings
    pools: dict[str, list[Single]]
    relaxations: list[Task]
    dynamics: list[Task]

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://{self.settings.host}:{self.settings.port}"

    def client(self, encoding: str = "json") -> Client:
        """A client of the service, with patience for its first answer too: it may be asked while the gateway restarts."""
        return Client(self.url, timeout=TIMEOUT_SECONDS, connect_timeout=TIMEOUT_SECONDS, encoding=encoding)


def start(asked: Asked, seen: Seen, count: int, pause: float) -> list[threading.Thread]:
    """``count`` clients in the proportions of ``SHARES``, each with a mean pause of ``pause`` seconds between its requests."""
    kinds = {"rest": _rest("json"), "rest msgpack": _rest("msgpack"), "batch": _batch, "grpc": _grpc}
    kinds |= {"calculator": _calculator, "relaxation": _relaxation, "dynamics": _dynamics, "bad": _bad}
    wanted = [kind for kind, share in SHARES.items() for _ in range(max(1, round(count * share / sum(SHARES.values()))))]
    threads = []
    for number, kind in enumerate(wanted):
        chance = random.Random(number)
        arguments = (seen, kind, kinds[kind](asked, seen, chance), chance, pause)
        threads.append(threading.Thread(target=_repeat, args=arguments, name=f"{kind} {number}", daemon=True))
    for thread in threads:
        thread.start()
    return threads


Ask = Callable[[], int]


def _repeat(seen: Seen, kind: str, ask: Ask, chance: random.Random, pause: float) -> None:
    while not seen.over.wait(chance.expovariate(1.0 / pause)):
        seen.call(kind, ask)


def _drawn(asked: Asked, chance: random.Random, count: int = 1) -> Sequence[Single]:
    pool = asked.pools[chance.choice(sorted(asked.pools))]
    return [chance.choice(pool) for _ in range(count)]


def _rest(encoding: str) -> Callable[[Asked, Seen, random.Random], Ask]:
    def make(asked: Asked, _seen: Seen, chance: random.Random) -> Ask:
        client = asked.client(encoding)

        def ask() -> int:
            (single,) = _drawn(asked, chance)
            single.check(client.single_point(single.atoms, single.model))
            return 1

        return ask

    return make


def _batch(asked: Asked, seen: Seen, chance: random.Random) -> Ask:
    client = asked.client()

    def ask() -> int:
        given = list(_drawn(asked, chance, BATCH))
        bodies = [to_mapping(from_atoms(single.atoms)) for single in given]
        bad = chance.randrange(BATCH) if chance.random() < BAD_IN_BATCH else None
        if bad is not None:
            bodies[bad] |= {"positions": [bodies[bad]["positions"][0]] * len(bodies[bad]["positions"])}
        answers = client.batch(bodies, given[0].model)
        if len(answers) != BATCH:
            raise Wrong(f"{len(answers)} answers to {BATCH} structures")
        for place, (single, answer) in enumerate(zip(given, answers, strict=True)):
            if place != bad:
                if "error" in answer:
                    raise RuntimeError(f"a structure of a batch was not answered: {answer['error']}")
                single.check(answer)
            elif answer.get("error", {}).get("code") != CoincidentAtoms.code:
                raise Wrong(f"a bad structure of a batch got {str(answer)[:300]}")
        seen.refused["in a batch"] += bad is not None
        return BATCH - (bad is not None)

    return ask


def _grpc(asked: Asked, _seen: Seen, chance: random.Random) -> Ask:
    def ask() -> int:
        given = _drawn(asked, chance, 4)
        found = iterate(
            [single.atoms for single in given],
            given[0].model,
            address=asked.settings.grpc_address,
            in_flight=4,
            timeout=TIMEOUT_SECONDS,
            connect_timeout=TIMEOUT_SECONDS,
        )
        for single, result in zip(given, found, strict=True):
            if result.error is not None:
                raise result.error
            single.check({"energy": result.energy, "forces": result.forces})
        return len(given)

    return ask


def _calculator(asked: Asked, _seen: Seen, chance: random.Random) -> Ask:
    patience = {"timeout": TIMEOUT_SECONDS, "connect_timeout": TIMEOUT_SECONDS}
    calculators = {model: ForcegateCalculator(model, address=asked.settings.grpc_address, **patience) for model in asked.pools}

    def ask() -> int:
        (single,) = _drawn(asked, chance)
        atoms = single.atoms.copy()
        atoms.calc = calculators[single.model]
        atoms.calc.reset()
        single.check({"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()})
        return 1

    return ask


def _relaxation(asked: Asked, seen: Seen, chance: random.Random) -> Ask:
    return _queued(asked, asked.relaxations, seen, chance)


def _dynamics(asked: Asked, seen: Seen, chance: random.Random) -> Ask:
    return _queued(asked, asked.dynamics, seen, chance)


def _queued(asked: Asked, tasks: list[Task], seen: Seen, chance: random.Random) -> Ask:
    """A task is sent off with a key, so that one whose answer got lost with its gateway is not queued twice."""
    client = asked.client()

    def ask() -> int:
        task, key = chance.choice(tasks), uuid.uuid4().hex
        seen.tasks.append(key)
        accepted = client.submit(task.kind, task.atoms, task.model, options={"idempotency_key": key}, **task.parameters)
        task.check(client.wait(accepted["task_id"], PATIENCE_SECONDS))
        return 1

    return ask


def _bad(asked: Asked, seen: Seen, chance: random.Random) -> Ask:
    """Bodies that no model can answer: 4xx, that are not to be sent again, and nothing else."""
    client = asked.client()

    def ask() -> int:
        (single,) = _drawn(asked, chance)
        wrong = chance.choice(WRONG)(to_mapping(from_atoms(single.atoms)))
        try:
            answer = client.call("POST", "/api/v1/single_point", {"model_name": single.model, "atoms": wrong})
        except ForcegateError as error:
            if not 400 <= error.status < 500 or error.retryable:
                raise
            seen.refused[error.code] += 1
            return 0
        raise Wrong(f"a bad structure was answered: {str(answer)[:200]}")

    return ask
