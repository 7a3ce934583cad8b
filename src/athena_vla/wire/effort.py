"""What a client may cost before it has been answered: its bytes, frames and faults are booked, and it waits for them.

Knows units of work and addresses; nothing of sockets. One unit is about 20 microseconds of the server's one core, the
time that Python takes to parse a frame or to take 16 KiB in. Questions that are answered cost nothing here.
"""

import asyncio
import time
from collections import OrderedDict

PIECE = 16 * 1024  # bytes that cost one unit
FRAME = 1  # units of one websocket frame, whatever its size
FAULT = 10  # units of a message that is answered with an error
CONNECT = 25  # units of accepting a connection
WASTED = 2_500  # units of a model's pass that was for nobody
FIRST = 32  # units that a new connection has: a handshake and a small question
ADDRESS_RATE = 5_000.0  # units a second of one address: a tenth of a core
TOTAL_RATE = 10_000.0  # units a second of all addresses: a fifth of a core
BURST = 0.2  # [s] of unused time that an address keeps
REMEMBERED = 4096  # addresses


class Effort:
    """The server's account of unanswered work, by address and in all."""

    def __init__(self) -> None:
        self._ready: OrderedDict[str, float] = OrderedDict()  # address -> time at which it has paid what it cost
        self._all_ready = 0.0

    def book(self, address: str, units: float) -> float:
        """Charge work to an address; returns the seconds for which it has to be kept waiting.

        An address that has cost nothing lately does not wait for what others cost.
        """
        now = time.monotonic()
        before = self._ready.pop(address, 0.0)
        ready = max(before, now - BURST) + units / ADDRESS_RATE
        self._ready[address] = ready
        while len(self._ready) > REMEMBERED:
            self._ready.popitem(last=False)
        self._all_ready = max(self._all_ready, now - BURST) + units / TOTAL_RATE
        return ready - now if before <= now - BURST else max(ready, self._all_ready) - now

    def give_back(self, address: str, units: float) -> None:
        """What was booked led to an answer after all."""
        if address in self._ready:
            self._ready[address] -= units / ADDRESS_RATE
        self._all_ready -= units / TOTAL_RATE


class Allowance:
    """One connection's account: free while its questions are answered, at the address's expense where they are not."""

    def __init__(self, effort: Effort, address: str) -> None:
        self._effort, self._address = effort, address
        self._credit: float = FIRST
        self._spent = 0.0  # units since the last answer
        self._booked: float = CONNECT  # of these, at the address's expense
        self.ever_answered = False

    async def pay(self, units: float) -> None:
        """Return at once while there is credit, else when the address has caught up."""
        self._spent += units
        if self._credit >= units:
            self._credit -= units
            return
        self._booked += units
        delay = self._effort.book(self._address, units)
        if delay > 0:
            await asyncio.sleep(delay)

    def wasted(self) -> None:
        """The client hung up while the model was at its first question: its address waits before it connects again."""
        if not self.ever_answered:
            self._effort.book(self._address, WASTED)

    def answered(self) -> None:
        """The question was a good one: what it cost is given back, and twice as much is free for the next."""
        self._effort.give_back(self._address, self._booked)
        self._credit = FIRST + 2 * min(self._spent, 2048.0)
        self._spent = self._booked = 0.0
        self.ever_answered = True
