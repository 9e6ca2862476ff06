"""Triton's inference messages, written and read without detours.

``tritonclient``'s own helpers take four times as long as the protobuf messages under them, and at a thousand structures a second
that is a third of a core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from tritonclient.grpc import service_pb2

from forcegate.contract import ATOMS, EXTRA_OUTPUTS, HEAD_PARAMETER, INPUTS, OUTPUTS
from forcegate.structure import Structure
from forcegate.tensors import pack

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_PER_ATOM: Final = frozenset(spec.name for spec in (*OUTPUTS, *EXTRA_OUTPUTS.values()) if ATOMS in spec.dims)
_DTYPES: Final = {spec.name: spec.dtype for spec in (*OUTPUTS, *EXTRA_OUTPUTS.values())}


@lru_cache(maxsize=256)
def _frame(model: str, outputs: tuple[str, ...], head: str) -> bytes:
    """The part of a request that says nothing of the structure. Serialised protobuf messages can be joined end to end."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name in outputs:
        request.outputs.add().name = name
    if head:
        request.parameters[HEAD_PARAMETER].string_param = head
    return request.SerializeToString()


@lru_cache(maxsize=1024)
def _inputs(structures: int, atoms: int) -> bytes:
    """The names, types and shapes of the tensors of so many structures, padded to so many atoms."""
    request = service_pb2.ModelInferRequest()
    for spec in INPUTS:
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = spec.name, spec.triton_type
        tensor.shape.extend(spec.shape(structures, atoms))
    return request.SerializeToString()


def infer_request(model: str, structure: Structure, outputs: tuple[str, ...], head: str, request_id: str) -> bytes:
    """The serialised ``ModelInferRequest`` for one structure; all inputs of the contract, in its order.

    An empty structure travels as one atom of padding, as in ``forcegate.tensors.pack``.
    """
    atoms = max(len(structure), 1)
    padding = atoms - len(structure)
    tail = service_pb2.ModelInferRequest(id=request_id)
    tail.raw_input_contents.extend(
        (
            np.ascontiguousarray(structure.numbers, dtype="<i4").tobytes() + bytes(4 * padding),
            np.ascontiguousarray(structure.positions, dtype="<f8").tobytes() + bytes(24 * padding),
            np.ascontiguousarray(structure.cell, dtype="<f8").tobytes(),
            np.ascontiguousarray(structure.pbc, dtype=np.bool_).tobytes(),
            np.array(structure.charge, dtype="<f8").tobytes(),
            np.array(structure.spin, dtype="<i4").tobytes(),
        )
    )
    return _frame(model, outputs, head) + _inputs(1, atoms) + tail.SerializeToString()


def infer_request_of_many(
    model: str, structures: Sequence[Structure], outputs: tuple[str, ...], head: str, request_id: str
) -> bytes:
    """The same for several structures, padded to the longest."""
    arrays = pack(structures)
    tail = service_pb2.ModelInferRequest(id=request_id)
    tail.raw_input_contents.extend(arrays[spec.name].tobytes() for spec in INPUTS)
    return _frame(model, outputs, head) + _inputs(*arrays["numbers"].shape) + tail.SerializeToString()


def infer_response(serialised: bytes) -> dict[str, np.ndarray]:
    """The output tensors of a request's only structure by name, without their batch axis.

    Raises:
        ValueError: the tensors and their bytes do not belong together.
    """
    return {name: array[0] for name, array in _tensors(serialised).items()}


def infer_response_of_many(serialised: bytes, structures: Sequence[Structure]) -> list[dict[str, np.ndarray]]:
    """The output tensors of each structure of a request, without batch axis and padding.

    Raises:
        ValueError: the tensors and their bytes do not belong together.
    """
    tensors = _tensors(serialised)
    answers = []
    for row, structure in enumerate(structures):
        # An axis of atoms is as long as the longest structure; the others are as long as they are for everybody.
        rows = {name: array[row] for name, array in tensors.items()}
        answers.append({name: array[: len(structure)] if name in _PER_ATOM else array for name, array in rows.items()})
    return answers


def _tensors(serialised: bytes) -> dict[str, np.ndarray]:
    response = service_pb2.ModelInferResponse.FromString(serialised)
    arrays: dict[str, np.ndarray] = {}
    raw: Sequence[bytes] = response.raw_output_contents
    for tensor, data in zip(response.outputs, raw, strict=True):
        arrays[tensor.name] = np.frombuffer(data, dtype=_DTYPES[tensor.name]).reshape(tuple(tensor.shape))
    return arrays
