"""How long work says how far it is; the command line draws the bar."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, what


def quiet(done: int, total: int, what: str) -> None:
    """Nobody is told."""
