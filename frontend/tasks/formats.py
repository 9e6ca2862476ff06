"""A trajectory in other formats than the one that it is kept in, converted while it is sent: one frame is in memory at a time."""

from __future__ import annotations

import io
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO, overload

from ase import Atoms
from ase.io.extxyz import read_xyz as read_extxyz
from ase.io.proteindatabank import write_proteindatabank
from ase.io.vasp import write_vasp_xdatcar
from ase.io.xsf import write_xsf
from ase.io.xyz import write_xyz

from forcegate.errors import InvalidRequest
from frontend.tasks.kinds.trajectory import frames


@dataclass(frozen=True)
class Format:
    """ASE's writer of a format, which goes through the frames one by one, and the ending of its files.

    ``write`` is None for the format that trajectories are kept in.
    """

    ending: str
    write: Callable[[TextIO, Any], None] | None = None


FORMATS: Final = {
    "extxyz": Format("extxyz"),
    "xyz": Format("xyz", write_xyz),
    "pdb": Format("pdb", write_proteindatabank),
    "xsf": Format("xsf", write_xsf),
    "xdatcar": Format("XDATCAR", write_vasp_xdatcar),
}
"""Text formats that hold several structures. ASE's own ``write`` would make a list of all of them first."""

_CHUNK: Final = 1 << 16


class Frames(Sequence[Atoms]):
    """The whole frames among the first ``size`` bytes of an extxyz file, each read when it is asked for."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._begins = array("q")
        for _, begin, after in frames(path):
            if after > size:
                break
            self._begins.append(begin)
        self._first: Atoms | None = None

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, index: int) -> Atoms: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Atoms]: ...

    def __getitem__(self, index: int | slice) -> Atoms | Sequence[Atoms]:
        if isinstance(index, slice):
            part = object.__new__(Frames)
            part._path, part._begins, part._first = self._path, self._begins[index], None
            return part
        if index == 0 and self._first is not None:  # writers compare the others with it
            return self._first
        with self._path.open("rb") as file:
            file.seek(self._begins[index])
            count = file.readline()
            lines = [count, *(file.readline() for _ in range(int(count) + 1))]
        (atoms,) = read_extxyz(io.StringIO(b"".join(lines).decode()), index=slice(0, 1))
        if index == 0:
            self._first = atoms
        return atoms


def converted(path: Path, size: int, name: str) -> Iterator[bytes]:
    """The whole frames among the first ``size`` bytes of the extxyz file ``path``, in the format ``name``, piece by piece.

    Whoever ends the iterator ends the conversion.

    Raises:
        InvalidRequest: the format cannot hold such structures. All frames of a trajectory are of the same atoms, so the first
            one tells; it is tried before this function returns.
    """
    write, images = FORMATS[name].write, Frames(path, size)
    assert write is not None
    try:
        write(io.StringIO(), images[:1])
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AssertionError) as error:
        raise InvalidRequest(
            f"The trajectory cannot be written as {name}: {str(error)[:200] or type(error).__name__}.", "Take it as extxyz."
        ) from None
    return _pieces(write, images)


def _pieces(write: Callable[[TextIO, Any], None], images: Frames) -> Iterator[bytes]:
    """What ``write`` writes, by a thread that is never further ahead than a pipe holds."""
    source, sink = os.pipe()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with os.fdopen(sink, "w", _CHUNK) as file:
                write(file, images)
        except BrokenPipeError:  # nobody reads any more
            pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="conversion", daemon=True)
    thread.start()
    with os.fdopen(source, "rb", 0) as file:
        while piece := file.read(_CHUNK):
            yield piece
    thread.join()
    if failures:  # the answer has begun: ending it in its middle is all that can be said
        raise failures[0]
