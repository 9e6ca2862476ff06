"""The gateway's way to Triton: messages, typed errors, retries, and a structure that kills its model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from forcegate import contract, tensors
from forcegate.errors import (
    CoincidentAtoms,
    DeadlineExceeded,
    EvaluationFailed,
    ForcegateError,
    ModelCrashed,
    ModelNotReady,
    ServerUnavailable,
)
from forcegate.structure import Structure
from frontend.telemetry import Call, Metrics
from frontend.triton.client import MAX_CRASHES, Evaluator, typed
from frontend.triton.messages import infer_request, infer_response
from tests.service import free_ports
from tests.unit.fault_injection import UNHEALTHY, FaultyTriton, serving

RNG = np.random.default_rng(0)
PERIODIC = Structure(
    np.array([11, 17], np.int32), RNG.normal(size=(2, 3)), RNG.normal(size=(3, 3)), np.array([True, False, True]), 0.5, 3
)
POISON = 61
ABSENT = 10_000_000
"""Process ids from here on do not exist."""


@pytest.mark.parametrize("structure", [PERIODIC, Structure(np.zeros(0, np.int32), np.zeros((0, 3)))], ids=["crystal", "empty"])
def test_a_request_carries_what_the_contract_packs(structure: Structure) -> None:
    request = service_pb2.ModelInferRequest.FromString(infer_request("m", structure, ("energy", "forces"), "PBE", "id-1"))
    assert (request.model_name, request.id, request.parameters["head"].string_param) == ("m", "id-1", "PBE")
    assert [output.name for output in request.outputs] == ["energy", "forces"]
    packed = tensors.pack([structure])
    assert [tensor.name for tensor in request.inputs] == [spec.name for spec in contract.INPUTS]
    for tensor, raw, spec in zip(request.inputs, request.raw_input_contents, contract.INPUTS, strict=True):
        assert tensor.datatype == spec.triton_type
        np.testing.assert_array_equal(np.frombuffer(raw, spec.dtype).reshape(tensor.shape), packed[spec.name])


def test_a_response_is_read_without_its_batch_axis() -> None:
    response = service_pb2.ModelInferResponse(model_name="m")
    forces = RNG.normal(size=(1, 2, 3))
    for name, array in (("energy", np.array([[-1.5]])), ("forces", forces)):
        response.outputs.add(name=name, datatype="FP64", shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    arrays = infer_response(response.SerializeToString())
    assert arrays["energy"].tolist() == [-1.5]
    np.testing.assert_array_equal(arrays["forces"], forces[0])


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (
            "INVALID_ARGUMENT",
            "[request id: 1] coincident_atoms: Atoms 0 and 1. | hint: Look.\n\nAt:\n  /a/path.py(3): x",
            CoincidentAtoms,
        ),
        ("INTERNAL", UNHEALTHY, ModelCrashed),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotReady),
        ("UNAVAILABLE", "Request for unknown model: 'm' has no available versions", ModelNotReady),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ipv4:127.0.0.1:1", ServerUnavailable),
        ("CANCELLED", "", ServerUnavailable),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        (
            "INTERNAL",
            "Failed to increase the shared memory pool size for key 'triton_python_backend_shm_region_1'",
            ServerUnavailable,
        ),
        ("RESOURCE_EXHAUSTED", "Exceeds maximum queue size", ServerUnavailable),
        ("INVALID_ARGUMENT", "[request id: 1] inference input 'cell' has wrong shape, at /a/path", EvaluationFailed),
    ],
)
def test_tritons_own_words_never_reach_a_caller(code: str, text: str, expected: type[ForcegateError]) -> None:
    raised = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)
    error = typed(raised, "m", call())
    assert type(error) is expected
    told = f"{error.detail} {error.hint}"
    assert not any(word in told for word in ("path", "shm", "ipv4", "Stub", "instance"))


class Bystander:
    """Stands for the directory: the process of ``FaultyTriton`` is dead as soon as anybody looks, as a crashed one is."""

    def __init__(self, triton: FaultyTriton) -> None:
        self._triton = triton
        self.coming_back = True

    def process(self, _model: str) -> int:
        return ABSENT + self._triton.processes

    last_process = process

    def recently_ready(self, _model: str) -> bool:
        return self.coming_back


def call(seconds: float = 20) -> Call:
    made = Call("test", time.perf_counter())
    made.allow(seconds)
    return made


def argon(*numbers: int) -> Structure:
    return Structure(np.array(numbers or (18,), np.int32), RNG.normal(size=(max(len(numbers), 1), 3)))


def scene(play: Callable[[FaultyTriton, Evaluator, Bystander], Awaitable[None]]) -> None:
    """Runs ``play`` with an evaluator in front of a Triton that fails on purpose."""
    triton = FaultyTriton()

    async def run(address: str) -> None:
        directory = Bystander(triton)
        evaluator = Evaluator(address, directory, Metrics())  # type: ignore[arg-type]
        try:
            await play(triton, evaluator, directory)
        finally:
            await evaluator.close()

    with serving(triton) as address:
        asyncio.run(run(address))


def wait_for_a_request(triton: FaultyTriton) -> None:
    while not triton.requests:
        time.sleep(0.01)


async def energy(evaluator: Evaluator, structure: Structure, seconds: float = 20) -> float:
    arrays = await evaluator.evaluate("m", structure, ("energy",), "", call(seconds))
    return float(arrays["energy"][0])


def test_a_crash_is_tried_again_and_nobody_sees_it() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.faults = [(grpc.StatusCode.INTERNAL, UNHEALTHY)]
        asyncio.get_running_loop().call_later(0.2, triton._revive)
        assert await energy(evaluator, argon(18, 18)) == 2.0

    scene(play)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    async def play(_triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        assert await energy(evaluator, argon()) == 1.0

    scene(play)


def test_full_shared_memory_passes_and_nobody_sees_it() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.faults = [(grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size for key 'x'")] * 2
        assert await energy(evaluator, argon()) == 1.0

    scene(play)


def test_a_model_that_is_being_reloaded_is_waited_for() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.faults = [(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")] * 3
        assert await energy(evaluator, argon()) == 1.0
        assert len(triton.requests) == 4

    scene(play)


def test_a_model_that_was_unloaded_is_not_waited_for() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, directory: Bystander) -> None:
        directory.coming_back = False
        triton.faults = [(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found")]
        with pytest.raises(ModelNotReady):
            await energy(evaluator, argon())
        assert len(triton.requests) == 1

    scene(play)


def test_a_models_own_error_is_not_tried_again() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.faults = [(grpc.StatusCode.INVALID_ARGUMENT, "coincident_atoms: Atom 0 and atom 1.")]
        with pytest.raises(CoincidentAtoms):
            await energy(evaluator, argon())
        assert len(triton.requests) == 1

    scene(play)


def test_a_structure_that_kills_its_model_is_refused_by_it_and_its_neighbours_get_their_answers() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.poison, triton.seconds = POISON, 0.02
        structures = [argon(*[18] * (k + 1)) for k in range(20)] + [argon(POISON, 18)]
        outcomes = await asyncio.gather(*(energy(evaluator, s, 60) for s in structures), return_exceptions=True)
        assert outcomes[:20] == [float(k + 1) for k in range(20)]
        assert isinstance(outcomes[20], EvaluationFailed)
        poisoned = [r for r in triton.requests if POISON in np.frombuffer(r.raw_input_contents[0], np.int32)]
        assert len(poisoned) == triton.deaths + 1

    scene(play)


def test_a_model_that_never_finds_out_is_not_killed_for_ever() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.poison, triton.recovery, triton.deaths = POISON, 0.05, 1000
        with pytest.raises(EvaluationFailed) as caught:
            await energy(evaluator, argon(POISON), 60)
        assert not caught.value.retryable
        assert triton.processes <= MAX_CRASHES

    scene(play)


def test_a_server_that_is_away_is_given_one_second() -> None:
    async def run() -> None:
        evaluator = Evaluator(f"127.0.0.1:{free_ports(1)[0]}", Bystander(FaultyTriton()), Metrics())  # type: ignore[arg-type]
        started = time.monotonic()
        with pytest.raises(ServerUnavailable):
            await energy(evaluator, argon(), 30)
        assert time.monotonic() - started < 3
        await evaluator.close()

    asyncio.run(run())


def test_the_deadline_bounds_all_attempts() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.seconds = 5
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await energy(evaluator, argon(), 0.5)
        triton.seconds = 0
        triton.faults = [(grpc.StatusCode.INTERNAL, UNHEALTHY)]
        # Nobody brings the process back.
        with pytest.raises(ModelCrashed):
            await energy(evaluator, argon(), 1.0)
        assert time.monotonic() - started < 3

    scene(play)


def test_a_cancelled_caller_cancels_the_call() -> None:
    async def play(triton: FaultyTriton, evaluator: Evaluator, _: Bystander) -> None:
        triton.seconds = 1
        task = asyncio.create_task(energy(evaluator, argon()))
        await asyncio.to_thread(wait_for_a_request, triton)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Nothing is left behind that would hold up the next one.
        triton.seconds = 0
        assert await energy(evaluator, argon()) == 1.0

    scene(play)
