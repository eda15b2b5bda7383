"""Programs take the signals over, and give them back to a process that goes on."""

import signal
import sys
import threading
import warnings

import pytest

from unclip.cli.run import run
from unclip.cli.signals import NUMBERS


def handlers() -> list:
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return [*map(signal.getsignal, NUMBERS), wakeup, warnings.showwarning]


def run_within(seen: list, status: int = 3) -> None:
    """Run a program that notes the handlers, as %run does: its end is caught, and the process goes on."""

    def main(argv: object) -> int:
        seen.append(handlers())
        return status

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == status


def test_a_process_that_goes_on_after_a_program_has_its_signals_and_warnings_back():
    before = handlers()
    threads = threading.active_count()
    seen: list = []
    run_within(seen)
    run_within(seen)
    assert handlers() == before
    for inside in seen:
        assert inside[:-2] != before[:-2]
    for thread in threading.enumerate()[threads:]:
        thread.join(5)
    assert threading.active_count() == threads


def test_an_interactive_session_keeps_its_signals_while_a_program_runs(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = handlers()
    seen: list = []
    run_within(seen)
    assert seen[0][:-1] == before[:-1]
    assert handlers() == before


def test_a_program_runs_in_another_thread_too():
    seen: list = []
    thread = threading.Thread(target=run_threaded, args=(seen,))
    thread.start()
    thread.join()
    assert seen == [0]


def run_threaded(seen: list) -> None:
    try:
        run(lambda argv: 0)
    except SystemExit as stop:
        seen.append(stop.code)
