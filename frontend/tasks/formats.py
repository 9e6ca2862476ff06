"""A trajectory in other formats than the one that it is kept in."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from ase import Atoms
from ase.io import iread, write

from forcegate.errors import InvalidRequest
from frontend.tasks.kinds.trajectory import frames


@dataclass(frozen=True)
class Format:
    """ASE's name of a format, and the ending of its files."""

    name: str
    ending: str


FORMATS: Final = {
    "extxyz": Format("extxyz", "extxyz"),
    "xyz": Format("xyz", "xyz"),
    "pdb": Format("proteindatabank", "pdb"),
    "xsf": Format("xsf", "xsf"),
    "xdatcar": Format("vasp-xdatcar", "XDATCAR"),
}
"""Text formats that hold several structures."""

MOST_BYTES: Final = 256 << 20
"""Of a trajectory that is converted: all of its frames are in memory for it."""


def converted(path: Path, size: int, name: str) -> bytes:
    """The whole frames among the first ``size`` bytes of the extxyz file ``path``, in the format ``name``.

    Raises:
        InvalidRequest: it is too long, or the format cannot hold its structures.
    """
    if size > MOST_BYTES:
        raise InvalidRequest(
            f"The trajectory has {size >> 20} MB; up to {MOST_BYTES >> 20} MB are converted.", "Take it as extxyz, and convert it."
        )
    whole = sum(1 for _, _, after in frames(path) if after <= size)
    images = [image for image in islice(iread(path, index=":", format="extxyz"), whole) if isinstance(image, Atoms)]
    text = io.StringIO()
    try:
        write(text, images, format=FORMATS[name].name)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AssertionError) as error:
        raise InvalidRequest(
            f"The trajectory cannot be written as {name}: {str(error)[:200] or type(error).__name__}.", "Take it as extxyz."
        ) from None
    return text.getvalue().encode()
