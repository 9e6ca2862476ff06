"""Calculations that answer at once: one structure, many structures, one structure with many models.

Free of HTTP: typed records in, plain dictionaries with arrays out, typed errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from forcegate.contract import EXTRA_OUTPUTS, output_specs
from forcegate.dispersion import UNCORRECTED, correction_of
from forcegate.errors import ForcegateError, InvalidRequest, OutOfMemory, Overloaded, UnknownModel, UnsupportedTask
from forcegate.structure import Structure
from frontend import evaluation, merge
from frontend.bodies import Shared
from frontend.evaluation import Arrays, Question
from frontend.requests import Batch, MultiModel, Options, SinglePoint, require_head
from frontend.service import Service
from frontend.telemetry import Call
from frontend.triton.facts import Facts

UNITS: Final = Shared(
    {spec.name: spec.unit for spec in output_specs(tuple(EXTRA_OUTPUTS))}
    | {"stress": "eV/A^3, Voigt xx yy zz yz xz xy, positive under tension"}
)


async def single_point(service: Service, task: SinglePoint, call: Call) -> dict[str, Any]:
    """Energy, forces and stress of one structure.

    Raises:
        ForcegateError: see ``Directory.facts`` and ``Evaluator.evaluate``.
    """
    call.structures, call.atoms = 1, len(task.structure)

    async def evaluated() -> tuple[Asked, dict[str, Any]]:
        async with _using(service, task.model, task.options.head, task.options, call, (task.structure,)) as asked:
            call.model = asked.facts.model
            return asked, await _evaluate(service, asked, task.structure, task.options, call)

    with service.hold(1, call):
        asked, result = await service.with_memory(task.model, call, evaluated)
    result["provenance"] = provenance(asked)
    return _finished(result, call)


async def batch(service: Service, task: Batch, call: Call) -> dict[str, Any]:
    """The same for many structures, in order; one that fails has its error in its place.

    Raises:
        ForcegateError: the model cannot be asked, there is no room, or no structure was evaluated for want of a server.
    """
    call.structures = len(task.structures)
    call.atoms = sum(len(entry) for entry in task.structures if isinstance(entry, Structure))
    entries = [(index, entry) for index, entry in enumerate(task.structures) if isinstance(entry, Structure)]
    with service.hold(len(task.structures), call):
        asked, evaluated = await _evaluate_batch(service, task, entries, call)
    results: list[dict[str, Any]] = []
    failures: list[ForcegateError] = []
    for index, entry in enumerate(task.structures):
        outcome = entry if isinstance(entry, ForcegateError) else evaluated[index]
        if isinstance(outcome, ForcegateError):
            failures.append(outcome)
            service.metrics.rejected.labels(outcome.code).inc()
            results.append({"index": index, "error": outcome.as_dict()})
        else:
            results.append({"index": index, **outcome})
    if len(failures) == len(results) and all(error.retryable for error in failures):
        raise failures[0]
    answer = {
        "count": len(results),
        "succeeded": len(results) - len(failures),
        "failed": len(failures),
        "results": results,
        "provenance": provenance(asked),
    }
    return _finished(answer, call)


async def multi_model(service: Service, task: MultiModel, call: Call) -> dict[str, Any]:
    """One structure with several models, and how far they agree; a model that fails leaves the others.

    Raises:
        InvalidRequest: another task than single points, or a model named twice.
        Overloaded: one of the models has no room.
    """
    if task.task != "single_point":
        raise UnsupportedTask(f"The task {task.task[:40]!r} cannot be compared over models.")
    _refuse_duplicates(service, task)
    call.structures, call.atoms = len(task.models), len(task.structure) * len(task.models)
    with service.hold(len(task.models), call):
        answers = await evaluation.together(*(_one_of_many(service, task, name, call) for name in task.models))
    outcomes = [outcome for _, outcome in answers if outcome is not None]
    comparison = await asyncio.to_thread(merge.compare, task.structure.numbers, outcomes, _outside(service, task))
    answer = {
        "task": task.task,
        "models_count": len(task.models),
        "results": [result for result, _ in answers],
        "comparison": comparison,
    }
    return _finished(answer, call)


@dataclass(frozen=True)
class Asked:
    """A model that can be asked now, its head (empty for the default), and the dispersion model that is added to it."""

    facts: Facts
    head: str
    correction: Facts | None

    @property
    def head_used(self) -> str:
        """The head that answers; empty for a model with a single one."""
        return self.head or self.facts.default_head

    @property
    def extra_outputs(self) -> tuple[str, ...]:
        """The model's further outputs, without those that a correction would leave wrong."""
        return tuple(name for name in self.facts.extra_outputs if self.correction is None or name not in UNCORRECTED)


