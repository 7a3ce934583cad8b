"""Where a policy server listens, who may talk to it, and how much a client may ask of it.

Knows numbers and names; nothing of sockets.
"""

import math
import os
from dataclasses import dataclass, field

from athena_vla.errors import ServerError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN_VARIABLE = "ATHENA_TOKEN"  # environment variable of server and clients


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens and how much a client may ask of it."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs a token."""
    port: int = 8000
    """0 takes a free one."""
    gr00t_port: int = -1
    """Port of GR00T's ZeroMQ protocol, usually 5555; 0 takes a free one, -1 does not listen (extra `gr00t`)."""
    token: str = field(default="", repr=False)
    """What clients send as `Authorization: Bearer` or `Api-Key`. Better put it into the environment variable
    ATHENA_TOKEN, which is read where this is empty: other users see a command line."""
    certificate: str = ""
    """PEM file of the TLS certificate chain; empty serves without TLS."""
    key: str = ""
    """PEM file of the certificate's private key."""
    origins: tuple[str, ...] = ()
    """Web pages that may connect, such as https://robot.example; by default none. Programs send no origin."""
    max_message: int = 16 * 1024 * 1024
    """Largest message or body. [bytes]"""
    max_connections: int = 64
    """Clients at one time; `/healthz` is answered beyond."""
    max_per_address: int = 0
    """Clients at one time from one address; 0 is three quarters of all."""
    max_waiting: int = 16
    """Questions in line before new ones are refused as busy."""
    batch: int = 1
    """Most observations answered in one pass, where the actor can."""
    rate_limit: float = 500.0
    """Questions a second from one address; faster ones wait. [Hz]"""
    answer_timeout: float = 30.0
    """A question that takes longer is answered with an error. [s]"""
    head_timeout: float = 10.0
    """For a request's head, and between requests. [s]"""
    message_timeout: float = 30.0
    """From a message's first byte to its last, and for a client to read its answer. [s]"""
    ping_interval: float = 10.0
    """A websocket that was silent so long is pinged. [s]"""
    ping_timeout: float = 20.0
    """A websocket that answers no ping is closed after this. [s]"""
    idle_timeout: float = 600.0
    """A websocket without a message is closed after this, whatever it answers to pings. [s]"""
    grace: float = 10.0
    """For answers in progress at shutdown. [s]"""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token and not os.environ.get(TOKEN_VARIABLE):
            self.require_token()
        if bool(self.certificate) != bool(self.key):
            raise ServerError("TLS needs both a certificate and its key.")
        if self.token and (len(self.token) < 16 or not self.token.isascii() or self.token != self.token.strip()):
            raise ServerError("A token has at least 16 ASCII characters and no space around it.")
        if not 0 <= self.port <= 65535:
            raise ServerError(f"Port {self.port} does not exist; ports go from 0 (any free one) to 65535.")
        if not -1 <= self.gr00t_port <= 65535 or 0 < self.gr00t_port == self.port:
            raise ServerError(f"GR00T's port {self.gr00t_port} is taken or does not exist; -1 does not listen.")
        counts = (self.max_message, self.max_connections, self.max_waiting, self.batch)
        times = (self.rate_limit, self.answer_timeout, self.head_timeout, self.message_timeout, self.idle_timeout)
        pings = (self.ping_interval, self.ping_timeout)
        numbers = (*counts, *times, *pings, self.grace, self.max_per_address)
        positive = min(counts) >= 1 and min(*times, *pings) > 0 and min(self.grace, self.max_per_address) >= 0
        if not positive or not all(math.isfinite(n) for n in numbers):
            raise ServerError("The server's limits must be positive and finite.")

    def require_token(self) -> None:
        """Raises `ServerError` where others could move the robot without one."""
        if self.host not in LOOPBACK and not self.token:
            raise ServerError(
                f"Listening on '{self.host}' lets others move the robot: put a token of at least 16 characters into "
                f"the environment variable {TOKEN_VARIABLE} (and better give a certificate), or listen on "
                f"{LOOPBACK[0]}."
            )

    @property
    def share(self) -> int:
        """Clients at one time from one address."""
        return min(self.max_per_address or math.ceil(self.max_connections * 3 / 4), self.max_connections)
