"""Progress as it is drawn: what it says stands whole on one line, however narrow the terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from focusasr.runtime import console as progress

TIMES = r" *\d+% \d:\d\d:\d\d gone [\d:-]{7} left"


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, work: Callable[[], None]) -> str:
    """Return the last line that `work` draws on a terminal of that width."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "stderr", lambda: console)
    monkeypatch.setattr(progress, "shows", lambda: True)
    work()
    lines = re.split(r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]", console.file.getvalue())  # type: ignore[attr-defined]
    return [line for line in lines if line.strip()][-1]


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (120, r"transcribing: 7/12 files, 43 of 100 s of sound, \d+x real time"),
        (80, r"transcribing: 7/12 files(, \d+x real time)?"),
        (60, "transcribing: 7/12"),
        (44, "7/12"),
    ],
)
def test_counts_and_times_are_whole(monkeypatch: pytest.MonkeyPatch, width: int, said: str) -> None:
    def work() -> None:
        with progress.progress_bar(12, "transcribing", lambda: 100.0) as tell:
            monkeypatch.setattr(progress.time, "perf_counter", lambda: began + 2)
            tell(7, 43.0)

    began = progress.time.perf_counter()
    line = drawn(monkeypatch, width, work)
    assert len(line) <= width and re.fullmatch(rf"{said} [━╸╺ ]{{4,}}{TIMES} *", line), line


@pytest.mark.parametrize("width", [80, 60])
def test_files_without_lengths_have_their_percentage_too(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    def work() -> None:
        with progress.file_bar("preprocessing") as tell:
            tell(1, 12)
            tell(6, 12)

    line = drawn(monkeypatch, width, work)
    assert re.fullmatch(rf"preprocessing: 6/12( files)? [━╸╺ ]{{8,}}{TIMES} *", line) and " 50% " in line, line


def test_without_a_terminal_a_line_each_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with progress.progress_bar(3, "transcribing", lambda: 5400.0) as tell:
        for minutes in (0.5, 1.1, 1.9, 2.2):
            now = 1000.0 + 60 * minutes
            tell(0, 600.0)
        tell(2, 0.0)
        now += 100
        tell(1, 3000.0)  # all is done: results say so
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "focusasr: transcribing: 0/3 files, 20 of 90 min of sound, 18x real time"
    assert "40 of 90 min" in lines[1]
