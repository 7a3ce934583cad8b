"""One client's connection: HTTP requests, or a websocket in openpi's protocol, on the same port.

Knows who may ask for what, and the limits; nothing of models. Whatever a client does ends in an answer, an error that
says what was wrong, or a closed connection with one line in the log, and never in another client's way.
"""

import asyncio
import hmac
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from athena_vla.wire.codec import from_json, to_json
from athena_vla.wire.effort import FAULT
from athena_vla.wire.http import BadRequest, Head, HttpConversation, error_text
from athena_vla.wire.serve_config import TOKEN_VARIABLE
from athena_vla.wire.service import LOG, Service, classify
from athena_vla.wire.stream import HungUp, Stream
from athena_vla.wire.websocket import WebsocketConversation

JSON = "application/json"
PATHS = "There are /act, /healthz, /metrics, /metadata and the websocket on /."


class Connection:
    """Serves one client until it leaves, misbehaves or the server stops.

    `spare` is a connection beyond the server's places: it may ask for its health and is otherwise refused.
    """

    def __init__(self, service: Service, stream: Stream, peer: str, *, spare: bool = False) -> None:
        self._service, self._stream, self._spare = service, stream, spare
        self._limits = service.config
        self.peer = peer
        self._http = HttpConversation(stream)
        self._websocket: WebsocketConversation | None = None
        self._answering = False

    @property
    def ever_answered(self) -> bool:
        return self._stream.allowance.ever_answered

    async def serve(self) -> None:
        """Returns when the connection is over, whatever ended it."""
        ended = "it left"
        try:
            await self._serve()
            ended = self._websocket.ended if self._websocket is not None else ended
        except TimeoutError:
            self._service.count("connection", "timeout")
            ended = "it sent or took nothing for too long"
        except (ConnectionError, OSError) as problem:  # TLS ends in other OSErrors
            self._service.count("connection", "lost")
            ended = str(problem) or type(problem).__name__
        except Exception:  # one client's connection must never take the others down
            LOG.exception("connection of %s failed", self.peer)
            self._service.count("connection", "failed")
            return
        LOG.info("connection of %s ended: %s", self.peer, ended)

    async def go_away(self) -> None:
        """Called at shutdown: a websocket is told, an idle connection closed; an answer goes out first."""
        if self._websocket is not None:
            await self._websocket.go_away()
            asyncio.get_running_loop().call_later(0.5, self._stream.abort)
        elif not self._answering:
            self._stream.close()

    async def _serve(self) -> None:
        try:
            goes_on = True
            while goes_on:
                head = await self._http.head(min(self._limits.head_timeout, 1.0 if self._spare else float("inf")))
                if head is None:
                    return
                if head.path == "/healthz" and head.method in ("GET", "HEAD"):
                    await self._health()
                    return
                if self._spare:
                    raise BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, "All places of this server are taken.")
                if not await self._is_welcome(head):
                    return
                if head.wants_websocket:
                    self._websocket = WebsocketConversation(self._service, self._stream, self.peer)
                    if not await self._websocket.serve(head, self._http.leftover):
                        raise BadRequest(HTTPStatus.BAD_REQUEST, "The websocket handshake is malformed.")
                    return
                await self._serve_http(head)
                goes_on = self._http.goes_on and not self._service.stopping
        except BadRequest as problem:
            self._service.count("http" if not self._spare else "connection", "refused")
            await self._stream.allowance.pay(FAULT)
            kind = "Busy" if self._spare else "BadRequest"
            if self._http.may_answer:
                await self._respond(problem.status, error_text(kind, str(problem)), close=True)
                await self._stream.farewell()

    async def _health(self) -> None:
        healthy, text = self._service.health()
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        await self._respond(status, text, close=True, kind="text/plain")  # a monitor takes no robot's place

    async def _is_welcome(self, head: Head) -> bool:
        """Whether a request has the token and comes from no web page; else it is answered here."""
        origin = head.headers.get("origin")
        if origin is not None and origin not in self._limits.origins:
            self._service.count("http", "foreign_origin")
            message = (
                f"A web page of '{origin[:80]}' may not talk to this server. Programs send no Origin; a page is let in "
                "by --origins."
            )
            await self._refuse(HTTPStatus.FORBIDDEN, "Forbidden", message)
            return False
        token = self._limits.token
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        # Compared in constant time: how long the refusal takes must not tell how much of the token was right.
        right = not token or hmac.compare_digest(given.strip().encode(), token.encode())
        if right and (not token or scheme.lower() in ("bearer", "api-key")):
            return True
        self._service.count("websocket" if head.wants_websocket else "http", "unauthorised")
        message = (
            "This server needs its token: Authorization: Bearer <token>, or Api-Key <token>. Athena's clients take it "
            f"as `token`; the server has it from the environment variable {TOKEN_VARIABLE}."
        )
        await self._refuse(HTTPStatus.UNAUTHORIZED, "Unauthorized", message)
        return False

    async def _refuse(self, status: HTTPStatus, kind: str, message: str) -> None:
        await self._stream.allowance.pay(FAULT)
        await self._respond(status, error_text(kind, message), close=True)
        await self._stream.farewell()

    async def _serve_http(self, head: Head) -> None:
        match (head.method, head.path):
            case ("GET", "/metrics"):
                await self._skip_body(head)
                await self._respond(HTTPStatus.OK, self._service.metrics_text(), kind="text/plain; version=0.0.4")
            case ("GET", "/metadata"):
                await self._skip_body(head)
                await self._respond(HTTPStatus.OK, to_json(self._service.metadata))
            case ("POST", "/act"):
                self._answering = True
                try:
                    await self._act(head)
                finally:
                    self._answering = False
                return
            case (_, "/act" | "/metrics" | "/metadata" | "/healthz"):
                raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.path} does not answer to {head.method}.")
            case _:
                raise BadRequest(HTTPStatus.NOT_FOUND, PATHS)

    async def _skip_body(self, head: Head) -> None:
        """A GET may have a body, which nobody wants; without it, this reads the request's end."""
        length = {"content-length": "0"} | head.headers
        await self._http.body(replace(head, headers=length), self._limits.max_message, self._limits.message_timeout)

    async def _act(self, head: Head) -> None:
        body = await self._http.body(head, self._limits.max_message, self._limits.message_timeout)
        await self._service.slow_down(self.peer)
        if not await self._stream.is_there():
            self._service.count("http", "hung_up")
            raise HungUp("the client hung up before it was answered")
        try:
            reply = await self._stream.unless_hung_up(self._answer(body))
        except HungUp:
            self._service.count("http", "hung_up")
            raise
        except Exception as problem:
            status, kind, text = classify(problem)
            self._service.count("http", kind)
            if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                await self._stream.allowance.pay(FAULT)
            else:
                self._stream.allowance.answered()  # a good question, and no fault of the client
            extra = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            await self._respond(status, error_text(kind, text), headers=extra)
            return
        self._stream.allowance.answered()
        await self._respond(HTTPStatus.OK, reply)

    async def _answer(self, body: bytes) -> str:
        message: Any = from_json(body)
        # OpenVLA's second form: the payload is a JSON text inside the JSON, and so is the answer.
        encoded = isinstance(message, dict) and set(message) == {"encoded"} and isinstance(message["encoded"], str)
        if encoded:
            message = from_json(message["encoded"])
        reply = to_json(await self._service.answer(message, "rest", self._stream.allowance))
        return to_json(reply) if encoded else reply

    async def _respond(
        self,
        status: HTTPStatus,
        body: str,
        *,
        close: bool = False,
        kind: str = JSON,
        headers: dict[str, str] | None = None,
    ) -> None:
        close = close or self._service.stopping
        await self._http.respond(status, body, kind, close=close, headers=headers)
