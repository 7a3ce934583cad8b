"""Hooks of the test run itself: a worker that dies ends the run, red, and says what was not run."""

from typing import Any

import pytest

_died: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """xdist replaces a dead worker and then, with whole files to hand out, waits for it for ever."""
    if getattr(config.option, "maxworkerrestart", "no xdist") is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    if error:
        _died.append(node.gateway.id)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _died:
        return
    stats = terminalreporter.stats
    done = sum(len(stats.get(k, ())) for k in ("passed", "failed", "skipped", "xfailed", "xpassed", "error"))
    terminalreporter.write_line(
        f"Worker {', '.join(_died)} died, so the run ended after {done} tests; the others were not run.", red=True
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _died and session.exitstatus == pytest.ExitCode.OK:  # it died between tests
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
