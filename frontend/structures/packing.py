"""A structure as bytes, as it is kept and as its id is made of it."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from forcegate.structure import Structure


def pack(structure: Structure) -> bytes:
    """A structure as bytes, the same ones for equal numbers: little-endian, without negative zeros."""
    arrays = (("numbers", "<i4"), ("positions", "<f8"), ("cell", "<f8"))
    packed: dict[str, Any] = {name: np.add(getattr(structure, name), 0, dtype=kind).tobytes() for name, kind in arrays}
    packed |= {"pbc": structure.pbc.tolist(), "charge": float(structure.charge), "spin": int(structure.spin)}
    return bytes(msgpack.packb(packed))


def unpack(content: bytes) -> Structure:
    """The structure that ``pack`` was given."""
    packed = msgpack.unpackb(content)
    return Structure(
        numbers=np.frombuffer(packed["numbers"], "<i4").astype(np.int32),
        positions=np.frombuffer(packed["positions"], "<f8").astype(np.float64).reshape(-1, 3),
        cell=np.frombuffer(packed["cell"], "<f8").astype(np.float64).reshape(3, 3),
        pbc=np.array(packed["pbc"], dtype=bool),
        charge=packed["charge"],
        spin=packed["spin"],
    )
