"""A policy server on one port: openpi's websocket, OpenVLA's `/act`, health, metrics and metadata.

Takes any actor and never imports a model library; whoever opens a policy judges whether it may be served.
"""

import asyncio
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from athena_vla.embodiment import Embodiment
from athena_vla.errors import ServerError
from athena_vla.wire.connection import Connection
from athena_vla.wire.effort import CONNECT, Allowance
from athena_vla.wire.protocols import RequestParser, metadata_of
from athena_vla.wire.queue import Actor
from athena_vla.wire.serve_config import TOKEN_VARIABLE, ServeConfig
from athena_vla.wire.service import LOG, Service
from athena_vla.wire.stream import READ_AHEAD, Stream

BACKLOG = 128  # connections that wait to be accepted
SPARE = 8  # connections beyond the places: they may ask for /healthz, or are told that all places are taken
HELD = 64  # accepted connections that wait because their address has cost too much
HELD_OF_ONE = 8  # of these, of one address
UNASKED = 0.5  # [s] after which a connection that never had an answer gives its place to a newcomer
OUT_OF_DESCRIPTORS = 0.5  # [s] of rest where a connection cannot be accepted


class PolicyServer:
    """One process, one model; `serve` and `background` start it. Without a config it takes a free loopback port."""

    def __init__(
        self,
        actor: Actor,
        robot: Embodiment,
        config: ServeConfig | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        state_optional: bool = False,
    ) -> None:
        self.config = with_token(config or ServeConfig(port=0))
        self.config.require_token()
        self._tls = _tls_context(self.config)
        parser = RequestParser(robot, state_optional)
        self.service = Service(actor, parser, metadata_of(robot, metadata or {}), self.config)
        self._places: dict[asyncio.Task[None], _Place] = {}
        self._spare: set[asyncio.Task[None]] = set()  # health checks and refusals
        self._held: dict[asyncio.Task[None], str] = {}  # accepted, and not looked at before their address catches up
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._gr00t: Any = None  # a `zmq_server.Gr00tServer`

    async def start(self) -> None:
        """Open the port. Raises `ServerError` where it is taken."""
        config = self.config
        try:
            addresses = await asyncio.get_running_loop().getaddrinfo(
                config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, address in dict.fromkeys(addresses):
                port = self._listeners[0].getsockname()[1] if self._listeners else address[1]
                listener = socket.create_server((address[0], port), family=family, backlog=BACKLOG)
                listener.setblocking(False)
                self._listeners.append(listener)
        except OSError as error:
            self._close_listeners()
            raise ServerError(f"Cannot listen on {config.host}:{config.port}: {error.strerror or error}.") from error
        if config.gr00t_port >= 0:
            from athena_vla.wire.zmq_server import Gr00tServer  # an optional package

            self._gr00t = Gr00tServer(self.service, int(self.service.metadata.get("horizon", 1)))
            try:
                self._gr00t.start()
            except ServerError:
                self._close_listeners()
                raise
        self._accepting = [asyncio.ensure_future(self._accept(listener)) for listener in self._listeners]
        LOG.info("serving on %s", self.address)

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    @property
    def address(self) -> str:
        """`ws://host:port` (or `wss://`), as clients take it."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self.port}"

    @property
    def gr00t_port(self) -> int:
        """The port of GR00T's protocol; 0 where the server does not listen for it."""
        return 0 if self._gr00t is None else self._gr00t.port

    async def stop(self) -> bool:
        """Close the port, finish what is in progress, say goodbye; False where the model did not return in time."""
        self.service.stopping = True
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._close_listeners()
        for task in (*self._spare, *self._held):
            task.cancel()
        tasks = [*self._places, *self._spare, *self._held]
        connections = [p.connection for p in self._places.values() if p.connection is not None]
        farewells = [asyncio.ensure_future(c.go_away()) for c in connections]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.config.grace)
            for task in (*late, *farewells):
                task.cancel()
            await asyncio.gather(*tasks, *farewells, return_exceptions=True)
        if self._gr00t is not None:
            await self._gr00t.stop()
        return await asyncio.to_thread(self.service.close)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, or a client that was gone already
                LOG.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(OUT_OF_DESCRIPTORS)
                continue
            peer = str(address[0])
            await asyncio.sleep(0)  # `sock_accept` lets nobody have a turn while one connection follows another
            full = len(self._held) >= HELD or sum(p == peer for p in self._held.values()) >= HELD_OF_ONE
            if full and self.service.effort.book(peer, 0) > 0:
                self._drop(connection)  # and nothing is booked: a storm that is over is over
                continue
            delay = self.service.effort.book(peer, CONNECT)
            if delay <= 0:
                self._admit(connection, peer)
                continue
            task = asyncio.ensure_future(self._hold(connection, peer, delay))
            self._held[task] = peer
            task.add_done_callback(self._held.pop)

    async def _hold(self, connection: socket.socket, peer: str, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            connection.close()
            raise
        self._admit(connection, peer)

    def _admit(self, connection: socket.socket, peer: str) -> None:
        """Give a connection a place, or one of the spare ones, or close it where there is none of either."""
        if self._has_room(peer):
            place = _Place(peer, time.monotonic())
            task = asyncio.ensure_future(self._run(connection, place, spare=False))
            self._places[task] = place
            self.service.metrics.connections.set(len(self._places))
            task.add_done_callback(self._leave)
        elif len(self._spare) < SPARE:
            task = asyncio.ensure_future(self._run(connection, _Place(peer, time.monotonic()), spare=True))
            self._spare.add(task)
            task.add_done_callback(self._spare.discard)
        else:
            self._drop(connection)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._places.pop(task, None)
        self.service.metrics.connections.set(len(self._places))

    def _drop(self, connection: socket.socket) -> None:
        self.service.count("connection", "dropped")
        connection.close()

    def _has_room(self, peer: str) -> bool:
        """Whether one more client of this address finds a place; one that is not used is taken away for it."""
        config = self.config
        if self.service.stopping:
            return False
        own = [task for task, place in self._places.items() if place.peer == peer]
        if len(own) < config.share and len(self._places) < config.max_connections:
            return True
        # Sockets that were opened and never had an answer are what a robot leaves behind that connects again and again.
        oldest = time.monotonic() - UNASKED
        unused = [t for t in own if not self._places[t].answered and self._places[t].since < oldest]
        if not unused:
            return False
        leaving = min(unused, key=lambda t: self._places[t].since)
        self.service.count("connection", "made_room")
        leaving.cancel()
        self._leave(leaving)
        return True

    async def _run(self, accepted: socket.socket, place: "_Place", *, spare: bool) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        reader = asyncio.StreamReader(limit=READ_AHEAD, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        timeout = config.head_timeout if self._tls else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError as error:  # a handshake that fails or takes too long
            accepted.close()
            self.service.count("connection", "lost")
            LOG.info("connection of %s ended: %s", place.peer, error or type(error).__name__)
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        stream = Stream(reader, writer, Allowance(self.service.effort, place.peer), config.message_timeout)
        connection = Connection(self.service, stream, place.peer, spare=spare)
        place.connection = connection
        try:
            await connection.serve()
        finally:
            stream.close()


@dataclass(eq=False)
class _Place:
    """One of the places for clients: who has it, since when, and what it does there."""

    peer: str
    since: float  # [s] of `time.monotonic`
    connection: Connection | None = None

    @property
    def answered(self) -> bool:
        return self.connection is not None and self.connection.ever_answered


def with_token(config: ServeConfig) -> ServeConfig:
    """The configuration with the token of the environment where it has none of its own."""
    token = "" if config.token else os.environ.get(TOKEN_VARIABLE, "")
    return replace(config, token=token) if token else config


def serve(server: PolicyServer, ready: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM, then shut down gracefully; `ready` gets the address once the port is open."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await server.start()
        ready(server.address)
        await stop.wait()
        if not await server.stop():
            LOG.error("the model did not return within %g s", server.config.grace)

    asyncio.run(run())


@contextmanager
def background(server: PolicyServer) -> Iterator[PolicyServer]:
    """The server in a thread of this process, for demonstrations and tests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    if not config.certificate:
        return None
    for path in (config.certificate, config.key):
        if not Path(path).is_file():
            raise ServerError(f"There is no file '{path}' to read the certificate or its key from.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key)
    except ssl.SSLError as error:
        raise ServerError(
            f"'{config.certificate}' and '{config.key}' are no certificate with its key: {error}."
        ) from error
    return context
