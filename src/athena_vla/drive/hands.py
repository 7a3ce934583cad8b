"""How a person reaches a running robot: keys in the terminal, and a small server for a stop from another machine.

Knows the three calls of a runtime (stop, acknowledge, beat) and where they may come from.
"""

import contextlib
import hmac
import json
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from athena_vla.errors import SafetyError

Calls = Mapping[str, Callable[[], object]]
KEYS = {" ": "stop", "\n": "stop", "\r": "stop", "a": "acknowledge", "q": "quit"}
HELP = "space: stop   a: acknowledge   q: come to rest and quit"
TOKEN = 16  # characters, at least
WAIT = 2.0  # [s] for a request


@contextmanager
def keys(calls: Calls, press: Callable[[str], str] | None = None) -> Iterator[bool]:
    """Single keys in the terminal, while it is one; any key is a heartbeat. Yields whether there is a terminal.

    `press` is given the keys that are none of `KEYS`; what it says is printed.
    """
    if not sys.stdin.isatty():
        yield False
        return
    import termios
    import tty

    before, done = termios.tcgetattr(sys.stdin), threading.Event()

    def listen() -> None:
        while not done.is_set():
            if select.select([sys.stdin], [], [], 0.1)[0]:
                key = sys.stdin.read(1)
                calls["beat"]()
                if key in KEYS:
                    calls[KEYS[key]]()
                elif press is not None and (said := press(key)):
                    print(f"  {said}", flush=True)

    tty.setcbreak(sys.stdin)
    thread = threading.Thread(target=listen, name="keys", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join(1.0)  # or it would take the first letter of what is asked next
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def remote(calls: Calls, host: str, port: int, token: str, state: Callable[[], str]) -> Iterator[str]:
    """`POST /stop`, `/acknowledge`, `/beat` and `GET /state`, with the token in every request. Yields the address.

    Raises `SafetyError` without a token, or where the port is taken.
    """
    if len(token) < TOKEN:
        raise SafetyError(
            f"Stopping and releasing a robot over the network needs a token of at least {TOKEN} characters: set "
            "ATHENA_TOKEN."
        )

    class Handler(BaseHTTPRequestHandler):
        timeout = WAIT
        protocol_version = "HTTP/1.0"  # one request a connection

        def do_POST(self) -> None:
            name = self.path.strip("/")
            if self._allowed() and name in ("stop", "acknowledge", "beat"):
                self._answer(HTTPStatus.OK, {"done": calls[name]() is not False, "state": state()})
            elif self._allowed():
                self._answer(HTTPStatus.NOT_FOUND, {"error": "POST /stop, /acknowledge or /beat"})

        def do_GET(self) -> None:
            if self._allowed():
                self._answer(HTTPStatus.OK, {"state": state()})

        def _allowed(self) -> bool:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            right = hmac.compare_digest(given.encode(), token.encode())
            if not right:
                self._answer(HTTPStatus.UNAUTHORIZED, {"error": "Authorization: Bearer TOKEN"})
            return right

        def _answer(self, status: HTTPStatus, content: Mapping[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise SafetyError(f"Cannot listen on {host}:{port} for stops: {error.strerror or error}.") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="remote-stop", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
