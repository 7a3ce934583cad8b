"""A websocket from the client's side: every wait ends at a deadline, sending included, and no thread is used.

Knows bytes, TLS and frames; nothing of policies. The protocol is that of `websockets`; the socket is ours, so that a
server that neither reads nor answers costs its client nothing but the deadline.
"""

import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI

from athena_vla.errors import ServerError

PIECE = 16 * 1024  # bytes read at once; answers are small
DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_lookups: dict[tuple[str, int], "Future[list[Any]]"] = {}  # those on their way; one for each name
_lookups_lock = threading.Lock()


class ClientSocket:
    """One open websocket. Its methods raise `OSError`, `TimeoutError` at the deadline [s of `time.monotonic`]."""

    def __init__(self, connected: socket.socket, protocol: ClientProtocol) -> None:
        self._socket, self._protocol = connected, protocol
        self._pieces: list[bytes] = []
        self._messages: list[str | bytes] = []

    @classmethod
    def open(
        cls,
        uri: WebSocketURI,
        deadline: float,
        *,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        max_size: int,
    ) -> "ClientSocket":
        """Connect and shake hands. Raises `ServerError` for an answer that is no websocket's; follows no redirect."""
        connected = _connect(uri.host, uri.port, deadline)
        try:
            if tls is not None:
                connected.settimeout(_left(deadline))
                connected = tls.wrap_socket(connected, server_hostname=uri.host)
            protocol = ClientProtocol(uri, max_size=max_size)
            request = protocol.connect()
            for name, value in (headers or {}).items():
                request.headers[name] = value
            protocol.send_request(request)
            opened = cls(connected, protocol)
            opened._flush(deadline)
            opened._shake_hands(deadline)
        except BaseException:
            connected.close()
            raise
        return opened

    def send(self, message: bytes, deadline: float) -> None:
        self._protocol.send_binary(message)
        self._flush(deadline)

    def receive(self, deadline: float) -> str | bytes:
        """The next message: bytes, or text where the server sent text."""
        while not self._messages:
            self._pump(deadline)
        return self._messages.pop(0)

    def is_alive(self) -> bool:
        """Take in what came since the last question, without waiting: pings are answered, an end is noticed.

        A message that nobody asked for is an end, too: its connection answers something else than the next question.
        """
        now = time.monotonic()
        try:
            while True:
                self._socket.setblocking(False)
                try:
                    data = self._socket.recv(PIECE)
                except (BlockingIOError, ssl.SSLWantReadError):
                    break
                self._take(data)
                self._flush(now + 0.1)
        except (OSError, ServerError):
            return False
        return self._protocol.state is State.OPEN and not self._messages and not self._pieces

    def interrupt(self) -> None:
        """End whatever waits on this socket, from any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye where that needs no waiting, and close."""
        with suppress(OSError, ServerError):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._flush(time.monotonic() + 0.1)
        self.interrupt()
        with suppress(OSError):
            self._socket.close()

    def _shake_hands(self, deadline: float) -> None:
        protocol = self._protocol
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            self._pump(deadline)
        fault = protocol.handshake_exc
        if fault is None:
            return
        if isinstance(fault, InvalidStatus):
            raise ServerError(_refusal(fault.response))
        raise ServerError(f"it does not speak websocket: {fault}.") from fault

    def _pump(self, deadline: float) -> None:
        """Wait for bytes and take them in."""
        self._socket.settimeout(_left(deadline))
        data = self._socket.recv(PIECE)
        self._take(data)
        self._flush(deadline)

    def _take(self, data: bytes) -> None:
        protocol = self._protocol
        if not data and protocol.state is not State.CONNECTING:
            protocol.receive_eof()
            raise ConnectionResetError(_goodbye(protocol))
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            if isinstance(event, Frame) and event.opcode in DATA:
                self._add(event)
        if protocol.state in (State.CLOSING, State.CLOSED) and not self._messages:
            raise ConnectionResetError(_goodbye(protocol))
        if not data and protocol.handshake_exc is None:
            raise ConnectionResetError("the connection ended before the handshake was over")

    def _add(self, frame: Frame) -> None:
        if not self._pieces:
            self._text = frame.opcode is Opcode.TEXT
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            whole, self._pieces = b"".join(self._pieces), []
            try:
                self._messages.append(whole.decode() if self._text else whole)
            except UnicodeDecodeError as error:
                raise ServerError("it sent text that is no UTF-8.") from error

    def _flush(self, deadline: float) -> None:
        for data in self._protocol.data_to_send():
            view = memoryview(data)
            while view:
                self._socket.settimeout(_left(deadline))
                view = view[self._socket.send(view) :]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """The first address of the host that answers, all within the deadline."""
    problem: OSError = OSError(f"'{host}' has no address")
    for family, kind, number, _, address in _addresses(host, port, deadline):
        connected = socket.socket(family, kind, number)
        try:
            connected.settimeout(_left(deadline))
            connected.connect(address)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        except OSError as error:
            connected.close()
            problem = error
    raise problem


def _addresses(host: str, port: int, deadline: float) -> list[Any]:
    """Addresses of a host. A name server has no deadline: it is asked in a thread, at most one for each name."""
    with suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    with _lookups_lock:
        future = _lookups.get((host, port))
        if future is None:
            future = _lookups[host, port] = Future()
            threading.Thread(target=_look_up, args=(host, port, future), name="lookup", daemon=True).start()
    try:
        return future.result(_left(deadline))
    except TimeoutError:
        raise
    except OSError as error:
        raise OSError(f"'{host}' is not found: {error.strerror or error}") from error
    except Exception as error:  # concurrent.futures has a TimeoutError of its own in Python 3.10
        raise TimeoutError("timed out") from error


def _look_up(host: str, port: int, future: "Future[list[Any]]") -> None:
    try:
        found: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        problem = error if isinstance(error, OSError) else OSError(str(error))
        with _lookups_lock:
            _lookups.pop((host, port), None)
        future.set_exception(problem)
        return
    with _lookups_lock:
        _lookups.pop((host, port), None)
    future.set_result(found)


def _refusal(response: Response) -> str:
    said = (response.body or b"")[:500].decode("utf-8", "replace")
    moved = response.headers.get("Location")
    text = f"it refused the connection with {response.status_code} {response.reason_phrase}: {said}"
    return f"{text} It points to '{moved[:200]}'; give that address where it is yours." if moved else text


def _goodbye(protocol: ClientProtocol) -> str:
    said = protocol.close_rcvd or protocol.close_sent
    if protocol.parser_exc is not None and not isinstance(protocol.parser_exc, EOFError):
        return f"it sent what is no websocket message: {protocol.parser_exc}"
    return f"it closed the connection ({said.code} {said.reason})" if said else "it closed the connection"
