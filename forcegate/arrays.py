"""Arrays in msgpack as their own bytes, in the form that the package msgpack-numpy writes and reads.

An array is the map ``{"nd": true, "type": "<f8", "kind": "", "shape": [N, 3], "data": bytes}``, its keys bytes (as msgpack-numpy
has them) or texts: ``data`` holds the elements in the order of C, ``type`` is numpy's name of their type. Nothing else of
msgpack-numpy is read here: no objects, which it would unpickle, no records, no scalars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

PARAMETER: Final = "arrays=raw"
"""Parameter of the media type in an Accept header: answers may hold arrays in this form."""
TYPES: Final = frozenset(("<f8", "<f4", "<i4", "<i8", "|b1"))
"""Types that are read: floats, integers, truth values, little-endian."""
MOST_AXES: Final = 2


def packed(array: np.ndarray) -> dict[bytes, Any]:
    """The map of an array, as msgpack-numpy writes it."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {b"nd": True, b"type": little.dtype.str, b"kind": b"", b"shape": list(array.shape), b"data": little.tobytes()}


def is_packed(value: Any) -> bool:
    """Whether something is meant to be an array in this form."""
    return isinstance(value, Mapping) and (b"nd" in value or "nd" in value)


def unpacked(value: Mapping[Any, Any]) -> np.ndarray:
    """The array in a map, a view of its bytes that cannot be written to.

    Raises:
        ValueError: the map is not complete, its type is not one of ``TYPES``, or shape and bytes do not belong together.
    """
    fields = {(key.decode("latin-1") if isinstance(key, bytes) else key): entry for key, entry in value.items()}
    if fields.get("nd") is not True or fields.get("kind", b"") not in (b"", ""):
        raise ValueError("it is not a plain array")
    kind, shape, data = fields.get("type"), fields.get("shape"), fields.get("data")
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"its type has to be one of {', '.join(sorted(TYPES))}")
    if (
        not isinstance(shape, list | tuple)
        or not 1 <= len(shape) <= MOST_AXES
        or any(type(n) is not int or not 0 <= n < 2**31 for n in shape)
    ):
        raise ValueError("its shape has to be one or two lengths")
    if not isinstance(data, bytes):
        raise ValueError("its data have to be bytes")
    dtype = np.dtype(kind)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are not an array of shape {list(shape)} and type {kind}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def unpack_hook(value: dict[Any, Any]) -> Any:
    """For ``msgpack.unpackb(..., object_hook=unpack_hook)``: arrays that can be written to, everything else as it is."""
    return unpacked(value).copy() if is_packed(value) else value
