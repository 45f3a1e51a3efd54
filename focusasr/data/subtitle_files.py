"""Cues of SRT and WebVTT subtitles."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMES = re.compile(r"^\s*(?P<begin>[\d:]+[.,]\d+)\s*-->\s*(?P<end>[\d:]+[.,]\d+)")
CLOCK = re.compile(r"^(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})$")
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Cue:
    """One cue: its line in the file, start and end in seconds, its text without markup, and the speaker, if given."""

    number: int
    begin: float
    end: float
    text: str
    speaker: str | None


def parse_cues(lines: list[str], path: Path) -> Iterator[Cue | str]:
    """Yield each cue, or an error message in one line."""
    number = 0
    while number < len(lines):
        times = TIMES.match(lines[number])
        number += 1
        if times is None:
            continue
        first, spoken = number, []
        while number < len(lines) and lines[number] and not TIMES.match(lines[number]):
            spoken.append(lines[number])
            number += 1
        if spoken and number < len(lines) and lines[number] and spoken[-1].strip().isdecimal():
            spoken.pop()  # no blank line between this cue and the next one's number
        where = f"{path}, line {first}"
        begin, end = (_seconds(times[side]) for side in ("begin", "end"))
        if begin is None or end is None or end <= begin:
            yield f"{where}: {lines[first - 1].strip()!r} is not a time span. Correct or delete the cue."
            continue
        whole = " ".join(spoken)
        voice = VOICE.search(whole)
        text = " ".join(_unescaped(MARKUP.sub("", whole)).split())
        yield Cue(first, begin, end, text, voice[1].strip() if voice else None)


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # &# and thousands of digits
        return text


def _seconds(clock: str) -> float | None:
    parts = CLOCK.match(clock)
    if parts is None:
        return None
    hours, minutes, seconds, fraction = parts.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
