"""Progress under a clock that the test moves: what is said to be left is what then passes; lines come in good time."""

import io
from dataclasses import dataclass, field

import pytest

from athena_vla.progress import Lines, Live, Progress, State, duration, quiet, shown


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Kept:
    """A view that keeps what it is shown, with the moment."""

    clock: Clock
    states: list[tuple[float, State]] = field(default_factory=list)

    def show(self, state: State) -> None:
        self.states.append((self.clock.now, state))

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def close(self) -> None:
        raise AssertionError


PLAN = {"record": 60.0, "prepare": 30.0, "train": 480.0, "compare": 120.0, "report": 3.0}


def work(progress: Progress, clock: Clock, slower: float, steps: int = 30) -> None:
    """All parts of the plan, each `slower` times as long as planned; training in two parts of its own."""
    for name, seconds in PLAN.items():
        part = progress.part(name)
        sub = {"features": 96.0, "steps": 384.0} if name == "train" else {name: seconds}
        if name == "train":
            part.plan({k: v / 48 for k, v in sub.items()})  # whatever the unit
        for what, each in sub.items():
            part(0, steps, what)
            for done in range(1, steps + 1):
                clock.now += slower * each / steps
                part(done, steps, what)


@pytest.mark.parametrize("slower", [1.0, 0.25, 7.0])
def test_what_is_left_of_all_is_what_then_passes(slower: float) -> None:
    clock = Clock()
    kept = Kept(clock)
    progress = Progress(kept, clock)
    progress.plan(PLAN)
    work(progress, clock, slower)
    planned = sum(PLAN.values())
    end = 1000.0 + slower * planned
    assert clock.now == pytest.approx(end)
    for now, state in kept.states:
        assert state.all_left is not None
        assert state.all_total is not None
        if now - 1000.0 >= 0.1 * slower * planned:  # a tenth of the way
            assert state.all_left == pytest.approx(end - now, abs=1e-6)
            assert state.all_total == pytest.approx(slower * planned)
    first = kept.states[0][1]
    assert first.all_total == pytest.approx(planned)  # before anything is known, the plan
    if slower == 1.0:
        assert all(s.all_total == pytest.approx(planned) for _, s in kept.states)


def test_what_is_left_of_one_thing_follows_its_own_speed() -> None:
    clock = Clock()
    kept = Kept(clock)
    progress = Progress(kept, clock)
    progress(40, 100, "layers")  # forty were there before
    assert kept.states[-1][1].left is None
    clock.now += 30
    progress(50, 100, "layers")  # ten in 30 s
    assert kept.states[-1][1].left == pytest.approx(150)
    assert str(kept.states[-1][1]) == "layers 50/100, 2 min left"
    progress(0, 8, "checking")
    assert kept.states[-1][1].left is None


def test_parts_that_are_there_already_count_for_nothing() -> None:
    clock = Clock()
    kept = Kept(clock)
    progress = Progress(kept, clock)
    progress.plan(PLAN)
    for name in ("record", "prepare", "train"):
        progress.skip(name)
    assert progress.state().all_total == pytest.approx(123)
    part = progress.part("compare")
    part(0, 10)
    clock.now += 60
    part(5, 10)
    assert kept.states[-1][1].all_left == pytest.approx(63)


def test_lines_come_every_ten_seconds_and_say_it_all() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(Lines(out, clock=clock), clock)
    progress.plan({"record": 60, "train": 300, "report": 480})
    record = progress.part("record")
    for done in range(61):
        record(done, 60, "episode")
        clock.now += 1
    train = progress.part("train")
    for step in range(601):
        train(step, 600, "step", f"loss {1 / (step + 1):.2f}")
        clock.now += 0.5
    progress.part("report")(1, 1, "report")
    lines = out.getvalue().splitlines()
    assert 30 <= len(lines) <= 37  # of 361 s
    assert lines[0] == "episode 10/60, 50 s left; about 14 of 14 min for all"
    assert "step 138/600 (loss 0.01), 4 min left; about 12 of 14 min for all" in lines


def test_sentences_stand_beside_the_progress() -> None:
    out = io.StringIO()
    with shown(out) as progress:
        progress.say("Resumed at step [3].")
        progress.part("a").say("twice")
    assert out.getvalue() == "Resumed at step [3].\ntwice\n"


def test_on_a_terminal_there_is_one_live_view_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, clock = Terminal(), Clock()
    view = Live(out)
    progress = Progress(view, clock)
    progress.plan({"train": 600, "report": 240})
    train = progress.part("train")
    train(0, 600, "step")
    clock.now += 300
    train(300, 600, "step", "loss 0.12")
    progress.say("[not markup]")
    view.bars.refresh()
    view.close()
    shown_text = out.getvalue()
    for text in ("step", "300/600, loss 0.12, 5 min left", "about 9 of 14 min for all", "[not markup]"):
        assert text in shown_text


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(1, 2, "layers")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (86400, "24 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
