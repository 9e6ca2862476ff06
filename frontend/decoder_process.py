"""The process behind ``frontend.decoder``: reads tasks from standard input and writes records to standard output.

It ends when its standard input does, so it cannot outlive the gateway.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import BinaryIO

from forcegate.errors import ForcegateError, InvalidRequest
from frontend.requests import decode

_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">Q")


def main() -> None:
    """Answers tasks until the gateway closes the pipe."""
    source = sys.stdin.buffer
    # Whatever a file reader prints must not get between the records.
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while header := _read(source, _HEADER.size):
        task_length, body_length = _HEADER.unpack(header)
        calculation, media, limits = pickle.loads(_read(source, task_length))
        record: object
        try:
            record = decode(calculation, _read(source, body_length), media, limits)
        except ForcegateError as error:
            record = error
        except MemoryError:
            record = InvalidRequest("The body took more memory to read than there is.", "Send fewer structures in one request.")
        pickled = pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
        sink.write(_LENGTH.pack(len(pickled)))
        sink.write(pickled)
        sink.flush()


def _read(source: BinaryIO, size: int) -> bytes:
    """Exactly ``size`` bytes, or none at the end of the stream."""
    data = source.read(size)
    return data if len(data) == size else b""


if __name__ == "__main__":
    main()
