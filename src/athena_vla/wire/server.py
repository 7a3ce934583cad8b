"""A policy server on one port: openpi's websocket, OpenVLA's `/act`, health, metrics and metadata.

Takes any actor and never imports a model library. The gates run before the port opens: a policy that does not replay
its golden example, or does not look and listen, is not served.
"""

import asyncio
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from athena_vla.embodiment import Embodiment
from athena_vla.errors import ServerError
from athena_vla.wire.connection import Connection
from athena_vla.wire.http import READ_AHEAD, error_text, response
from athena_vla.wire.protocols import Listener, metadata_of
from athena_vla.wire.queue import Actor
from athena_vla.wire.service import LOG, ServeConfig, Service

Gate = Callable[[Actor], None]  # raises an AthenaError where the actor must not be served


class PolicyServer:
    """One process, one model; `serve` and `background` start it. Without a config it takes a free loopback port."""

    def __init__(
        self,
        actor: Actor,
        robot: Embodiment,
        config: ServeConfig | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        gates: Sequence[Gate] = (),
        state_optional: bool = False,
    ) -> None:
        self.config = config or ServeConfig(port=0)
        self._tls = _tls_context(self.config)
        for gate in gates:
            gate(actor)
        listener = Listener(robot, state_optional)
        self.service = Service(actor, listener, metadata_of(robot, metadata or {}), self.config)
        self._connections: dict[Connection, asyncio.Task[Any]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open the port. Raises `ServerError` where it is taken."""
        config = self.config
        try:
            self._server = await asyncio.start_server(
                self._serve,
                config.host,
                config.port,
                limit=READ_AHEAD,
                ssl=self._tls,
                ssl_handshake_timeout=config.head_timeout if self._tls else None,
            )
        except OSError as error:
            raise ServerError(f"Cannot listen on {config.host}:{config.port}: {error.strerror or error}.") from error
        LOG.info("serving on %s", self.address)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """`ws://host:port` (or `wss://`), as clients take it."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self.port}"

    async def stop(self) -> bool:
        """Close the port, finish what is in progress, say goodbye; False where the model did not return in time."""
        assert self._server is not None
        self.service.stopping = True
        self._server.close()
        tasks = list(self._connections.values())
        for connection in list(self._connections):
            connection.go_away()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.config.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return await asyncio.to_thread(self.service.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(self.service, reader, writer)
        try:
            if len(self._connections) >= self.config.max_connections or self.service.stopping:
                self.service.count("connection", "refused")
                text = error_text("Busy", f"{len(self._connections)} clients are connected already.")
                # Closing on an unread question would reset the connection, and the client would never see why.
                with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), min(1.0, self.config.head_timeout))
                writer.write(response(HTTPStatus.SERVICE_UNAVAILABLE, text, "application/json", keep_alive=False))
                return
            self._connections[connection] = task
            self.service.connections(len(self._connections))
            await connection.serve()
        except Exception:  # one client's connection must never take the others down
            LOG.exception("connection failed")
            self.service.count("connection", "failed")
        finally:
            self._connections.pop(connection, None)
            self.service.connections(len(self._connections))
            writer.close()


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
