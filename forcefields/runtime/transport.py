"""Tensors into and out of Triton's Python backend, and nothing else.

Only DLPack is right: with numpy 2 the stub of Triton 2.51 hands out inputs with wrong strides and sends outputs that are
empty, both in silence; and numpy's own DLPack logs an error for every tensor. So a tensor library carries them: torch, where the
environment has it, since its families have loaded it anyway; else TensorFlow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from forcefields.runtime.batch import Job
from forcegate.contract import INPUTS, TensorSpec


@dataclass(frozen=True)
class Carrier:
    """How a DLPack capsule becomes an array, and how an array becomes what the backend takes for a tensor."""

    library: str
    array: Callable[[Any], np.ndarray]
    tensor: Callable[[np.ndarray], Any]


@cache
def carrier() -> Carrier:
    """The one of this environment. Which it is, is found out without importing either."""
    return _torch() if importlib.util.find_spec("torch") is not None else _tensorflow()


def _torch() -> Carrier:
    import torch
    import torch.utils.dlpack

    return Carrier("torch", lambda capsule: torch.utils.dlpack.from_dlpack(capsule).numpy(), torch.from_numpy)


def _tensorflow() -> Carrier:
    import tensorflow

    def tensor(array: np.ndarray) -> Any:
        with tensorflow.device("/CPU:0"):
            return tensorflow.experimental.dlpack.to_dlpack(tensorflow.constant(array))

    return Carrier("tensorflow", lambda capsule: tensorflow.experimental.dlpack.from_dlpack(capsule).numpy(), tensor)


def read_inputs(request: Any, pb_utils: Any) -> dict[str, np.ndarray]:
    """The input tensors of one request by name; optional ones that were not sent are missing. Valid while the request is."""
    arrays = {}
    for spec in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
        if tensor is not None:
            arrays[spec.name] = carrier().array(tensor.to_dlpack())
    return arrays


def write_outputs(jobs: Sequence[Job], width: int, specs: Sequence[TensorSpec], pb_utils: Any) -> list[Any]:
    """The output tensors of one request, whose structures were padded to ``width`` atoms."""
    arrays = {spec.name: np.zeros(spec.shape(len(jobs), width)) for spec in specs}
    for row, job in enumerate(jobs):
        assert job.result is not None, "a request with a failed structure is answered by its error"
        values = {"energy": job.result.energy, "forces": job.result.forces, "stress": job.result.stress, **job.result.extra}
        for spec in specs:
            per_atom = -1 in spec.dims
            arrays[spec.name][(row, slice(len(job.structure))) if per_atom else row] = values[spec.name]
    return [pb_utils.Tensor.from_dlpack(name, carrier().tensor(array)) for name, array in arrays.items()]
