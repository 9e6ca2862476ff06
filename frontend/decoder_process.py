"""The process behind ``frontend.decoder``: reads tasks from standard input and writes records to standard output.

It ends when its standard input does, so it cannot outlive the gateway.
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
import sys
from typing import BinaryIO

from forcegate.errors import BodyTooLarge, ForcegateError
from frontend.requests import Limits, decode

_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">Q")


def main() -> None:
    """Answers tasks until the gateway closes the pipe. The argument is how many bytes this process may hold."""
    if len(sys.argv) > 1:
        # Of private memory that is written to, so that neither libraries nor reserved addresses count. What is in C and cannot
        # go on without memory ends the process; the gateway starts another.
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
    source = sys.stdin.buffer
    # Whatever a file reader prints must not get between the records.
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while header := _read(source, _HEADER.size):
        task_length, body_length = _HEADER.unpack(header)
        calculation, media, limits = pickle.loads(_read(source, task_length))
        pickled = _outcome(calculation, _read(source, body_length), media, limits)
        sink.write(_LENGTH.pack(len(pickled)))
        sink.write(pickled)
        sink.flush()


def _outcome(calculation: str, body: bytes, media: str, limits: Limits) -> bytes:
    """The record of a body, or its error, pickled."""
    try:
        return pickle.dumps(decode(calculation, body, media, limits), protocol=pickle.HIGHEST_PROTOCOL)
    except ForcegateError as error:
        return pickle.dumps(error)
    except MemoryError:
        return pickle.dumps(
            BodyTooLarge("The body took more memory to read than it may.", "Send fewer or smaller structures in one request.")
        )


def _read(source: BinaryIO, size: int) -> bytes:
    """Exactly ``size`` bytes, or none at the end of the stream."""
    data = source.read(size)
    return data if len(data) == size else b""


if __name__ == "__main__":
    main()
