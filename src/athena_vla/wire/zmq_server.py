"""GR00T's ZeroMQ protocol on a port of its own, beside the server's other two: REQ clients ask, each gets its reply.

Knows ZeroMQ's sockets and the service; nothing of models. A frame's size, the questions in work and their time are
bounded as everywhere; ZeroMQ itself bounds neither connections nor the frames of one message, so a port that strangers
can reach does not belong here. NEVER MET a real GR00T client (see `gr00t`).
"""

import asyncio
import hmac
import time
from contextlib import suppress
from typing import Any

from athena_vla.errors import MissingDependency, ServerError
from athena_vla.wire import gr00t
from athena_vla.wire.effort import FAULT, PIECE, Allowance
from athena_vla.wire.service import LOG, Service, classify

try:
    import zmq
    import zmq.asyncio
except ImportError as error:
    raise MissingDependency("pyzmq", "gr00t", "to answer GR00T's clients") from error

IN_WORK = 64  # requests at one time; more wait in ZeroMQ's queue
WAITING = 64  # messages that ZeroMQ keeps for one client
HEARTBEAT = 10_000  # [ms]
FOREIGN_TOKEN = "Unauthorized: Invalid API token"  # what clients of the original look for
REFUSED = "'kill' is refused: whoever may ask this server may not stop it. Stop it where it was started."


class Gr00tServer:
    """Answers `ping`, `get_modality_config`, `get_action` and `reset` with the policy of the service."""

    def __init__(self, service: Service, horizon: int) -> None:
        self._service, self._horizon = service, horizon
        self._robot = service.parser.robot
        self._context: Any = zmq.asyncio.Context()
        self._socket: Any = self._context.socket(zmq.ROUTER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._receiving: asyncio.Task[None] | None = None
        self.port = 0

    def start(self) -> None:
        """Open the port. Raises `ServerError` where it is taken."""
        config = self._service.config
        options = {
            zmq.MAXMSGSIZE: config.max_message,
            zmq.RCVHWM: WAITING,
            zmq.SNDHWM: WAITING,
            zmq.LINGER: 0,
            zmq.HEARTBEAT_IVL: HEARTBEAT,
            zmq.HEARTBEAT_TIMEOUT: 2 * HEARTBEAT,
            zmq.HANDSHAKE_IVL: round(config.head_timeout * 1000),
            zmq.IPV6: int(":" in config.host),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        host = "127.0.0.1" if config.host == "localhost" else f"[{config.host}]" if ":" in config.host else config.host
        try:
            self._socket.bind(f"tcp://{host}:{config.gr00t_port or '*'}")
        except zmq.ZMQError as error:
            self.close()
            raise ServerError(f"Cannot listen on {config.host}:{config.gr00t_port} for GR00T: {error}.") from error
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        self._receiving = asyncio.ensure_future(self._receive())
        LOG.info("serving GR00T's protocol on %s:%d", config.host, self.port)

    async def stop(self) -> None:
        """Answer what is in work, then close."""
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._service.config.grace)
            for task in late:
                task.cancel()
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    async def _receive(self) -> None:
        while True:
            client = await self._socket.recv()
            frames: list[Any] = []
            while self._socket.getsockopt(zmq.RCVMORE):
                frame = await self._socket.recv(copy=False)
                if len(frames) < 3:
                    frames.append(frame)
            # A REQ socket puts an empty frame before its message.
            whole = len(frames) == 2 and len(frames[0].buffer) == 0
            message = bytes(frames[1].buffer) if whole else b""
            peer = _address(frames[-1]) if frames else "?"
            task = asyncio.ensure_future(self._reply(client, message, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            while len(self._tasks) >= IN_WORK:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _reply(self, client: bytes, message: bytes, peer: str) -> None:
        units = len(message) / PIECE + FAULT
        await self._service.slow_down(peer)
        try:
            reply = await self._answer(message, peer)
        except Exception as problem:
            _, kind, text = classify(problem)
            self._service.count("gr00t", kind)
            await asyncio.sleep(max(0.0, self._service.effort.book(peer, units)))
            reply = gr00t.error_reply(text)
        with suppress(zmq.ZMQError):  # the client is gone
            await self._socket.send_multipart([client, b"", reply], flags=zmq.DONTWAIT)

    async def _answer(self, message: bytes, peer: str) -> bytes:
        """Raises what `classify` knows how to name."""
        call = gr00t.read_call(message)
        token = self._service.config.token
        if token and not hmac.compare_digest(call.token.encode("utf-8", "replace"), token.encode()):
            self._service.count("gr00t", "unauthorised")
            return gr00t.error_reply(FOREIGN_TOKEN)
        if call.endpoint == "kill":
            self._service.count("gr00t", "refused")
            return gr00t.error_reply(REFUSED)
        if call.endpoint == "ping":
            return gr00t.packed({"status": "ok", "message": "Server is running"}, call.form)
        if call.endpoint == "reset":
            return gr00t.packed({}, call.form)  # the policy keeps nothing between questions
        if call.endpoint == "get_modality_config":
            return gr00t.modality_reply(self._robot, self._horizon)
        if call.endpoint != "get_action":
            self._service.count("gr00t", "refused")
            known = ", ".join(gr00t.ENDPOINTS)
            return gr00t.error_reply(f"There is no endpoint '{call.endpoint[:80]}'. There are {known}.")
        began = time.perf_counter()
        asked = gr00t.observations(call, self._service.parser)
        allowance = Allowance(self._service.effort, peer)
        done = [await self._service.ask(observation, allowance) for observation in asked]
        self._service.answered("gr00t", began, sum(d.took for d in done))
        return gr00t.action_reply([d.chunk for d in done], self._robot, call.form)


def _address(frame: Any) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except (zmq.ZMQError, zmq.ZMQVersionError):
        return "?"
