"""One websocket in openpi's protocol: observations in, chunks out, in order; the newest question of a client wins.

Knows frames, limits and the service; nothing of models. It reads while an answer is computed: a client that goes away
takes its question with it, and one that asks again is not kept waiting for what it no longer wants.
"""

import asyncio
import logging
import time
from contextlib import suppress

from websockets.datastructures import Headers
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as UpgradeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol

from athena_vla.errors import Superseded
from athena_vla.wire.codec import pack, unpack
from athena_vla.wire.effort import FAULT, FRAME
from athena_vla.wire.frames import FrameScanner
from athena_vla.wire.http import Head, error_text
from athena_vla.wire.protocols import Request
from athena_vla.wire.queue import Ticket
from athena_vla.wire.service import Service, classify
from athena_vla.wire.stream import Stream

UNANSWERED = 8  # questions of one client that may wait for their replies; more are not read
QUIET = logging.getLogger("athena_vla.serve.websocket")  # one line for each connection is the server's to write
QUIET.setLevel(logging.WARNING)
DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class WebsocketConversation:
    """Serves one websocket until its client leaves, misbehaves or the server stops."""

    def __init__(self, service: Service, stream: Stream, peer: str) -> None:
        self._service, self._stream, self._peer = service, stream, peer
        self._limits = service.config
        self._websocket = ServerProtocol(max_size=self._limits.max_message, logger=QUIET)
        self._scanner = FrameScanner()
        self._pieces: list[bytes] = []
        self._replies: list[asyncio.Task[None]] = []  # in the order of their questions
        self._newest: Ticket | None = None
        self._sending = asyncio.Lock()
        self.ended = "the client left"

    async def serve(self, head: Head, first: bytes) -> bool:
        """Shake hands, then converse; False where the handshake is malformed and nothing was sent."""
        websocket = self._websocket
        websocket.receive_data(UpgradeRequest(head.target, Headers(head.headers)).serialize())
        request = next((e for e in websocket.events_received() if isinstance(e, UpgradeRequest)), None)
        if request is None:
            return False
        websocket.send_response(websocket.accept(request))
        await self._flush()
        if websocket.state is not State.OPEN:
            return True
        websocket.send_binary(pack(self._service.metadata))  # the first thing an openpi client reads
        await self._flush()
        try:
            await self._converse(first)
            if self._service.stopping:
                await self._answer_all()
        finally:
            for task in self._replies:
                task.cancel()
            await asyncio.gather(*self._replies, return_exceptions=True)
        await self._flush()
        fault = websocket.parser_exc
        if fault is not None and not isinstance(fault, EOFError):
            kind = "too_big" if isinstance(fault, PayloadTooBig) else "protocol_error"
            self._service.count("websocket", kind)
            self.ended = f"{kind}: {str(fault)[:120]}"
        return True

    async def go_away(self) -> None:
        """Say that the server shuts down, after the answers that are being computed."""
        await self._answer_all()
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1001, "the server is shutting down")
            await self._flush()

    async def _answer_all(self) -> None:
        await asyncio.gather(*self._replies, return_exceptions=True)

    async def _converse(self, data: bytes) -> None:
        limits, websocket = self._limits, self._websocket
        asked = heard = time.monotonic()
        began: float | None = None  # when the message that is incomplete began
        pinged = False
        while websocket.state is State.OPEN:
            if not data:
                now = time.monotonic()
                due = {"idle": asked + limits.idle_timeout}
                if began is not None:
                    due["message too slow"] = began + limits.message_timeout
                due["no answer to a ping" if pinged else "ping"] = heard + (
                    limits.ping_interval + (limits.ping_timeout if pinged else 0.0)
                )
                reason = min(due, key=due.__getitem__)
                try:
                    data = await self._stream.read(due[reason] - now)
                except TimeoutError:
                    if reason == "ping":
                        websocket.send_ping(b"athena")
                        pinged = True
                    elif reason == "idle" and self._replies:
                        asked = time.monotonic()
                    else:
                        websocket.fail(1008, reason)
                        self._service.count("websocket", "timeout")
                        self.ended = reason
                    await self._flush()
                    continue
                if not data:
                    websocket.receive_eof()
                    return
                heard, pinged = time.monotonic(), False
            complete = await self._take(data)
            data = b""
            await self._flush()
            if complete:
                asked, began = time.monotonic(), None
            if self._scanner_inside and began is None:
                began = time.monotonic()

    @property
    def _scanner_inside(self) -> bool:
        return bool(self._pieces) or self._scanner.inside

    async def _take(self, data: bytes) -> bool:
        """Feed the protocol frame by frame; whether a message became whole."""
        complete, at = False, 0
        while at < len(data) and self._websocket.state is State.OPEN:
            end, begins = self._scanner.cut(data, at)
            if begins:
                await self._stream.allowance.pay(FRAME)
            self._websocket.receive_data(data if end - at == len(data) else data[at:end])
            at = end
            for event in self._websocket.events_received():
                if isinstance(event, Frame) and event.opcode in DATA:
                    self._pieces.append(bytes(event.data))
                    if event.fin:
                        message, self._pieces = b"".join(self._pieces), []
                        await self._question(message)
                        complete = True
            if begins:
                await self._flush()  # the answer to a ping
        return complete

    async def _question(self, message: bytes) -> None:
        """Put a message's observation into the line; its reply is sent when those before it are."""
        await self._service.slow_down(self._peer)
        while len(self._replies) >= UNANSWERED:
            await asyncio.wait(self._replies, return_when=asyncio.FIRST_COMPLETED)
        if not await self._stream.is_there():
            return  # whoever reads on finds the end
        began = time.perf_counter()
        if self._newest is not None:
            self._service.queue.withdraw(self._newest)
            self._newest = None
        before = self._replies[-1] if self._replies else None
        try:
            request = self._service.parser.parse(unpack(message), "openpi")
            ticket = self._newest = self._service.queue.enter(request.observation)
        except Exception as problem:
            await self._stream.allowance.pay(FAULT)
            task = asyncio.ensure_future(self._refuse(problem, before))
        else:
            task = asyncio.ensure_future(self._reply(request, ticket, began, before))
        self._replies.append(task)
        task.add_done_callback(self._replied)

    async def _reply(self, request: Request, ticket: Ticket, began: float, before: asyncio.Task[None] | None) -> None:
        try:
            done = await self._service.wait_for(ticket, self._stream.allowance)
            data = pack(self._service.reply(request, done, began, "openpi"))
        except Exception as problem:
            if not isinstance(problem, Superseded):
                self._stream.allowance.answered()  # a good question, and no fault of the client
            await self._refuse(problem, before)
            return
        self._stream.allowance.answered()
        await self._after(before)
        if self._websocket.state is State.OPEN:
            self._websocket.send_binary(data)
            await self._flush()

    async def _refuse(self, problem: Exception, before: asyncio.Task[None] | None) -> None:
        _, kind, text = classify(problem)
        self._service.count("websocket", kind)
        await self._after(before)
        # openpi's clients raise on a text frame; the connection stays usable for the next observation.
        if self._websocket.state is State.OPEN:
            self._websocket.send_text(error_text(kind, text).encode())
            await self._flush()

    @staticmethod
    async def _after(before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})

    def _replied(self, task: asyncio.Task[None]) -> None:
        with suppress(ValueError):
            self._replies.remove(task)
        if not task.cancelled() and task.exception() is not None:
            self._stream.abort()  # its client does not read; the loop that reads from it ends with this

    async def _flush(self) -> None:
        async with self._sending:
            for data in self._websocket.data_to_send():
                if data:
                    await self._stream.send(data)
                else:
                    self._stream.end()