@lru_cache(maxsize=256)
def provenance(asked: Asked) -> Shared:
    """Where an answer comes from."""
    facts, used = asked.facts, asked.head_used
    included = "included" if facts.dispersion_of(used) == "included" else "none"
    return Shared(
        {
            "model": facts.model,
            "checkpoint_sha256": facts.checkpoint_sha256,
            "functional": facts.functional_of(used),
            "head": used or None,
            "dtype": facts.dtype,
            "arithmetic": dict(facts.arithmetic) or None,
            "package": facts.package,
            "package_version": facts.package_version,
            "dispersion": included if asked.correction is None else asked.correction.model,
            "licence": facts.licence,
            "training_data": facts.training_data,
        }
    )


@asynccontextmanager
async def _using(
    service: Service, name: str, head: str, options: Options, call: Call, structures: Sequence[Structure]
) -> AsyncIterator[Asked]:
    """What is asked, with its models loaded while the block runs, and memory for these structures."""
    if not service.directory.on_demand:
        yield _asked(service, name, head, options)
        return
    variant = service.directory.entry(name).variant
    require_head(variant.name, variant.heads, head)
    added = correction_of(variant.name, variant, head, options.dispersion)
    async with service.using((variant.name,) if added is None else (variant.name, added), call, structures):
        yield _asked(service, name, head, options)


def _asked(service: Service, name: str, head: str, options: Options) -> Asked:
    facts = service.directory.facts(name)
    require_head(facts.model, facts.heads, head)
    added = correction_of(facts.model, facts, head, options.dispersion)
    return Asked(facts, head, None if added is None else service.directory.facts(added))


async def _evaluate(service: Service, asked: Asked, structure: Structure, options: Options, call: Call) -> dict[str, Any]:
    question, correction = _questions(asked, options)
    if correction is None:
        return _result(asked, structure, await evaluation.one(service, question, structure, call))
    answers = await evaluation.together(*(evaluation.one(service, each, structure, call) for each in (question, correction)))
    return _result(asked, structure, _corrected(*answers))


async def _evaluate_batch(
    service: Service, task: Batch, entries: Sequence[tuple[int, Structure]], call: Call
) -> tuple[Asked, dict[int, dict[str, Any] | ForcegateError]]:
    """What ``_evaluate_all`` gives; what ran out of memory is evaluated once more, by itself, with more room.

    Raises:
        ForcegateError: see ``batch``.
    """

    async def evaluated(some: Sequence[tuple[int, Structure]]) -> tuple[Asked, dict[int, dict[str, Any] | ForcegateError]]:
        structures = [structure for _, structure in some]
        async with _using(service, task.model, task.options.head, task.options, call, structures) as asked:
            call.model = asked.facts.model
            return asked, await _evaluate_all(service, asked, some, task.options, call)

    asked, results = await evaluated(entries)
    left = [entry for entry in entries if isinstance(results[entry[0]], OutOfMemory)]
    if left and await service.make_room(task.model, call):
        with suppress(ForcegateError):  # such as a queue that is full by now: what they had stays
            asked, again = await evaluated(left)
            results |= {index: found for index, found in again.items() if isinstance(found, dict | OutOfMemory)}
    return asked, results


async def _evaluate_all(
    service: Service, asked: Asked, entries: Sequence[tuple[int, Structure]], options: Options, call: Call
) -> dict[int, dict[str, Any] | ForcegateError]:
    """What there is to say of each structure, by its place in the batch.

    Raises:
        Overloaded, DeadlineExceeded: the batch is not taken on.
    """
    questions = [question for question in _questions(asked, options) if question is not None]
    answers = await evaluation.together(*(evaluation.many(service, question, entries, call) for question in questions))
    results: dict[int, dict[str, Any] | ForcegateError] = {}
    for index, structure in entries:
        found = [answer[index] for answer in answers]
        error = next((each for each in found if isinstance(each, ForcegateError)), None)
        results[index] = error if error is not None else _result(asked, structure, _corrected(*found))
    return results


