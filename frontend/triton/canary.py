"""One golden structure through the whole path, gRPC included: the wire has corrupted tensors in silence before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from forcefields.catalogue import Catalogue, Variant
from forcefields.runtime import golden
from forcegate import tensors
from forcegate.errors import GateFailed
from frontend.triton.control import connected, typed


async def check(
    address: str, catalogue: Catalogue, variant: Variant, state: Path, timeout: float = 60.0, smallest: bool = False
) -> float:
    """Evaluates the golden structures in one padded request and compares the energies with the recorded ones.

    Args:
        state: the state folder, with the energies that were recorded when a checkpoint was exported here.
        smallest: only the smallest structure whose energy is known.

    Returns:
        The largest deviation in eV/atom.

    Raises:
        GateFailed: it is above the gate's tolerance.
    """
    structures = golden.structures(variant)
    recorded = golden.recorded(catalogue.family_of(variant).golden, variant, state) or {}
    if smallest:
        name = min(recorded.keys() & structures.keys() or structures, key=lambda name: len(structures[name]))
        structures, recorded = {name: structures[name]}, {key: value for key, value in recorded.items() if key == name}
    inputs = []
    for name, array in tensors.pack(list(structures.values())).items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    client = connected(address)
    try:
        answer = await client.infer(variant.name, inputs, client_timeout=timeout, request_id="canary")
    except InferenceServerException as error:
        raise typed(error, variant.name) from error
    finally:
        await client.close()
    energies = dict(zip(structures, answer.as_numpy("energy")[:, 0], strict=True))
    deviations = [abs(energies[name] - value) / len(structures[name]) for name, value in recorded.items()]
    deviation = float(np.max(deviations, initial=0.0))
    if not deviation <= variant.gate.energy:
        raise GateFailed(
            f"{variant.name} answers over gRPC differ from the recorded energies by {deviation:.2g} eV/atom.",
            "The transport between client and model corrupts tensors: do not use this server.",
        )
    return deviation
