"""Where websocket frames begin in a stream of bytes, so that each is paid for before it is parsed.

Knows the head of a frame (RFC 6455, 5.2) and nothing else; `websockets` parses and judges them.
"""


class FrameScanner:
    """Cuts incoming bytes at the ends of frames; keeps what it needs of a head that is not whole yet."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # payload bytes of the frame at hand that have not come

    @property
    def inside(self) -> bool:
        """Whether a frame has begun that is not whole."""
        return bool(self._head) or self._left > 0

    def cut(self, data: bytes, start: int) -> tuple[int, bool]:
        """The end of the piece from `start` that belongs to one frame, and whether that frame begins in it."""
        begins, at = False, start
        if self._left == 0:
            begins = not self._head
            while (missing := self._missing()) and at < len(data):
                self._head += data[at : at + missing]
                at = min(at + missing, len(data))
            if missing:
                return at, begins
            self._left = self._length()
            self._head = b""
        end = min(at + self._left, len(data))
        self._left -= end - at
        return end, begins

    def _missing(self) -> int:
        """Bytes of the head that have not come, as far as it can be said."""
        if len(self._head) < 2:
            return 2 - len(self._head)
        short = self._head[1] & 0x7F
        whole = 2 + {126: 2, 127: 8}.get(short, 0) + (4 if self._head[1] & 0x80 else 0)
        return whole - len(self._head)

    def _length(self) -> int:
        short = self._head[1] & 0x7F
        if short < 126:
            return short
        return int.from_bytes(self._head[2 : 4 if short == 126 else 10], "big")
