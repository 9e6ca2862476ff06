"""Decoding of bodies: small ones on the event loop, the others in processes of their own.

A JSON parser holds Python's lock from the first byte to the last, and a file reader may run for ever on a hostile text. In a thread
either would stop everybody's requests; in a process they cost their own sender alone, and can be ended.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from forcegate.errors import BodyTooLarge, DeadlineExceeded, ForcegateError, InvalidRequest, ServerUnavailable
from frontend.requests import TASK, UPLOAD, Batch, Calculation, Limits, MultiModel, Named, SinglePoint, decode
from frontend.tasks.submission import Submission
from frontend.telemetry import Call

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from forcegate.structure import Structure

Record = SinglePoint | Batch | MultiModel | Submission | Named

INLINE: Final = 16_384
"""Bodies up to this many bytes, about 250 atoms, are decoded where they are; it takes less than half a millisecond."""
INLINE_BATCH: Final = 4_096
"""The same for batches, which can hold hundreds of tiny structures in few bytes."""
LARGE: Final = 4 << 20
"""Of bodies longer than this, one at a time is decoded, so that they cannot keep all processes busy."""
MEMORY: Final = 4 << 30
"""Bytes that a process may hold: sixty-four times the longest body of the default settings, since a number of two bytes in a text
becomes one of 32."""
_ATOM_BYTES: Final = 28
_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">Q")


class Decoder:
    """Decodes bodies; starts its processes when the first body needs one.

    Args:
        limits: what a body may ask for.
        processes: how many bodies may be decoded at once outside the event loop.
        memory: bytes that each process may hold.
    """

    def __init__(self, limits: Limits, processes: int = 2, memory: int = MEMORY) -> None:
        self._limits, self._memory = limits, memory
        self._free: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(processes):
            self._free.put_nowait(None)
        self._large = asyncio.Semaphore(1)
        self._closed = False
        self.running: set[Process] = set()
        """The processes there are now."""

    async def decode(
        self,
        calculation: Calculation | str,
        body: bytes,
        media: str,
        call: Call,
        stored: Mapping[str, Structure] | None = None,
    ) -> Any:
        """The typed record of a body: a ``Record``, or an ``Upload``; see ``frontend.requests.decode``, for the errors too.

        Args:
            stored: the uploaded structures that the body names, where it does: without them the record is ``Named``.

        Raises:
            DeadlineExceeded: it took longer than the request has.
            BodyTooLarge: it took more memory than a process may hold.
        """
        inline = INLINE_BATCH if calculation in ("batch", f"{TASK}batch") else INLINE
        # A file's text goes to a process however its name is written: JSON can escape any letter of it, and msgpack has several
        # headers for it.
        here = len(body) <= inline and b"text" not in body and not (media == "json" and b"\\u" in body)
        limits, atoms = self._limits, 0
        if stored is not None:
            limits = replace(limits, stored=stored)
            atoms = sum(map(len, stored.values()))
            here = here and calculation == "single_point"  # which takes the structure as it is
        if here and calculation != UPLOAD:
            return decode(calculation, body, media, limits)
        try:
            async with asyncio.timeout(max(call.remaining, 0.001)):
                if len(body) + _ATOM_BYTES * atoms <= LARGE:
                    return await self._in_process(calculation, body, media, limits)
                async with self._large:
                    return await self._in_process(calculation, body, media, limits)
        except TimeoutError:
            raise DeadlineExceeded("The body could not be read before the deadline.") from None

    async def warm(self) -> None:
        """Starts one process, so that the first large body need not wait for it."""
        process = await self._free.get()
        try:
            process = process or await self._start()
        finally:
            self._free.put_nowait(process)

    async def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        for process in list(self.running):
            await self._end(process)

    async def _in_process(self, calculation: Calculation | str, body: bytes, media: str, limits: Limits) -> Any:
        process = await self._free.get()
        returned: Process | None = None
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            outcome = await _ask(process, pickle.dumps((calculation, media, limits)), body)
            returned = process
        except (asyncio.IncompleteReadError, ConnectionError):
            if self._closed:
                raise ServerUnavailable("The gateway is stopping.") from None
            # The system ended it, for want of memory most likely. Another one is started for the next body.
            raise BodyTooLarge(
                "The body took more memory to read than there is.", "Send fewer structures in one request."
            ) from None
        finally:
            # Before anything that waits: a second cancellation would end the wait, and the place would be lost for ever.
            self._free.put_nowait(returned)
            if returned is None and process is not None:
                await asyncio.shield(self._end(process))
        if isinstance(outcome, ForcegateError):
            raise outcome
        if outcome is None:
            raise InvalidRequest("The body cannot be read.")
        return outcome

    async def _start(self) -> Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            # A session of its own: Ctrl-C in the terminal is for the gateway, which ends its decoders when all is answered.
            *(sys.executable, "-m", "frontend.decoder_process", str(self._memory)),
            stdin=pipe,
            stdout=pipe,
            start_new_session=True,
        )
        self.running.add(process)
        return process

    async def _end(self, process: Process) -> None:
        self.running.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ask(process: Process, task: bytes, body: bytes) -> object:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(_HEADER.pack(len(task), len(body)))
    process.stdin.write(task)
    process.stdin.write(body)
    await process.stdin.drain()
    (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
    return pickle.loads(await process.stdout.readexactly(length))
