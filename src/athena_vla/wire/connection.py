"""One client's connection: HTTP requests, or a websocket in openpi's protocol, on the same port.

Knows bytes, limits and the server's desk through `Service`; nothing of models. Whatever a client does ends in an
answer, an error that says what was wrong, or a closed connection, and never in another client's way.
"""

import asyncio
import hmac
import logging
import time
from http import HTTPStatus
from typing import Any

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as UpgradeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol

from athena_vla.wire.codec import from_json, pack, to_json, unpack
from athena_vla.wire.http import READ_AHEAD, BadRequest, Head, error_text, read_body, read_head, response
from athena_vla.wire.service import Service, classify

LOG = logging.getLogger("athena_vla.serve")
JSON = "application/json"
LARGE = 1 << 18  # bytes from which decoding leaves the event loop


class Connection:
    """Serves one client until it leaves, misbehaves or the server stops."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        self._limits = service.config
        peer = writer.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else "?"
        self._websocket: ServerProtocol | None = None
        self.answering = False

    async def serve(self) -> None:
        try:
            alive = True
            timeout = self._limits.head_timeout
            while alive:
                head = await read_head(self._reader, timeout)
                if head is None:
                    return
                if head.wants_websocket:
                    await self._serve_websocket(head)
                    return
                alive = await self._serve_http(head)
        except BadRequest as problem:
            self._service.count("http", "refused")
            await self._respond(problem.status, error_text("BadRequest", str(problem)), keep_alive=False)
        except TimeoutError:
            self._service.count("connection", "timeout")
        except ConnectionError:
            self._service.count("connection", "lost")

    def go_away(self) -> None:
        """Called at shutdown: a websocket is told, an idle connection closed."""
        if self.answering:
            return  # the answer goes out first; the loop that sends it says goodbye
        if self._websocket is not None and self._websocket.state is State.OPEN:
            self._websocket.send_close(1001, "the server is shutting down")
            self._writer.writelines(self._websocket.data_to_send())
        self._writer.close()

    # HTTP

    async def _serve_http(self, head: Head) -> bool:
        """One request; returns whether the connection stays open."""
        keep = head.keeps_alive and not self._service.stopping
        if head.path == "/healthz" and head.method in ("GET", "HEAD"):
            healthy, text = self._service.health()
            status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
            return await self._respond(status, text, keep_alive=keep, kind="text/plain")
        if not self._is_authorised(head):
            self._service.count("http", "unauthorised")
            message = "This server needs its token: Authorization: Bearer <token>."
            await self._respond(HTTPStatus.UNAUTHORIZED, error_text("Unauthorized", message), keep_alive=False)
            return False
        match (head.method, head.path):
            case ("GET", "/metrics"):
                text = self._service.metrics_text()
                return await self._respond(HTTPStatus.OK, text, keep_alive=keep, kind="text/plain; version=0.0.4")
            case ("GET", "/metadata"):
                return await self._respond(HTTPStatus.OK, to_json(self._service.metadata), keep_alive=keep)
            case ("POST", "/act"):
                return await self._act(head, keep)
            case (_, "/act" | "/metrics" | "/metadata" | "/healthz"):
                raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.path} does not answer to {head.method}.")
        raise BadRequest(HTTPStatus.NOT_FOUND, "There are /act, /healthz, /metrics, /metadata and the websocket on /.")

    async def _act(self, head: Head, keep: bool) -> bool:
        limits = self._limits
        body = await read_body(head, self._reader, self._writer, limits.max_message, limits.message_timeout)
        await self._service.slow_down(self._peer)
        self.answering = True
        try:
            message = await asyncio.to_thread(from_json, body) if len(body) > LARGE else from_json(body)
            # OpenVLA's second form: the payload is a JSON text inside the JSON, and so is the answer.
            encoded = isinstance(message, dict) and set(message) == {"encoded"} and isinstance(message["encoded"], str)
            if encoded:
                message = from_json(message["encoded"])
            reply = to_json(await self._service.answer(message, "rest"))
            return await self._respond(HTTPStatus.OK, to_json(reply) if encoded else reply, keep_alive=keep)
        except Exception as problem:
            status, kind, text = classify(problem)
            self._service.count("http", kind)
            extra = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            return await self._respond(status, error_text(kind, text), keep_alive=keep, headers=extra)
        finally:
            self.answering = False

    async def _respond(
        self,
        status: HTTPStatus,
        body: str,
        *,
        keep_alive: bool,
        kind: str = JSON,
        headers: dict[str, str] | None = None,
    ) -> bool:
        await self._send(response(status, body, kind, keep_alive=keep_alive, headers=headers))
        return keep_alive

    def _is_authorised(self, head: Head) -> bool:
        token = self._limits.token
        if not token:
            return True
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        # Compared in constant time: how long the refusal takes must not tell how much of the token was right.
        right = hmac.compare_digest(given.strip().encode(), token.encode())
        return right and scheme.lower() in ("bearer", "api-key")

    # Websocket

    async def _serve_websocket(self, head: Head) -> None:
        if not self._is_authorised(head):
            self._service.count("websocket", "unauthorised")
            message = "This server needs its token: Authorization: Api-Key <token>."
            await self._respond(HTTPStatus.UNAUTHORIZED, error_text("Unauthorized", message), keep_alive=False)
            return
        websocket = ServerProtocol(max_size=self._limits.max_message)
        websocket.receive_data(head.raw)
        request = next((e for e in websocket.events_received() if isinstance(e, UpgradeRequest)), None)
        if request is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The websocket handshake is malformed.")
        websocket.send_response(websocket.accept(request))
        await self._flush(websocket)
        if websocket.state is not State.OPEN:
            return
        self._websocket = websocket
        websocket.send_binary(pack(self._service.metadata))  # the first thing an openpi client reads
        await self._flush(websocket)
        await self._converse(websocket)

    async def _converse(self, websocket: ServerProtocol) -> None:
        limits = self._limits
        pieces: list[bytes] = []
        quiet_since = time.monotonic()
        partial_since: float | None = None  # since when a message is incomplete
        while websocket.state is State.OPEN:
            since, allowed = (
                (quiet_since, limits.idle_timeout) if partial_since is None else (partial_since, limits.message_timeout)
            )
            try:
                remaining = since + allowed - time.monotonic()
                data = await asyncio.wait_for(self._reader.read(READ_AHEAD), max(remaining, 0.0))
            except TimeoutError:
                websocket.fail(1008, "message too slow" if partial_since else "idle")
                self._service.count("websocket", "timeout")
                break
            if not data:
                websocket.receive_eof()
                break
            websocket.receive_data(data)
            complete = False
            for event in websocket.events_received():
                if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    continue
                pieces.append(bytes(event.data))
                if event.fin:
                    message, pieces = b"".join(pieces), []
                    await self._flush(websocket)
                    await self._reply(websocket, message)
                    complete = True
            if self._service.stopping and websocket.state is State.OPEN:
                websocket.send_close(1001, "the server is shutting down")
            await self._flush(websocket)
            if complete:
                quiet_since, partial_since = time.monotonic(), None
            elif partial_since is None:
                partial_since = time.monotonic()
        await self._flush(websocket)
        fault = websocket.parser_exc
        if fault is not None and not isinstance(fault, EOFError):
            self._service.count("websocket", "too_big" if isinstance(fault, PayloadTooBig) else "protocol_error")

    async def _reply(self, websocket: ServerProtocol, message: bytes) -> None:
        await self._service.slow_down(self._peer)
        self.answering = True
        try:
            answer: Any = await self._service.answer(unpack(message), "openpi")
            websocket.send_binary(pack(answer))
        except Exception as problem:
            _, kind, text = classify(problem)
            self._service.count("websocket", kind)
            # openpi's clients raise on a text frame; the connection stays usable for the next observation.
            if websocket.state is State.OPEN:
                websocket.send_text(error_text(kind, text).encode())
        finally:
            self.answering = False
        await self._flush(websocket)

    async def _flush(self, websocket: ServerProtocol) -> None:
        for data in websocket.data_to_send():
            if data:
                await self._send(data)
            elif self._writer.can_write_eof():
                self._writer.write_eof()

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        # A client that does not read its answers may not hold them here for ever.
        await asyncio.wait_for(self._writer.drain(), self._limits.message_timeout)
