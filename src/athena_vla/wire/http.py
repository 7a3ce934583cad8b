"""As much HTTP/1.1 as a policy server needs, with every length and every wait bounded.

Knows requests and responses; nothing of policies. Bodies come with Content-Length or not at all.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

MAX_HEAD = 16 * 1024  # bytes of request line and headers
READ_AHEAD = 256 * 1024  # bytes that may wait in a connection's buffer; small ones make large images slow
MAX_HEADERS = 100


class BadRequest(Exception):
    """A request that is answered with an error and a closed connection."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Head:
    """Request line and headers; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    version: str

    @property
    def wants_websocket(self) -> bool:
        return self.method == "GET" and self.headers.get("upgrade", "").lower() == "websocket"

    @property
    def keeps_alive(self) -> bool:
        connection = self.headers.get("connection", "").lower()
        return connection != "close" if self.version == "HTTP/1.1" else connection == "keep-alive"


async def read_head(reader: asyncio.StreamReader, timeout: float) -> Head | None:
    """The next request, None where the client went away between requests. Raises `BadRequest`, `TimeoutError`."""
    try:
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout)
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The connection ended in the middle of a request.") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A request head has at most {MAX_HEAD} bytes."
        ) from error
    if len(raw) > MAX_HEAD:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A request head has at most {MAX_HEAD} bytes.")
    return parse_head(raw)


def parse_head(raw: bytes) -> Head:
    lines = raw.decode("latin-1").split("\r\n")[:-2]
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0") or not parts[0].isalpha():
        raise BadRequest(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request.")
    if len(lines) > MAX_HEADERS:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"At most {MAX_HEADERS} headers are read.")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line is malformed.")
        name = name.lower()
        # Two lengths or two hosts are how requests are smuggled past a proxy.
        if name in headers and name in ("content-length", "host", "authorization", "transfer-encoding"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"Header '{name}' appears twice.")
        headers[name] = value.strip()
    try:
        path = urlsplit(parts[1]).path or "/"
    except ValueError as error:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The request's path is malformed.") from error
    return Head(parts[0], path, headers, raw, parts[2])


async def read_body(
    head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int, timeout: float
) -> bytes:
    """Raises `BadRequest`: before reading where the length is missing or too large, later where it comes too slowly."""
    if "transfer-encoding" in head.headers:
        raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "Send the body with Content-Length, not in chunks.")
    text = head.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "Content-Length must say how many bytes follow.")
    length = int(text)
    if length > limit:
        raise BadRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has {length} bytes; at most {limit} are accepted."
        )
    if head.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    pieces, missing = [], length
    deadline = time.monotonic() + timeout
    while missing:
        try:
            # Piece by piece, so that memory is taken for bytes that came and not for bytes that were announced.
            piece = await asyncio.wait_for(reader.read(min(missing, READ_AHEAD)), deadline - time.monotonic())
        except TimeoutError as error:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, f"The body did not arrive within {timeout:g} s.") from error
        if not piece:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"The body ended {missing} bytes early.")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def response(
    status: HTTPStatus, body: str, kind: str, *, keep_alive: bool, headers: dict[str, str] | None = None
) -> bytes:
    data = body.encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        "Cache-Control: no-store",
        *(f"{k}: {v}" for k, v in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


def error_text(kind: str, message: str) -> str:
    """How every error looks on every wire: what kind, and a sentence."""
    body: dict[str, Any] = {"error": {"type": kind, "message": message}}
    return json.dumps(body)
