"""One client's bytes: every read, write and farewell has a deadline, and what comes is paid for before it is used.

Knows asyncio's streams and the client's allowance; nothing of protocols.
"""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from athena_vla.wire.effort import PIECE, Allowance

READ_AHEAD = 256 * 1024  # bytes that may wait in a connection's buffer; small ones make large images slow
FAREWELL = 1 << 20  # bytes that are read and thrown away so that an error still reaches the client
FAREWELL_TIME = 0.5  # [s]
T = TypeVar("T")


class HungUp(ConnectionError):
    """The client went away while its question was waiting."""


class Stream:
    """Reads ahead of what is asked for, so that a client that goes away is noticed while its answer is computed."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: Allowance, send_timeout: float
    ) -> None:
        self._reader, self._writer, self._send_timeout = reader, writer, send_timeout
        self.allowance = allowance
        self._reading: asyncio.Task[bytes] | None = None
        self._kept: list[bytes] = []  # arrived while nobody read

    async def read(self, timeout: float) -> bytes:
        """The next bytes, none at the end. Raises `TimeoutError`, `ConnectionError`."""
        if self._kept:
            data = self._kept.pop(0)
        else:
            task = self._start_reading()
            await asyncio.wait({task}, timeout=max(timeout, 0.0))
            if not task.done():
                raise TimeoutError
            self._reading = None
            data = task.result()
        await self.allowance.pay(len(data) / PIECE)
        return data

    async def is_there(self) -> bool:
        """Whether the client is still there, as far as its bytes say: an end that came with its question is noticed."""
        for _ in range(2):  # the loop looks at its sockets once in each of its rounds
            await asyncio.sleep(0)
        return not (self._reader.at_eof() or self._reader.exception() or self._writer.is_closing())

    async def unless_hung_up(self, work: Awaitable[T]) -> T:
        """What `work` gives. Raises `HungUp` and cancels it where the client's side ends first."""
        task = asyncio.ensure_future(work)
        watched: set[asyncio.Future[object]] = {task}  # pyright: ignore[reportAssignmentType]
        try:
            while not task.done():
                # Who sends much before it is answered is no longer watched: nothing is kept for it beyond this.
                watching = sum(map(len, self._kept)) < READ_AHEAD
                reading = self._start_reading() if watching else None
                await asyncio.wait({*watched, reading} if reading else watched, return_when=asyncio.FIRST_COMPLETED)
                if task.done() or reading is None or not reading.done():
                    continue
                self._reading = None
                data = reading.result()
                if not data:
                    raise HungUp("the client hung up before it was answered")
                self._kept.append(data)
            return task.result()
        finally:
            task.cancel()

    async def send(self, data: bytes) -> None:
        """Raises `TimeoutError` where the client does not read: it may not hold its answers here for ever."""
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._writer.write(data)
        drained = asyncio.ensure_future(self._writer.drain())
        try:
            await asyncio.wait({drained}, timeout=self._send_timeout)
            if not drained.done():
                raise TimeoutError
            drained.result()
        finally:
            drained.cancel()

    def end(self) -> None:
        """No more will be sent."""
        with suppress(OSError, RuntimeError):
            if self._writer.can_write_eof() and not self._writer.is_closing():
                self._writer.write_eof()

    async def farewell(self) -> None:
        """End, then read on for a moment: closing on unread bytes would reset the connection and the error with it."""
        self.end()
        deadline, left = time.monotonic() + FAREWELL_TIME, FAREWELL
        with suppress(TimeoutError, OSError):
            while left > 0 and (data := await self.read(deadline - time.monotonic())):
                left -= len(data)

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading.add_done_callback(_consume)
            self._reading = None
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    def _start_reading(self) -> asyncio.Task[bytes]:
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._reader.read(READ_AHEAD))
        return self._reading


def _consume(task: asyncio.Task[bytes]) -> None:
    if not task.cancelled():
        task.exception()