def _questions(asked: Asked, options: Options) -> tuple[Question, Question | None]:
    """What is asked of the model, and of the correction."""
    outputs = ("energy", *(("forces",) if options.forces else ()), *(("stress",) if options.stress else ()))
    question = Question(asked.facts.model, outputs + asked.extra_outputs, asked.head)
    return question, None if asked.correction is None else Question(asked.correction.model, outputs)


def _corrected(arrays: Arrays, corrections: Arrays | None = None) -> Arrays:
    return arrays | {name: arrays[name] + values for name, values in (corrections or {}).items()}


def _result(asked: Asked, structure: Structure, arrays: Arrays) -> dict[str, Any]:
    energy = float(arrays["energy"][0])
    forces, stress = arrays.get("forces"), arrays.get("stress")
    result: dict[str, Any] = {
        "energy": energy,
        "energy_per_atom": energy / len(structure),
        "forces": forces,
        # NaN stands for "not periodic in all three directions"; JSON has no word for it.
        "stress": None if stress is None or np.isnan(stress[0]) else stress,
        "max_force": None if forces is None else _largest_norm(forces),
    }
    for name in asked.extra_outputs:
        result[name] = arrays[name]
    return result


def _largest_norm(forces: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", forces, forces).max()))


def _finished(answer: dict[str, Any], call: Call) -> dict[str, Any]:
    answer["units"] = UNITS
    answer["request_id"] = call.request_id
    answer["seconds"] = round(call.seconds, 6)
    return answer


async def _one_of_many(service: Service, task: MultiModel, name: str, call: Call) -> tuple[dict[str, Any], merge.Outcome | None]:
    try:
        canonical = service.directory.entry(name).variant.name
        head = task.heads.get(name) or task.heads.get(canonical) or task.options.head

        async def evaluated() -> tuple[Asked, dict[str, Any], dict[int, float]]:
            async with _using(service, name, head, task.options, call, (task.structure,)) as asked:
                result = await _evaluate(service, asked, task.structure, task.options, call)
                # The correction of an atom alone is zero, so these need none.
                numbers = task.structure.numbers
                return asked, result, await _isolated_atoms(service, asked, numbers, call) if task.align else {}

        asked, result, isolated = await service.with_memory(name, call, evaluated)
    except Overloaded:
        raise
    except ForcegateError as error:
        service.metrics.rejected.labels(error.code).inc()
        return {"model": name, "status": "error", "result": None, "error": error.as_dict()}, None
    source = provenance(asked)
    outcome = merge.Outcome(name, source.value["functional"], result["energy"], result["forces"], result["stress"], isolated)
    return {"model": name, "status": "success", "result": {**result, "provenance": source}, "error": None}, outcome


async def _isolated_atoms(service: Service, asked: Asked, numbers: np.ndarray, call: Call) -> dict[int, float]:
    """Energy in eV of one atom alone, by atomic number; without those that the model cannot evaluate."""
    facts, head = asked.facts, asked.head

    async def energy(number: int) -> float | None:
        key = f"{facts.checkpoint_sha256} in {facts.dtype}", head, number
        if key not in service.references:
            atom = Structure(np.array([number], dtype=np.int32), np.zeros((1, 3)))
            try:
                arrays = await evaluation.one(service, Question(facts.model, ("energy",), head), atom, call)
            except Overloaded:
                raise
            except ForcegateError:
                return None
            service.references[key] = float(arrays["energy"][0])
        return service.references[key]

    elements = [int(number) for number in np.unique(numbers)]
    energies = await evaluation.together(*(energy(number) for number in elements))
    return {number: value for number, value in zip(elements, energies, strict=True) if value is not None}


def _refuse_duplicates(service: Service, task: MultiModel) -> None:
    seen: dict[str, str] = {}
    for name in task.models:
        try:
            canonical = service.directory.entry(name).variant.name
        except UnknownModel:
            canonical = name
        if canonical in seen:
            raise InvalidRequest(f"`model_names` names {canonical[:60]!r} twice ({seen[canonical][:60]!r} and {name[:60]!r}).", "")
        seen[canonical] = name


def _outside(service: Service, task: MultiModel) -> dict[str, list[int]]:
    elements = task.structure.numbers.tolist()
    outside = {}
    for name in task.models:
        try:
            outside[name] = service.directory.entry(name).variant.elements_outside(elements)
        except UnknownModel:
            continue
    return outside
