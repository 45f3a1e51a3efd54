"""Segment files of long recordings: subtitles, Audacity, Praat, ELAN and Whisper's TSV."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from focusasr.data.columns import to_seconds
from focusasr.data.corpus import CorpusItems, CorpusUtterance, Reject
from focusasr.data.csv_tables import first_line, read_lines
from focusasr.data.manifest import Utterance
from focusasr.data.subtitle_files import Cue, parse_cues
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import LONGEST_SECONDS

Cues = Iterator[Cue | str]
TIME = r"(?:\d+:){0,2}\d+(?:[.,]\d+)?"
LABEL = re.compile(  # with tabs as Audacity's, decimals with spaces, or in brackets as Whisper's programs print them
    rf"(?:({TIME})\t({TIME})(?:\t(.*))?|(\d+[.,]\d+) +(\d+[.,]\d+) +(.*)|\[({TIME}) --> ({TIME})\](.*))$"
)
MILLISECONDS = re.compile(r"start\tend\ttext$")
TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<!\S)<\w+>(?!\S)|(?<!\S)-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\S)')
PHONES = re.compile(r"(?<![a-z])(phones?|phonemes?)$", re.IGNORECASE)  # names of phone tiers
WORDS = re.compile(rf"words?$|{PHONES.pattern}", re.IGNORECASE)


def segments_of(audio: Path) -> Path | None:
    """Return the segment file with the name of a recording, if there is one."""
    for suffix in PARSERS:
        for form in dict.fromkeys((suffix, suffix.upper(), suffix.lower())):
            path = audio.with_suffix(form)
            if os.path.isfile(path) and (suffix not in SNIFFED or _has_times(path)):  # a long name is no file
                return path
    return None


def is_labels(path: Path) -> bool:
    """Return whether a file next to a recording holds segments and not plain text."""
    return path.suffix.lower() in SNIFFED and _has_times(path)


def _has_times(path: Path) -> bool:
    try:
        first = first_line(path).rstrip("\r\n")
    except InputError:
        return False
    return bool(LABEL.match(first) or MILLISECONDS.match(first))


def read_segments(audio: Path, path: Path, name: str) -> CorpusItems:
    """Yield the utterances of a recording; segments with impossible times, and a file without any, become rejects."""
    try:
        cues = list(cues_in(path))
    except InputError as error:
        yield Reject("unreadable text", str(error), audio)
        return
    texts: dict[tuple[float, float], set[str]] = {}
    for cue in cues:
        if isinstance(cue, Cue):
            texts.setdefault((cue.begin, cue.end), set()).add(cue.text)
    for cue in cues:
        if isinstance(cue, str):
            yield Reject("broken row", cue, audio)
            continue
        if len(texts[cue.begin, cue.end]) > 1:
            reason = f"{path}, line {cue.number}: another text has the same times. Keep one tier or language."
            yield Reject("several texts", reason, audio, cue.text)
            continue
        extra = {"speaker": cue.speaker} if cue.speaker else {}
        utterance = Utterance(audio, cue.text, cue.begin, round(cue.end - cue.begin, 3), extra)
        yield CorpusUtterance(utterance, name, f"{path}, line {cue.number}")
    if not cues:
        yield Reject("unreadable text", f"{path}: no segments with times in it", audio)


def cues_in(path: Path) -> Cues:
    """Yield each segment of a file, or an error message; InputError if it cannot be read."""
    lines = [line.rstrip("\r\n") for line in read_lines(path)]
    parse = next(parse for suffix, parse in PARSERS.items() if suffix.lower() == path.suffix.lower())
    for cue in parse(lines, path):
        if isinstance(cue, Cue) and not 0 <= cue.begin < cue.end <= LONGEST_SECONDS:
            times = f"{cue.begin:g} to {cue.end:g} s is not a time span"
            yield f"{path}, line {cue.number}: {times}. Correct or delete the segment."
        else:
            yield cue


def _labels(lines: list[str], path: Path) -> Cues:
    """Yield labels, BEGIN END TEXT in seconds (Audacity), or rows of Whisper's TSV in milliseconds."""
    scale = 0.001 if lines and MILLISECONDS.match(lines[0]) else 1.0
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\") or (number == 1 and scale != 1.0):  # \: frequencies
            continue
        parts = LABEL.match(line)
        if parts is None:
            yield f"{path}, line {number}: expected BEGIN<TAB>END<TAB>TEXT, got {line[:60]!r}. Correct the line."
            continue
        first, last, *text = [part for part in parts.groups() if part is not None]
        try:
            begin, end = (
                to_seconds(side, "the time", f"{path}, line {number}", scale) or 0.0 for side in (first, last)
            )
        except InputError as error:
            yield str(error)
            continue
        yield Cue(number, begin, end, "".join(text).strip(), None)


