"""How far work is and when it will be done: one type for every stage, one live view or lines in a log.

Work reports `progress(done, total, what)`. Work in parts of known weights says so with `plan`; a part is a `what`, or a
progress of its own from `part`. Weights are seconds on some machine: this machine's speed is learned from what is done.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

SURE = 0.1  # share of the work after which only the measured speed counts
LINES_EVERY = 10.0  # [s] between lines in a log


@dataclass(frozen=True)
class State:
    """One moment: of what is being done, and of the whole."""

    what: str
    done: int
    total: int
    note: str = ""
    left: float | None = None  # [s] of what is being done; None while its speed is not known
    all_left: float | None = None  # [s] of everything planned; None where nothing was planned
    all_total: float | None = None  # [s] what is left and what it took until now

    def __str__(self) -> str:
        text = f"{self.what} {self.done}/{self.total}".strip() if self.total else self.what
        text += f" ({self.note})" if self.note else ""
        text += f", {duration(self.left)} left" if self.left is not None else ""
        return text + (f"; {self.whole}" if self.whole else "")

    @property
    def whole(self) -> str:
        """Of everything planned: `about 11 of 14 min for all`."""
        if self.all_left is None or self.all_total is None:
            return ""
        unit = _unit(self.all_total)
        left, total = (_count(seconds, unit) for seconds in (self.all_left, self.all_total))
        return f"about {left} of {total} {unit} for all"


class View(Protocol):
    """Where progress is shown."""

    def show(self, state: State) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Nowhere:
    """Shows nothing; sentences go to standard error."""

    def show(self, state: State) -> None:
        """Nobody is told."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Progress:
    """How far a piece of work is; call it with done, total and what is being counted."""

    view: View = field(default_factory=Nowhere)
    clock: Callable[[], float] = time.monotonic  # [s]
    above: "Progress | None" = None
    name: str = ""  # of this part in the plan of the one above

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.weights: dict[str, float] = {}
        self.finished: set[str] = set()
        self.what = ""
        self.fraction = 0.0  # of what is being done now
        self._first: tuple[float, int] = (self.started, 0)

    def plan(self, weights: Mapping[str, float]) -> None:
        """Say what parts this work has, in order, and how long each takes [s], on any machine."""
        self.weights, self.finished = dict(weights), set()

    def part(self, name: str) -> "Progress":
        """The progress of one part; the parts before it are done."""
        self._begin(name)
        return Progress(self.view, self.clock, self, name)

    def skip(self, name: str) -> None:
        """This part is there already: it counts for nothing."""
        self.weights.pop(name, None)

    def __call__(self, done: int, total: int, what: str = "", note: str = "") -> None:
        """`done` of `total`; what the first call of a `what` calls done was there before and says nothing of speed."""
        now = self.clock()
        if what != self.what or not total or done < self._first[1]:
            self._begin(what)
            self._first = (now, done)
        self.fraction = done / total if total else 0.0
        self._report(State(what or self.name, done, total, note, self._left(now, done, total)), now)

    def say(self, text: str) -> None:
        """A sentence for the user, beside the bars and not through them."""
        self.view.say(text)

    def share(self) -> float:
        """Of this work, from 0 to 1; without a plan that of what is being done."""
        whole = sum(self.weights.values())
        if whole <= 0:
            return min(self.fraction, 1.0)
        done = sum(w for n, w in self.weights.items() if n in self.finished)
        return min((done + self.weights.get(self.what, 0.0) * self.fraction) / whole, 1.0)

    def state(self) -> State:
        """What of the whole is left at this moment."""
        return self._whole(State(self.what, 0, 0), self.clock())

    def _begin(self, what: str) -> None:
        if what != self.what or what not in self.weights:
            order = list(self.weights)
            if what in self.weights:
                self.finished = set(order[: order.index(what)])
            self.what, self.fraction = what, 0.0

    def _left(self, now: float, done: int, total: int) -> float | None:
        since, before = self._first
        if done <= before or now <= since:
            return None
        return (now - since) * (total - done) / (done - before)

    def _report(self, state: State, now: float) -> None:
        if self.above is None:
            self.view.show(self._whole(state, now))
            return
        self.above._begin(self.name)
        self.above.fraction = self.share()
        self.above._report(state, now)

    def _whole(self, state: State, now: float) -> State:
        planned = sum(self.weights.values())
        if planned <= 0:
            return state
        spent, share = now - self.started, self.share()
        sure = min(share / SURE, 1.0)
        total = (1.0 - sure) * max(planned, spent) + (sure * spent / share if share > 0 else 0.0)
        return State(state.what, state.done, state.total, state.note, state.left, max(total - spent, 0.0), total)


quiet = Progress()


class Lines:
    """Lines for a log, at most one every `every` seconds."""

    def __init__(self, stream: TextIO, every: float = LINES_EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.every, self.clock = stream, every, clock
        self.last = clock()

    def show(self, state: State) -> None:
        if self.clock() - self.last >= self.every:
            self.last = self.clock()
            self.say(str(state))

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Every line is out already."""


class Live:
    """One live view on a terminal: a bar for what is being done, and below it the whole where it was planned."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
        self.bars = Bars(*columns, console=Console(file=stream), transient=True)
        self.now, self.all = (self.bars.add_task("", total=None, visible=False, said="") for _ in range(2))
        self.bars.start()

    def show(self, state: State) -> None:
        count = f"{state.done}/{state.total}" if state.total else ""
        left = "" if state.left is None else f"{duration(state.left)} left"
        said = ", ".join(filter(None, (count, state.note, left)))
        self._update(self.now, completed=state.done, total=state.total or None, description=state.what, said=said)
        if state.all_total is not None and state.all_left is not None:
            spent = state.all_total - state.all_left
            self._update(self.all, completed=spent, total=state.all_total, description="all", said=state.whole)

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.bars.stop()

    def _update(self, task: Any, **values: Any) -> None:
        self.bars.update(task, visible=True, **values)


@contextlib.contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Progress]:
    """A progress that is seen: bars on a terminal, lines elsewhere; on standard error where no stream is given."""
    where = sys.stderr if stream is None else stream
    view: View = Live(where) if where.isatty() else Lines(where)
    try:
        yield Progress(view)
    finally:
        view.close()


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `4 min`, `2 h 10 min`."""
    if _unit(seconds) != "h":
        return f"{_count(seconds, _unit(seconds))} {_unit(seconds)}"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _unit(seconds: float) -> str:
    return "s" if seconds < 90 else "min" if seconds < 5400 else "h"


def _count(seconds: float, unit: str) -> str:
    return f"{seconds / 3600:.1f}" if unit == "h" else f"{seconds / (60 if unit == 'min' else 1):.0f}"
