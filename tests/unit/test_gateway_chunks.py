"""A batch as few requests: little padding, no structure twice, and a bad one by itself."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegate.errors import CoincidentAtoms, EvaluationFailed, ForcegateError
from forcegate.structure import Structure
from frontend.admission import Estimator
from frontend.chunks import ATOMS, PADDING, SECONDS, STRUCTURES, chunks
from frontend.triton.client import Evaluator
from tests.unit.fault_injection import UNHEALTHY, FaultyTriton
from tests.unit.test_gateway_triton import POISON, Bystander, call, scene

ESTIMATOR = Estimator(None, 5.0, 128)


def atoms(count: int, symbol: int = 18) -> Structure:
    return Structure(np.full(count, symbol, np.int32), np.arange(3.0 * count).reshape(count, 3))


@given(st.lists(st.integers(0, 300), max_size=80), st.floats(0.01, 30.0))
def test_every_structure_is_in_one_request_of_its_like(sizes: list[int], correction: float) -> None:
    made = chunks([(3 * k, atoms(size)) for k, size in enumerate(sizes)], ESTIMATOR, correction)
    assert sorted(index for chunk in made for index in chunk.indices) == [3 * k for k in range(len(sizes))]
    for chunk in made:
        lengths = [len(structure) for structure in chunk.structures]
        assert [sizes[index // 3] for index in chunk.indices] == lengths
        assert len(lengths) <= STRUCTURES
        assert chunk.work.atoms == sum(lengths)
        assert max(lengths) <= PADDING * max(*lengths[:1], 1)
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= ATOMS
        assert len(lengths) == 1 or chunk.work.seconds * correction <= SECONDS * (1 + 1e-9)


def test_256_equal_small_structures_are_8_requests() -> None:
    assert len(chunks([(k, atoms(8)) for k in range(256)], ESTIMATOR, 1.0)) == 8


def energies(answers: list[dict[str, np.ndarray] | ForcegateError]) -> list[float | type[ForcegateError]]:
    return [type(answer) if isinstance(answer, ForcegateError) else float(answer["energy"][0]) for answer in answers]


async def ask(evaluator: Evaluator, structures: list[Structure]) -> list[dict[str, np.ndarray] | ForcegateError]:
    return await evaluator.evaluate_many("m", structures, ("energy", "forces"), "", call())


def test_structures_travel_together_and_come_back_without_padding() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        answers = await ask(evaluator, [atoms(2), atoms(5), atoms(3)])
        assert energies(answers) == [2.0, 5.0, 3.0]
        assert [answer["forces"].shape for answer in answers if isinstance(answer, dict)] == [(2, 3), (5, 3), (3, 3)]
        assert len(triton.requests) == 1

    scene(play)


@pytest.mark.parametrize(("refused", "requests"), [([1], 2), ([1, 2], 4)])
def test_one_bad_structure_fails_alone_and_without_the_number_that_the_model_gave_it(refused: list[int], requests: int) -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        # Whatever is sent after the second of them goes one by one, and the fault injector does not refuse those.
        triton.faults = [
            (grpc.StatusCode.INVALID_ARGUMENT, "coincident_atoms: Structure 1 of 4 in this request: Atoms 0 and 1. | hint: Look."),
            *[(grpc.StatusCode.INVALID_ARGUMENT, "coincident_atoms: Structure 1 of 3 in this request: Atoms 0 and 1.")]
            * (len(refused) - 1),
        ]
        answers = await ask(evaluator, [atoms(2), atoms(3), atoms(4), atoms(5)])
        expected: list[float | type[ForcegateError]] = [2.0, 3.0, 4.0, 5.0]
        for index in refused:
            expected[index] = CoincidentAtoms
        assert energies(answers) == expected
        assert {str(answers[index])[:15] for index in refused} == {
            "Atoms 0 and 1. "[: len(str(answers[index])[:15])] for index in refused
        }
        assert len(triton.requests) == requests

    scene(play)


def test_a_structure_that_kills_its_model_is_found_among_those_it_travelled_with() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.poison, triton.seconds = POISON, 0.02
        answers = await ask(evaluator, [atoms(2), atoms(3), atoms(4, POISON), atoms(5)])
        assert energies(answers) == [2.0, 3.0, EvaluationFailed, 5.0]

    scene(play)


def test_what_concerns_all_is_said_of_all() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, directory: Bystander) -> None:
        directory.coming_back = False
        triton.faults = [(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")]
        answers = await ask(evaluator, [atoms(2), atoms(3)])
        assert {type(answer).__name__ for answer in answers} == {"ModelNotReady"}
        assert len(triton.requests) == 1

    scene(play)


def test_a_crash_that_somebody_else_caused_is_not_held_against_them() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.faults = [(grpc.StatusCode.INTERNAL, UNHEALTHY)]
        asyncio.get_running_loop().call_later(0.2, triton._revive)
        assert energies(await ask(evaluator, [atoms(2), atoms(3)])) == [2.0, 3.0]

    scene(play)
