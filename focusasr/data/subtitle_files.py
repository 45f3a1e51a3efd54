"""Subtitles beside long recordings: each cue of an SRT or WebVTT file becomes an utterance."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from focusasr.data.corpus import CorpusItems, CorpusUtterance, Reject
from focusasr.data.csv_tables import read_lines
from focusasr.data.manifest import Utterance
from focusasr.runtime.errors import InputError

SUBTITLE_SUFFIXES = (".srt", ".vtt")
TIMES = re.compile(r"^\s*(?P<begin>[\d:]+[.,]\d+)\s*-->\s*(?P<end>[\d:]+[.,]\d+)")
CLOCK = re.compile(r"^(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})$")
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Cue:
    """One cue: its line in the file, begin and end in seconds, its text without markup, and who speaks, if told."""

    number: int
    begin: float
    end: float
    text: str
    speaker: str | None


def subtitles_of(audio: Path) -> Path | None:
    """Return the subtitle file beside a recording, if there is one."""
    beside = (audio.with_suffix(form) for suffix in SUBTITLE_SUFFIXES for form in (suffix, suffix.upper()))
    return next((path for path in beside if path.is_file()), None)


def read_subtitles(audio: Path, path: Path, name: str) -> CorpusItems:
    """Yield the utterances of a recording; a cue whose times cannot be, and a file that is none, become rejects."""
    try:
        lines = [line.rstrip("\r\n") for line in read_lines(path)]
    except InputError as error:
        yield Reject("unreadable text", str(error), audio)
        return
    count = 0
    for cue in parse_cues(lines, path):
        count += 1
        if isinstance(cue, str):
            yield Reject("broken row", cue, audio)
            continue
        extra = {"speaker": cue.speaker} if cue.speaker else {}
        utterance = Utterance(audio, cue.text, cue.begin, round(cue.end - cue.begin, 3), extra)
        yield CorpusUtterance(utterance, name, f"{path}, line {cue.number}")
    if not count:
        yield Reject("unreadable text", f"{path}: no cues in it (00:00:01,000 --> 00:00:02,000)", audio)


def parse_cues(lines: list[str], path: Path) -> Iterator[Cue | str]:
    """Yield each cue, or in one line what is wrong with it."""
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
            spoken.pop()  # no blank line parts this cue from the next one's number
        where = f"{path}, line {first}"
        begin, end = (_seconds(times[side]) for side in ("begin", "end"))
        if begin is None or end is None or end <= begin:
            yield f"{where}: {lines[first - 1].strip()!r} is no stretch of time; correct or delete the cue"
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
