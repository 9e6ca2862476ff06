"""Remembers, over the death of this process, what it was evaluating: so that one structure cannot kill a model again and again.

Before graphs are built, and before each forward pass, the digests of the structures are written down. The process that comes after
a death reads them: those structures are suspects, and each goes through both steps alone. One that is alone at two deaths is
condemned: it is answered by an error and never evaluated again by this model. Everyone else's requests are tried again and succeed.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from forcegate.structure import Structure

log = logging.getLogger(__name__)

DIGEST = 16
"""Bytes of a digest."""
LONE_DEATHS = 2
"""Deaths alone after which a structure is condemned. One can be chance: somebody else may have killed the process."""
REMEMBERED_SECONDS = 24 * 3600
_COUNT = struct.Struct("<I")


class Journal:
    """The journal of one model process, in two files: the pass that runs now, and what is held against structures.

    Processes of one model, instances or a new copy beside an old one, each have a file of their pass, and what is held against
    structures in common. The kernel frees a file with the end of its process; the next process reads it.

    Args:
        path: of the model, without suffix; ``.pass`` and ``.json`` are added.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._charges_path = path.with_name(path.name + ".json")
        self._charges = self._read_charges()
        self._steps: dict[object, Sequence[bytes]] = {}
        self._writing = threading.Lock()
        self._file, *others = _free(path)
        for file in (*others, self._file):
            if died_in := _read_pass(file):
                self._charge(died_in)
            os.pwrite(file, _COUNT.pack(0), 0)
        for file in others:
            os.close(file)

    @property
    def empty(self) -> bool:
        """Whether nothing is held against any structure, which is nearly always so."""
        return not self._charges

    def suspected(self, entry: bytes) -> bool:
        """Whether the model died in a pass with the structure of this digest, so that it has to be evaluated alone."""
        return entry.hex() in self._charges

    def condemned(self, entry: bytes) -> bool:
        """Whether the model died twice in a pass with the structure of this digest alone."""
        return self._charges.get(entry.hex(), (0, 0.0))[0] >= LONE_DEATHS

    @contextmanager
    def during(self, digests: Sequence[bytes], acquit: bool) -> Iterator[None]:
        """Around a step in which the structures of these digests could kill the process.

        Two steps may overlap, each in its thread: the graphs of the next pass are built during this one.

        Args:
            acquit: whether what the process survives is no suspect any more: true of the forward pass, which is the last step.
        """
        step = object()
        self._write_pass(step, digests)
        try:
            yield
        finally:  # an exception is not a death either
            self._write_pass(step, ())
            if acquit and not self.empty:
                self._acquit(digests)

    def _charge(self, died_in: list[bytes]) -> None:
        alone = len(died_in) == 1
        self._charges = self._read_charges()  # another process may have written since
        for entry in died_in:
            lone, _ = self._charges.get(entry.hex(), (0, 0.0))
            self._charges[entry.hex()] = (lone + alone, time.time())
        log.warning("the process before this one died during a pass", extra={"structures": len(died_in), "alone": alone})
        self._write_charges()

    def _acquit(self, digests: Sequence[bytes]) -> None:
        self._charges = self._read_charges()
        if [self._charges.pop(entry.hex()) for entry in digests if entry.hex() in self._charges]:
            self._write_charges()

    def _read_charges(self) -> dict[str, tuple[int, float]]:
        try:
            data = json.loads(self._charges_path.read_text())
        except (OSError, ValueError):
            return {}
        return {key: (lone, when) for key, (lone, when) in data.items() if time.time() - when < REMEMBERED_SECONDS}

    def _write_charges(self) -> None:
        partial = self._charges_path.with_suffix(".partial")
        partial.write_text(json.dumps(self._charges))
        os.replace(partial, self._charges_path)

    # The page cache keeps what was written when the process dies, so nothing is flushed to the disk.

    def _write_pass(self, step: object, digests: Sequence[bytes]) -> None:
        with self._writing:
            self._steps[step] = digests
            if not digests:
                del self._steps[step]
            # Those of two steps at once are not "alone", whichever of the two it is that ends the process.
            present = [entry for entries in self._steps.values() for entry in entries]
            os.pwrite(self._file, _COUNT.pack(len(present)) + b"".join(present), 0)


def _read_pass(file: int) -> list[bytes]:
    head = os.pread(file, _COUNT.size, 0)
    if len(head) < _COUNT.size:
        return []
    body = os.pread(file, _COUNT.unpack(head)[0] * DIGEST, _COUNT.size)
    return [body[k : k + DIGEST] for k in range(0, len(body) - DIGEST + 1, DIGEST)]


def _free(path: Path) -> list[int]:
    """The files of passes that no living process has, at least one, each locked until this process ends or closes it."""
    found: list[int] = []
    for number in itertools.count():
        name = path.with_name(f"{path.name}.{number}.pass" if number else f"{path.name}.pass")
        if found and not name.exists():
            break
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            found.append(file)
    return found


def digest(structure: Structure, head: str) -> bytes:
    """Identifies a structure with a head."""
    found = hashlib.blake2b(head.encode(), digest_size=DIGEST)
    for array in (structure.numbers, structure.positions, structure.cell, structure.pbc):
        found.update(array.tobytes())
    found.update(struct.pack("<di", structure.charge, structure.spin))
    return found.digest()
