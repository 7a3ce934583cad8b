"""A policy on another machine, as an actor: openpi's protocol from the client's side, with reconnects and deadlines.

Knows the messages and one robot; nothing of control loops. Every failure is one `ServerError` within the deadline, and
the next call starts afresh; no call leaves a thread or a descriptor behind.
"""

import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.uri import parse_uri

from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import AthenaError, Busy, InvalidObservation, ServerError, UnknownName
from athena_vla.wire.client_socket import ClientSocket
from athena_vla.wire.codec import pack, unpack
from athena_vla.wire.serve_config import TOKEN_VARIABLE

LOG = logging.getLogger("athena_vla.client")
MAX_ANSWER = 16 * 1024 * 1024  # bytes


class RemotePolicy:
    """Asks a server for chunks; connects at the first question, and again whenever the connection is lost.

    `address` is `ws://host:port` or `wss://host:port`; `certificate` the PEM file of a private authority. `timeout` [s]
    bounds one call of `act`: looking the host up, connecting, sending and waiting for the answer. `token` defaults to
    the environment variable ATHENA_TOKEN. A server made for another robot is refused on connecting.
    """

    def __init__(
        self,
        address: str,
        robot: Embodiment,
        *,
        token: str | None = None,
        timeout: float = 5.0,
        certificate: str = "",
    ) -> None:
        if not address.startswith(("ws://", "wss://")):
            raise ServerError(f"'{address}' is not an address of a policy server; it looks like ws://127.0.0.1:8000.")
        if not 0 < timeout < float("inf"):
            raise ServerError(f"A timeout must be positive and finite, not {timeout} s.")
        try:
            self._uri = parse_uri(address)
        except (InvalidURI, ValueError) as error:
            raise ServerError(f"'{address}' is not an address of a policy server: {error}.") from error
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        if not token.isascii() or not token.isprintable():
            raise ServerError("A token has ASCII characters only.")
        self.address, self._robot, self._timeout = address, robot, timeout
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self._tls: ssl.SSLContext | None = None
        if address.startswith("wss://"):
            if certificate and not Path(certificate).is_file():
                raise ServerError(f"There is no certificate '{certificate}'.")
            try:
                self._tls = ssl.create_default_context(cafile=certificate or None)
            except ssl.SSLError as error:
                raise ServerError(f"'{certificate}' is no PEM file of a certificate: {error}.") from error
        self._lock = threading.Lock()
        self._connection: ClientSocket | None = None
        self._asked = 0
        self.metadata: dict[str, Any] = {}  # of the server, once connected
        self.reconnects = -1  # connections made beyond the first

    def act(self, observation: Observation, /) -> ActionChunk:
        """The server's chunk, stamped with the observation's own time. Raises `ServerError`, `InvalidObservation`."""
        with self._within_deadline() as deadline:
            self._asked += 1
            question = pack(self._question(observation, self._asked))
            raw = self._exchange(question, deadline)
            if isinstance(raw, str):
                raise self._fault(raw)
            try:
                return self._chunk(raw, observation)
            except ServerError:
                self._drop()  # a server that answers like this may send anything next
                raise

    @property
    def prefix(self) -> int:
        """Most rows of the action prefix the server's policy can be given; 0 until the first connection."""
        return self.metadata.get("prefix", 0)

    @property
    def policy_id(self) -> str:
        """Hash of the bundle that the server answers with; "" until the first connection, or where it says none."""
        return str(self.metadata.get("bundle_hash", ""))

    def connect(self) -> dict[str, Any]:
        """Connect now and return the server's metadata. Raises `ServerError`."""
        with self._within_deadline() as deadline:
            self._connected(deadline)
            return self.metadata

    def close(self) -> None:
        """Hang up; a question that another thread waits for ends at once."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()
        if self._lock.acquire(timeout=self._timeout):
            try:
                self._drop()
            finally:
                self._lock.release()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _within_deadline(self) -> Iterator[float]:
        """The only user of the connection until the deadline [s of `time.monotonic`]; failures become sentences."""
        deadline = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise ServerError(self._said(f"another thread's question took {self._timeout:g} s."))
        try:
            yield deadline
        except ServerError as problem:
            raise type(problem)(self._said(str(problem))) from problem
        except AthenaError:
            raise
        except (OSError, WebSocketException) as problem:  # a TimeoutError is an OSError
            self._drop()
            what = f"no answer within {self._timeout:g} s" if isinstance(problem, TimeoutError) else str(problem)
            raise ServerError(self._said(f"{what or type(problem).__name__}.")) from problem
        except BaseException:  # interrupted: an answer may be on its way that belongs to no later question
            self._drop()
            raise
        finally:
            self._lock.release()

    def _said(self, what: str) -> str:
        return f"Policy server {self.address}: {what}"

    def _exchange(self, question: bytes, deadline: float) -> str | bytes:
        fresh = self._connection is None
        connection = self._connected(deadline)
        try:
            connection.send(question, deadline)
            return connection.receive(deadline)
        except (OSError, WebSocketException) as problem:
            if fresh or isinstance(problem, TimeoutError):
                raise
            # The server may have restarted while nobody was talking: once more, on a new connection.
            self._drop()
            connection = self._connected(deadline)
            connection.send(question, deadline)
            return connection.receive(deadline)

    def _connected(self, deadline: float) -> ClientSocket:
        if self._connection is not None:
            if self._connection.is_alive():
                return self._connection
            self._drop()
        try:
            self._connection = ClientSocket.open(
                self._uri, deadline, tls=self._tls, headers=self._headers, max_size=MAX_ANSWER
            )
            raw = self._connection.receive(deadline)
            metadata = unpack(raw) if isinstance(raw, bytes) else None
            if not isinstance(metadata, dict):
                raise ServerError("it does not begin with its metadata.")
            self._check(metadata)
        except ServerError:
            self._drop()
            raise
        before, now = self.metadata.get("bundle_hash"), metadata.get("bundle_hash")
        if before != now and self.metadata:
            LOG.warning("policy server %s serves another bundle: %s instead of %s", self.address, now, before)
        self.metadata = metadata
        self.reconnects += 1
        return self._connection

    def _check(self, metadata: dict[str, Any]) -> None:
        robot = self._robot
        theirs = metadata.get("embodiment_hash")
        if theirs != robot.hash:
            raise ServerError(
                f"it drives '{metadata.get('robot')}' ({theirs}), this is '{robot.name}' "
                f"({robot.hash}): names, order or limits differ. Serve a bundle made for this robot."
            )
        names = metadata.get("action_names")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ServerError("it does not name its joints.")
        if len(set(names)) != len(names):
            raise ServerError("it names a joint twice.")
        try:
            for name in names:
                if name not in robot.command_names:
                    raise UnknownName(f"joint or channel of robot '{robot.name}'", name, robot.command_names)
        except UnknownName as problem:
            raise ServerError(str(problem)) from problem
        dt = metadata.get("dt")
        if not isinstance(dt, float) or not 0 < dt < 10:
            raise ServerError(f"it names a control step of {dt} s.")
        rows = metadata.get("prefix", 0)
        if type(rows) is not int or not 0 <= rows < 1000:
            raise ServerError(f"it names a prefix of {rows} rows.")

    def _question(self, observation: Observation, number: int) -> dict[str, Any]:
        cameras = self._robot.camera_names
        missing = [c for c in cameras if c not in observation.images]
        if missing:
            raise InvalidObservation(f"{self._robot.name} needs cameras {list(cameras)}; {missing} are missing.")
        rows = {} if observation.action_prefix is None else {"observation/action_prefix": observation.action_prefix}
        return {
            **rows,
            **{f"observation/{c}": observation.images[c] for c in cameras},
            "observation/state": np.asarray(observation.state),
            "prompt": observation.instruction,
            "time": float(observation.time),
            "request_id": number,
        }

    def _chunk(self, raw: bytes, observation: Observation) -> ActionChunk:
        reply = unpack(raw)
        if not isinstance(reply, dict) or not isinstance(reply.get("actions"), np.ndarray):
            raise ServerError("it answered without 'actions'.")
        if reply.get("request_id") != self._asked:
            raise ServerError(f"it answered question {reply.get('request_id')!r:.40}.")
        names = tuple(self.metadata["action_names"])
        actions = reply["actions"]
        if actions.ndim != 2 or actions.shape[1] != len(names) or actions.dtype.kind != "f" or len(actions) == 0:
            raise ServerError(
                f"it answered with {actions.dtype} {list(actions.shape)}; [H, {len(names)}] radians were expected."
            )
        return ActionChunk(
            positions=actions.astype(np.float64),
            joint_names=names,
            dt=self.metadata["dt"],
            time=observation.time,
            info={
                "server_timing": reply.get("server_timing", {}),
                "bundle_hash": str(self.metadata.get("bundle_hash", "")),  # a restarted server may have another
            },
        )

    def _fault(self, text: str) -> ServerError | InvalidObservation:
        try:
            fault = json.loads(text)["error"]
            kind, message = str(fault["type"]), str(fault["message"])
        except (ValueError, KeyError, TypeError):
            return ServerError(text[:500])
        if kind == "InvalidObservation":
            return InvalidObservation(self._said(f"{kind}: {message}"))
        return (Busy if kind == "Busy" else ServerError)(f"{kind}: {message}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
