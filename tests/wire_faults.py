"""Servers and clients that misbehave, each in its own way, for the tests of both ends of the socket."""

import base64
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from athena_vla import embodiment
from athena_vla.wire.codec import pack

TOY = embodiment.load("toy")
METADATA = {"embodiment_hash": TOY.hash, "action_names": list(TOY.joint_names), "dt": 0.1}
Script = Callable[[socket.socket], None]
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """A server that does with every connection what the script says; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    held: list[socket.socket] = []

    def run() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(5)
                with suppress(OSError):
                    script(connection)
                held.append(connection)
                while len(held) > 2:  # what a script left open stays open until two more have come
                    held.pop(0).close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()
        for connection in held:
            connection.close()


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """One frame as servers send it."""
    n = len(payload)
    head = bytes([n]) if n < 126 else b"\x7e" + n.to_bytes(2, "big") if n < 65536 else b"\x7f" + n.to_bytes(8, "big")
    return bytes([first]) + head + payload


def masked(payload: bytes, first: int = 0x82, key: bytes = b"abcd") -> bytes:
    """One frame as clients send it."""
    n = len(payload)
    head = (
        bytes([0x80 | n])
        if n < 126
        else b"\xfe" + n.to_bytes(2, "big")
        if n < 65536
        else b"\xff" + n.to_bytes(8, "big")
    )
    return bytes([first]) + head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


def shake_hands(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split(b": ")[1]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def introduce(connection: socket.socket) -> None:
    shake_hands(connection)
    connection.sendall(frame(pack(METADATA)))


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _answering(status: bytes, more: bytes = b"") -> Script:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + more + b"Content-Length: 2\r\n\r\nno")

    return script


def _after_question(*data: bytes, end: Callable[[socket.socket], None] = lambda c: None) -> Script:
    def script(connection: socket.socket) -> None:
        introduce(connection)
        connection.recv(1 << 16)
        for piece in data:
            connection.sendall(piece)
        end(connection)

    return script


def _pinging(connection: socket.socket) -> None:
    introduce(connection)
    connection.settimeout(0.5)
    while True:
        connection.sendall(frame(b"", 0x89) * 50)
        connection.recv(1 << 16)


def _wrong_robot(connection: socket.socket) -> None:
    shake_hands(connection)
    connection.sendall(frame(pack(METADATA | {"embodiment_hash": "another"})))


# Every way in which a question can fail that a server, or what lies between, can bring about.
FAILING: dict[str, Script] = {
    "silent": lambda c: None,
    "closes": lambda c: c.close(),
    "resets": _reset,
    "speaks another protocol": lambda c: c.sendall(b"SSH-2.0-OpenSSH\r\n"),
    "half a handshake": lambda c: c.sendall(b"HTTP/1.1 101 Switch"),
    "unauthorised": _answering(b"401 Unauthorized"),
    "full": _answering(b"503 Service Unavailable"),
    "redirects": _answering(b"302 Found", b"Location: ws://127.0.0.2:1/\r\n"),
    "no metadata": shake_hands,
    "another robot": _wrong_robot,
    "no answer": _after_question(),
    "half an answer": _after_question(b"\x82\x7e\x10\x00abc", end=lambda c: c.close()),
    "no message": _after_question(frame(b"\xc1")),
    "an error": _after_question(frame(b'{"error": {"type": "Busy", "message": "later"}}', 0x81)),
    "no text": _after_question(frame(b"\xff\xfe", 0x81)),
    "resets when asked": _after_question(end=_reset),
    "pings for ever": _pinging,
    "fragments for ever": _after_question(*[b"\x02\x01a", b"\x00\x00" * 3000]),
}
