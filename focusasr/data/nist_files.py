"""NIST's STM (segments with texts) and CTM (words with times) files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from focusasr.data.columns import to_seconds
from focusasr.runtime.errors import InputError

COMMENT = ";;"
IGNORED = "ignore_time_segment_in_scoring"
GAP = "inter_segment_gap"
CHANNELS = {"1": 0, "2": 1, "a": 0, "b": 1}


@dataclass(frozen=True)
class TimedText:
    """One line: its number, the recording's name, its channel from 0, times in seconds, the text, and the speaker."""

    number: int
    name: str
    channel: int | None
    begin: float
    end: float
    text: str
    speaker: str | None = None

    @property
    def is_ignored(self) -> bool:
        """Return whether an STM line excludes its time from scoring."""
        return self.text.strip().lower() == IGNORED or self.speaker == GAP


def parse_stm(lines: Sequence[str], path: Path) -> Iterator[TimedText | str]:
    """Yield each line of an STM file, FILE CHANNEL SPEAKER BEGIN END [<LABEL>] TEXT, or an error message."""
    for number, line in enumerate(lines, start=1):
        fields = line.split(maxsplit=5)
        if not fields or line.startswith(COMMENT):
            continue
        where = f"{path}, line {number}"
        if len(fields) < 5:
            yield f"{where}: expected FILE CHANNEL SPEAKER BEGIN END TEXT, got {line.strip()[:60]!r}"
            continue
        name, channel, speaker, *times = fields[:5]
        try:
            begin, end = (to_seconds(time, "the time", where) or 0.0 for time in times)
        except InputError as error:
            yield str(error)
            continue
        if end <= begin:
            yield f"{where}: the end ({end:g} s) is not after the begin ({begin:g} s)"
            continue
        text = re.sub(r"^<[^>]*>\s*", "", fields[5].strip()) if len(fields) > 5 else ""
        yield TimedText(number, name, CHANNELS.get(channel.lower()), begin, end, text, speaker)


def parse_ctm(lines: Sequence[str], path: Path) -> Iterator[TimedText]:
    """Yield each word of a CTM file, FILE CHANNEL BEGIN DURATION WORD; InputError for an invalid line."""
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or line.startswith(COMMENT):
            continue
        where = f"{path}, line {number}"
        if len(fields) < 5:
            raise InputError(f"{where}: expected FILE CHANNEL BEGIN DURATION WORD, got {line.strip()[:60]!r}")
        if fields[4].startswith("<ALT"):
            raise InputError(f"{where}: alternatives in CTM are not supported. Keep one word for each time.")
        begin, length = (to_seconds(time, "the time", where) or 0.0 for time in fields[2:4])
        yield TimedText(number, fields[0], CHANNELS.get(fields[1].lower()), begin, begin + length, fields[4])
