"""Readers of text files: JSON Lines, PATH<TAB>TEXT, Kaldi, trn, STM, CTM, subtitles, plain lines.

The format of a file follows from its name and its tabs:

    rows.jsonl, rows.json   objects with `hypothesis`, `pred_text` or `text`, found by `audio_filepath` or `id`
    x.trn                   sclite's: the words, the id in brackets
    x.stm, x.ctm            NIST's: segments with texts, words with times
    x.srt, x.TextGrid ...   segments with times, joined to one text
    text (no suffix)        Kaldi's: an id, a space, the words
    any name, a tab a line  the output of `focusasr transcribe` for several files
    else                    one text per line, in the order of the references; or as Kaldi's, if each starts with an id
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from focusasr.audio.source import AUDIO_SUFFIXES
from focusasr.data.csv_tables import read_lines
from focusasr.data.json_rows import read_objects
from focusasr.data.manifest import channel_of
from focusasr.data.nist_files import parse_ctm, parse_stm
from focusasr.data.segment_files import SEGMENT_SUFFIXES, cues_in, is_labels
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.settings import LARGEST

JSON_SUFFIXES = frozenset((".jsonl", ".json"))
TEXT_KEYS = ("hypothesis", "pred_text", "text")
REFERENCE_KEYS = ("reference", "text")
IGNORED = "ignored"  # key of an ignored STM segment
TRN = re.compile(r"^(?P<text>.*?)\s*\((?P<key>[^()\s]+)\)\s*$")
ID = re.compile(r"(?=\S*\d)(?:[^\W\d_]+[\w.:/-]*|[\w.:/]+[-_][\w.:/-]*)(?<![.:/])")


@dataclass(frozen=True)
class Line:
    """One line: its number from 1, its text (None: no transcript), and its names, if any.

    `offset` and `duration` distinguish segments of one recording, in seconds. `extra` has a JSON line's other keys.
    """

    number: int
    text: str | None
    names: tuple[str, ...] = ()
    offset: float = 0.0
    duration: float | None = None
    extra: dict[str, Any] | None = None

    @property
    def channel(self) -> int | None:
        """The side of the call, None if unknown."""
        return channel_of(self.extra or {})


def is_id(head: str) -> bool:
    """Return whether the first word of a line looks like a file or an id (letters then digits, or joined by _ or -)."""
    return ID.fullmatch(head) is not None or PurePath(head).suffix.lower() in AUDIO_SUFFIXES


def begin_with_ids(heads: Sequence[str]) -> bool:
    """Return whether the first words of several lines are all ids: distinct, or numbers of one width."""
    if len(heads) < 2 or len(set(heads)) < len(heads):
        return False
    widths = {len(head) if head.isdecimal() else 0 for head in heads}
    return all(map(is_id, heads)) or (len(widths) == 1 and min(widths) >= 4)


def head_of(text: str) -> tuple[str, str]:
    """Return the first word of a text, and the rest."""
    head, _, rest = text.strip().partition(" ")
    return head, rest.strip()


def keyed(lines: Sequence[Line]) -> list[Line]:
    """Return plain lines with their first words as ids."""
    heads = [head_of(line.text or "") for line in lines]
    return [Line(line.number, words, (key,)) for line, (key, words) in zip(lines, heads, strict=True)]


def lines_of(path: Path, keys: tuple[str, ...]) -> list[Line]:
    """Return the lines of a text file, including empty lines of plain text; InputError for an invalid file."""
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return list(_json_lines(path, keys))
    texts = [line.rstrip("\r\n") for line in read_lines(path)]
    if suffix == ".csv":
        raise InputError(f"{path}: CSV is ambiguous for names and texts. Write PATH<TAB>TEXT lines or JSON Lines.")
    if suffix in FORMS:
        return list(FORMS[suffix](path, texts))
    if is_labels(path):
        return list(_joined(path, texts))
    if path.name == "text":
        split = ((number, [*text.split(maxsplit=1), ""]) for number, text in enumerate(texts, 1) if text.strip())
        return [Line(number, words.strip(), (key,)) for number, (key, words, *_) in split]
    if any("\t" in text for text in texts):
        return [_tabbed(path, number, text) for number, text in enumerate(texts, 1) if text.strip()]
    return [Line(number, text) for number, text in enumerate(texts, 1)]  # an empty line is an empty text


def _tabbed(path: Path, number: int, text: str) -> Line:
    """Return a line of a name, a tab and a text; a name without a tab has an empty text."""
    name, tab, words = text.partition("\t")
    if not tab and " " in text.strip():
        raise InputError(f"{path}, line {number}: no tab after the name, unlike other lines. Correct the line.")
    return Line(number, words, (name.strip(),))


def _trn_lines(path: Path, texts: list[str]) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if text.strip() and not text.startswith(";;"):
            parts = TRN.match(text)
            if parts is None:
                raise InputError(f"{path}, line {number}: no id in brackets at the end, got {text[:60]!r}")
            yield Line(number, parts["text"], (parts["key"],))


def _json_lines(path: Path, keys: tuple[str, ...]) -> Iterator[Line]:
    for number, (where, row) in enumerate(read_objects(path), start=1):
        if isinstance(row, str):
            raise InputError(f"{where}: {row}")
        key = next((key for key in keys if key in row), None)
        if key is None or not (row[key] is None or isinstance(row[key], str)):
            raise InputError(f"{where}: expected an object with a text under {' or '.join(keys)}")
        named = tuple(str(row[name]) for name in ("audio_filepath", "id") if row.get(name) not in (None, ""))
        offset, duration = _seconds(row.get("offset") or 0.0), _seconds(row.get("duration"))
        if offset is None:
            raise InputError(f"{where}: offset must be seconds, got {quote(row['offset'])}")
        dropped = {"audio_filepath", "offset", "duration", *TEXT_KEYS, *REFERENCE_KEYS}
        extra = {name: value for name, value in row.items() if name not in dropped}
        yield Line(number, row[key], named, offset, duration, extra)


def _seconds(value: Any) -> float | None:
    """Return a number of seconds, None for any other value."""
    return value if isinstance(value, (int, float)) and abs(value) <= LARGEST else None


def _stm_lines(path: Path, texts: list[str]) -> Iterator[Line]:
    for line in parse_stm(texts, path):
        if isinstance(line, str):
            raise InputError(line)
        known = {"speaker": line.speaker, "channel": line.channel, IGNORED: line.is_ignored or None}
        extra = {name: value for name, value in known.items() if value is not None}
        text = "" if line.is_ignored else line.text
        yield Line(line.number, text, (line.name,), line.begin, round(line.end - line.begin, 6), extra)


def _ctm_lines(path: Path, texts: list[str]) -> Iterator[Line]:
    """Yield the words of each recording, or side of one, as one text."""
    spoken: dict[tuple[str, int | None], list[tuple[float, str]]] = {}
    for word in parse_ctm(texts, path):
        spoken.setdefault((word.name, word.channel), []).append((word.begin, word.text))
    for number, ((name, channel), words) in enumerate(spoken.items(), start=1):
        extra = {} if channel is None else {"channel": channel}
        yield Line(number, " ".join(word for _, word in sorted(words, key=lambda pair: pair[0])), (name,), extra=extra)


def _joined(path: Path, texts: list[str]) -> Iterator[Line]:
    cues = list(cues_in(path))
    for cue in cues:
        if isinstance(cue, str):
            raise InputError(cue)
    yield Line(1, " ".join(cue.text for cue in cues if not isinstance(cue, str)))


FORMS: dict[str, Callable[[Path, list[str]], Iterator[Line]]] = {
    ".trn": _trn_lines,
    ".stm": _stm_lines,
    ".ctm": _ctm_lines,
    **{suffix.lower(): _joined for suffix in SEGMENT_SUFFIXES},
}
