"""HTTP/1.1 by h11, with every length and every wait bounded.

Knows requests and responses; nothing of policies. Bodies come with Content-Length or not at all.
"""

import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from athena_vla.errors import MissingDependency
from athena_vla.wire.stream import Stream

try:
    import h11
except ImportError as error:
    raise MissingDependency("h11", "serve", "to serve a policy") from error

MAX_HEAD = 16 * 1024  # bytes of request line and headers
MAX_HEADERS = 100
HEAD_PIECE = 4096  # bytes
ONLY_ONCE = ("authorization", "origin", "upgrade", "expect")  # h11 sees to host and content-length


class BadRequest(Exception):
    """A request that is answered with an error and a closed connection."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Head:
    """Request line and headers; header names in lower case."""

    method: str
    target: str
    path: str
    headers: dict[str, str]

    @property
    def wants_websocket(self) -> bool:
        return self.method == "GET" and self.headers.get("upgrade", "").lower() == "websocket"


class HttpConversation:
    """One connection's requests and responses, one after the other."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._unread = b""  # came, and not given to h11 yet
        self._head_only = False

    @property
    def leftover(self) -> bytes:
        """Bytes after a request that asks for another protocol."""
        return bytes(self._http.trailing_data[0]) + self._unread

    @property
    def goes_on(self) -> bool:
        """Whether another request may follow."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    @property
    def may_answer(self) -> bool:
        return self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    async def head(self, timeout: float) -> Head | None:
        """The next request, None where the client went away between requests. Raises `BadRequest`, `TimeoutError`."""
        event = await self._next(time.monotonic() + timeout)
        if isinstance(event, h11.ConnectionClosed):
            return None
        if not isinstance(event, h11.Request):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request.")
        if event.http_version not in (b"1.0", b"1.1"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request.")
        pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
        length = len(event.method) + len(event.target) + 14 + sum(len(n) + len(v) + 4 for n, v in pairs)
        if len(pairs) > MAX_HEADERS or length > MAX_HEAD:
            message = f"A request head has at most {MAX_HEAD} bytes and {MAX_HEADERS} headers."
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)
        headers = dict(pairs)
        twice = [n for n in ONLY_ONCE if sum(name == n for name, _ in pairs) > 1]
        if twice:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"Header '{twice[0]}' appears twice.")
        method, target = event.method.decode("ascii", "replace"), event.target.decode("latin-1")
        self._head_only = method == "HEAD"
        try:
            path = urlsplit(target).path or "/"
        except ValueError as error:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The request's path is malformed.") from error
        return Head(method, target, path, headers)

    async def body(self, head: Head, limit: int, timeout: float) -> bytes:
        """Raises `BadRequest`: at once where the length is missing or too large, later where it comes too slowly.

        Memory is taken for bytes that came and not for bytes that were announced.
        """
        if "transfer-encoding" in head.headers:
            raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "Send the body with Content-Length, not in chunks.")
        if "content-encoding" in head.headers:
            raise BadRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send the body as it is; nothing is decompressed here.")
        text = head.headers.get("content-length", "")
        if not text:
            raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "Content-Length must say how many bytes follow.")
        length = int(text)  # h11 lets nothing but digits through
        if length > limit:
            raise BadRequest(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has {length} bytes; at most {limit} are accepted."
            )
        if self._http.they_are_waiting_for_100_continue:
            go_on = self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._stream.send(go_on or b"")
        pieces: list[bytes] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = await self._next(deadline)
            except TimeoutError as error:
                message = f"The body did not arrive within {timeout:g} s."
                raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, message) from error
            if isinstance(event, h11.EndOfMessage):
                return b"".join(pieces)
            if not isinstance(event, h11.Data):
                raise BadRequest(HTTPStatus.BAD_REQUEST, "The body ended early.")
            pieces.append(bytes(event.data))

    async def respond(
        self, status: HTTPStatus, body: str, kind: str, *, close: bool, headers: dict[str, str] | None = None
    ) -> None:
        """Send one whole response; `close` tells the client that it is the last."""
        data = body.encode()
        fields = [
            ("Content-Type", kind),
            ("Content-Length", str(len(data))),
            ("Cache-Control", "no-store"),
            *((headers or {}).items()),
        ]
        if close:
            fields.append(("Connection", "close"))
        reason = status.phrase.encode("latin-1")
        out = self._http.send(h11.Response(status_code=status.value, headers=fields, reason=reason)) or b""
        if not self._head_only:
            out += self._http.send(h11.Data(data=data)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        await self._stream.send(out)

    async def _next(self, deadline: float) -> Any:
        try:
            while True:
                event = self._http.next_event()
                if event is h11.PAUSED:
                    raise BadRequest(HTTPStatus.BAD_REQUEST, "One request at a time.")
                if event is not h11.NEED_DATA:
                    return event
                data = self._unread or await self._stream.read(deadline - time.monotonic())
                # h11 bounds heads that are not whole: it gets them in small pieces, so that none is much longer.
                cut = HEAD_PIECE if self._http.their_state is h11.IDLE else len(data)
                self._unread = data[cut:]
                self._http.receive_data(data[:cut])
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                message = f"A request head has at most {MAX_HEAD} bytes."
            else:
                message = f"This is not a request of HTTP/1.1: {error}."
            raise BadRequest(status, message) from error


def error_text(kind: str, message: str) -> str:
    """How every error looks on every wire: what kind, and a sentence."""
    body: dict[str, Any] = {"error": {"type": kind, "message": message}}
    return json.dumps(body)