def _textgrid(lines: list[str], path: Path) -> Cues:
    """Yield the intervals of Praat's long and short text formats; a tier of words becomes one segment."""
    text = "\n".join(lines)
    tiers = _tiers(text, path)
    sentences = [(name, cues) for name, cues in tiers if cues and not WORDS.search(name)]
    if sentences:
        for name, cues in sentences:
            yield from (replace(cue, speaker=name) if len(sentences) > 1 else cue for cue in cues)
        return
    for words in [cues for name, cues in tiers if cues and not PHONES.search(name)]:
        whole = " ".join(cue.text for cue in words)
        yield Cue(words[0].number, words[0].begin, words[-1].end, whole, None)


def _tiers(text: str, path: Path) -> list[tuple[str, list[Cue]]]:
    """Return name and intervals with text of each tier; only free-standing values count, by Praat's rule."""
    tokens = iter([(match[0], text.count("\n", 0, match.start()) + 1) for match in TOKEN.finditer(text)])
    tiers = []
    try:
        opening = [next(tokens)[0] for _ in range(6)]  # file type, class, begin, end, <exists>, number of tiers
        if opening[1] != '"TextGrid"':
            raise ValueError
        for _ in range(int(opening[5])):
            kind, name, _, _, count = (next(tokens)[0] for _ in range(5))
            cues = []
            for _ in range(int(count)):
                times = [float(next(tokens)[0]) for _ in range(2 if kind == '"IntervalTier"' else 1)]
                label, number = next(tokens)
                cues.append(Cue(number, times[0], times[-1], _string(label), None))
            tiers.append((_string(name), [cue for cue in cues if cue.text] if kind == '"IntervalTier"' else []))
    except (StopIteration, RuntimeError, ValueError, OverflowError):
        raise InputError(f"{path}: not a whole TextGrid in a text format of Praat's. Save it as a text file.") from None
    return tiers


def _string(token: str) -> str:
    return " ".join(token[1:-1].replace('""', '"').split())


def _elan(lines: list[str], path: Path) -> Cues:
    """Yield the annotations of ELAN's tiers that have times of their own and depend on no other tier."""
    try:
        root = ElementTree.fromstring("\n".join(lines))
        slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: not an ELAN file ({error}). Save it again.") from None
    for tier in root.iter("TIER"):
        if tier.get("PARENT_REF"):
            continue
        speaker = tier.get("PARTICIPANT") or tier.get("TIER_ID")
        for number, one in enumerate(tier.iter("ALIGNABLE_ANNOTATION"), start=1):
            times = [slots.get(one.get(f"TIME_SLOT_REF{side}")) for side in (1, 2)]
            text = " ".join((one.findtext("ANNOTATION_VALUE") or "").split())
            if not all(time and time.isdecimal() and len(time) < 13 for time in times):
                yield f"{path}, {tier.get('TIER_ID')}, annotation {number}: no times. Align it in ELAN."
            elif text:
                begin, end = (int(time or 0) / 1000 for time in times)
                yield Cue(number, begin, end, text, speaker)


PARSERS: dict[str, Callable[[list[str], Path], Cues]] = {
    ".srt": parse_cues,
    ".vtt": parse_cues,
    ".TextGrid": _textgrid,
    ".eaf": _elan,
    ".txt": _labels,
    ".lab": _labels,
    ".tsv": _labels,
}
SNIFFED = (".txt", ".lab", ".tsv")  # may hold segments: checked by the first line
SEGMENT_SUFFIXES = tuple(suffix for suffix in PARSERS if suffix not in SNIFFED)
