"""A policy on another machine, as an actor: openpi's protocol from the client's side, with reconnects and deadlines.

Knows the wire and one robot; nothing of control loops. Every failure is one `ServerError` within the deadline, and the
next call starts afresh.
"""

import contextlib
import json
import ssl
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import Busy, InvalidObservation, ServerError, UnknownName
from athena_vla.wire.codec import pack, unpack

NAMED = {"InvalidObservation": InvalidObservation, "Busy": Busy}
MAX_ANSWER = 16 * 1024 * 1024  # bytes


class RemotePolicy:
    """Asks a server for chunks; connects at the first question, and again whenever the connection is lost.

    `address` is `ws://host:port` or `wss://host:port`; `certificate` the PEM file of a private authority. `timeout` [s]
    bounds one call of `act`, connecting included. A server made for another robot is refused on connecting.
    """

    def __init__(
        self,
        address: str,
        robot: Embodiment,
        *,
        token: str = "",
        timeout: float = 5.0,
        certificate: str = "",
    ) -> None:
        if not address.startswith(("ws://", "wss://")):
            raise ServerError(f"'{address}' is not an address of a policy server; it looks like ws://127.0.0.1:8000.")
        if not timeout > 0:
            raise ServerError(f"A timeout must be positive, not {timeout} s.")
        self.address, self._robot, self._token, self._timeout = address, robot, token, timeout
        self._tls: ssl.SSLContext | None = None
        if address.startswith("wss://"):
            if certificate and not Path(certificate).is_file():
                raise ServerError(f"There is no certificate '{certificate}'.")
            self._tls = ssl.create_default_context(cafile=certificate or None)
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._asked = 0
        self.metadata: dict[str, Any] = {}  # of the server, once connected
        self.reconnects = -1  # connections made beyond the first

    def act(self, observation: Observation, /) -> ActionChunk:
        """The server's chunk, stamped with the observation's own time. Raises `ServerError`, `InvalidObservation`."""
        with self._lock:
            deadline = time.monotonic() + self._timeout
            self._asked += 1
            question = pack(self._question(observation, self._asked))
            try:
                raw = self._exchange(question, deadline)
                return self._chunk(raw, observation)
            except (OSError, WebSocketException, TimeoutError) as problem:
                self._drop()
                what = f"no answer within {self._timeout:g} s" if isinstance(problem, TimeoutError) else str(problem)
                raise ServerError(f"Policy server {self.address}: {what or type(problem).__name__}.") from problem
            except ServerError:
                self._drop()  # whatever else may be on its way belongs to a question that nobody asks any more
                raise

    @property
    def prefix(self) -> int:
        """Most committed rows the server's policy can be given; 0 until the first connection."""
        return self.metadata.get("prefix", 0)

    def connect(self) -> dict[str, Any]:
        """Connect now and return the server's metadata. Raises `ServerError`."""
        with self._lock:
            try:
                self._connected(time.monotonic() + self._timeout)
            except (OSError, WebSocketException, TimeoutError) as problem:
                self._drop()
                raise ServerError(f"Policy server {self.address}: {problem or type(problem).__name__}.") from problem
            return self.metadata

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, question: bytes, deadline: float) -> str | bytes:
        fresh = self._connection is None
        connection = self._connected(deadline)
        try:
            connection.send(question)
            return connection.recv(max(deadline - time.monotonic(), 0.0))
        except (OSError, WebSocketException) as problem:
            if fresh or isinstance(problem, TimeoutError):
                raise
            # The server may have restarted while nobody was talking: once more, on a new connection.
            self._drop()
            connection = self._connected(deadline)
            connection.send(question)
            return connection.recv(max(deadline - time.monotonic(), 0.0))

    def _connected(self, deadline: float) -> ClientConnection:
        if self._connection is not None:
            return self._connection
        headers = {"Authorization": f"Api-Key {self._token}"} if self._token else None
        # Entered here and left in `_drop`: the connection outlives the call that opened it.
        connection = connect(
            self.address,
            ssl=self._tls,
            compression=None,
            additional_headers=headers,
            open_timeout=max(deadline - time.monotonic(), 0.01),
            close_timeout=0.2,
            ping_interval=None,  # an answer within the deadline is the sign of life
            max_size=MAX_ANSWER,
            proxy=None,
        ).__enter__()
        self._connection = connection
        raw = connection.recv(max(deadline - time.monotonic(), 0.0))
        metadata = unpack(raw) if isinstance(raw, bytes) else None
        if not isinstance(metadata, dict):
            raise ServerError(f"Policy server {self.address} does not begin with its metadata.")
        self._check(metadata)
        self.metadata = metadata
        self.reconnects += 1
        return connection

    def _check(self, metadata: dict[str, Any]) -> None:
        robot = self._robot
        theirs = metadata.get("embodiment_hash")
        if theirs != robot.hash:
            raise ServerError(
                f"Policy server {self.address} drives '{metadata.get('robot')}' ({theirs}), this is '{robot.name}' "
                f"({robot.hash}): names, order or limits differ. Serve a bundle made for this robot."
            )
        names = metadata.get("action_names")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ServerError(f"Policy server {self.address} does not name its joints.")
        try:
            robot.index(names)
        except UnknownName as problem:
            raise ServerError(f"Policy server {self.address}: {problem}") from problem
        dt = metadata.get("dt")
        if not isinstance(dt, float) or not 0 < dt < 10:
            raise ServerError(f"Policy server {self.address} names a control step of {dt} s.")
        rows = metadata.get("prefix", 0)
        if type(rows) is not int or not 0 <= rows < 1000:
            raise ServerError(f"Policy server {self.address} names a prefix of {rows} rows.")

    def _question(self, observation: Observation, number: int) -> dict[str, Any]:
        cameras = self._robot.camera_names
        missing = [c for c in cameras if c not in observation.images]
        if missing:
            raise InvalidObservation(f"{self._robot.name} needs cameras {list(cameras)}; {missing} are missing.")
        rows = {} if observation.committed is None else {"observation/committed": observation.committed}
        return {
            **rows,
            **{f"observation/{c}": observation.images[c] for c in cameras},
            "observation/state": np.asarray(observation.state),
            "prompt": observation.instruction,
            "time": float(observation.time),
            "request_id": number,
        }

    def _chunk(self, raw: str | bytes, observation: Observation) -> ActionChunk:
        if isinstance(raw, str):
            raise self._fault(raw)
        reply = unpack(raw)
        if not isinstance(reply, dict) or not isinstance(reply.get("actions"), np.ndarray):
            raise ServerError(f"Policy server {self.address} answered without 'actions'.")
        if reply.get("request_id") != self._asked:
            raise ServerError(f"Policy server {self.address} answered question {reply.get('request_id')!r:.40}.")
        names = tuple(self.metadata["action_names"])
        actions = reply["actions"]
        if actions.ndim != 2 or actions.shape[1] != len(names) or actions.dtype.kind != "f" or len(actions) == 0:
            raise ServerError(
                f"Policy server {self.address} answered with {actions.dtype} {list(actions.shape)}; "
                f"[H, {len(names)}] radians were expected."
            )
        return ActionChunk(
            positions=actions.astype(np.float64),
            joint_names=names,
            dt=self.metadata["dt"],
            time=observation.time,
            info={"server_timing": reply.get("server_timing", {})},
        )

    def _fault(self, text: str) -> ServerError | InvalidObservation:
        try:
            fault = json.loads(text)["error"]
            kind, message = str(fault["type"]), str(fault["message"])
        except (ValueError, KeyError, TypeError):
            return ServerError(f"Policy server {self.address}: {text[:500]}")
        return NAMED.get(kind, ServerError)(f"Policy server {self.address}: {kind}: {message}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                # Not `close()`: its handshake would wait for a server that may be gone.
                connection.socket.close()
