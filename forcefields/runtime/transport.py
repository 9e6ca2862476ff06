"""Tensors into and out of Triton's Python backend, and nothing else.

Only DLPack is right: with numpy 2 the stub of Triton 2.51 hands out inputs with wrong strides and sends outputs that are
empty, both in silence. torch is the carrier, since every environment but GRACE's holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack

from forcefields.runtime.batch import Job
from forcegate.contract import INPUTS, TensorSpec


def read_inputs(request: Any, pb_utils: Any) -> dict[str, np.ndarray]:
    """The input tensors of one request by name; optional ones that were not sent are missing. Valid while the request is."""
    arrays = {}
    for spec in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
        if tensor is not None:
            arrays[spec.name] = torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).numpy()
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
    return [pb_utils.Tensor.from_dlpack(name, torch.from_numpy(array)) for name, array in arrays.items()]
