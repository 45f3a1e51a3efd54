"""Texts that someone else heard or said: JSON Lines, PATH<TAB>TEXT, Kaldi's text, sclite's trn, plain lines.

Which form a file has follows from its name and its tabs:

    rows.jsonl, rows.json   objects with `hypothesis`, `pred_text` or `text`, found by `audio_filepath` or `id`
    any name, a tab a line  what `focusasr transcribe` prints for several files
    text (no suffix)        Kaldi's: an id, a space, the words
    x.trn                   sclite's: the words, the id in brackets
    else                    a text a line, in the order of the references; or as Kaldi's, where each begins with an id
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from focusasr.audio.source import AUDIO_SUFFIXES
from focusasr.data.csv_tables import read_lines
from focusasr.data.manifest import Utterance, channel_of
from focusasr.runtime.console import pluralize, warn
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.files import real_path
from focusasr.runtime.settings import LARGEST, parse_json

JSON_SUFFIXES = frozenset((".jsonl", ".json"))
TEXT_KEYS = ("hypothesis", "pred_text", "text")
REFERENCE_KEYS = ("reference", "text")
CLOSE_SECONDS = 0.02  # durations of one part, as different tools write them
Index = dict[tuple[str, float], list["Line"]]  # by a name, and where in the recording it begins
TRN = re.compile(r"^(?P<text>.*?)\s*\((?P<key>[^()\s]+)\)\s*$")


@dataclass(frozen=True)
class Line:
    """One line: its number from 1, its text (None: nothing could be heard), and the names it goes by, if any.

    `offset` and `duration` tell parts of one recording apart, in seconds. `extra` holds a JSON line's other keys.
    """

    number: int
    text: str | None
    names: tuple[str, ...] = ()
    offset: float = 0.0
    duration: float | None = None
    extra: dict[str, Any] | None = None

    @property
    def channel(self) -> int | None:
        """Return the side of a call that it is of, None where it tells none."""
        return channel_of(self.extra or {})


def read_references(path: Path) -> list[Utterance]:
    """Return the utterances of a file of reference texts without sound; InputError where it holds none.

    They are called by the names in the file, or by its name and the line.
    """
    utterances = []
    for line in _lines(path, REFERENCE_KEYS):
        name = line.names[0] if line.names else f"{path.name}:{line.number}"
        extra = dict(line.extra or {}) | ({"id": name} if line.names else {})
        utterances.append(Utterance(Path(name), line.text or "", line.offset, line.duration, extra))
    if not utterances:
        raise InputError(f"{path}: no references in it; wanted: at least one line of text")
    return utterances


def read_hypotheses(path: Path, utterances: Sequence[Utterance]) -> list[str | None]:
    """Return the text that a file has for each utterance, None where it has none.

    A line finds its utterance by the path (as written, or from the folder of `path`), the `id`, the file's name or its
    stem, and the offset, and by the duration where parts begin together; where none does, by the stem of a recording
    with another suffix. Lines without names go with the utterances in order. InputError where the file cannot be read,
    has another number of such lines, two texts for one utterance, or none that fits any.
    """
    lines = _with_ids(_lines(path, TEXT_KEYS), path, utterances)
    if not any(line.names for line in lines):
        if len(lines) != len(utterances):
            counts = f"{pluralize(len(lines), 'line')} for {pluralize(len(utterances), 'utterance')}"
            raise InputError(f"{path}: {counts}; wanted: one line each, in order, or lines that name their utterance")
        return [line.text for line in lines]
    index, unclear = _by_name(path, lines), _unclear(utterances)
    found = [_lines_of(one, index, unclear, path) for one in utterances]
    if not any(found) and any(again := _converted(lines, utterances)):
        one, line = next((one, line) for one, line in zip(utterances, again, strict=True) if line)
        warn(f"focusasr: {path}: found by names without their suffix, such as {line.names[0]} for {one.audio}")
        return [line.text if line else None for line in again]
    if not any(found):
        wanted = utterances[0].audio if utterances else "an utterance"
        raise InputError(f"{path}: no line is of an utterance to evaluate, such as {wanted}; is it of another set?")
    return [_text_of(one, lines) for one, lines in zip(utterances, found, strict=True)]


def _with_ids(lines: list[Line], path: Path, utterances: Sequence[Utterance]) -> list[Line]:
    """Return plain lines as Kaldi's, of an id and words, where each begins with the id of another utterance.

    Where the references are plain lines too, and both begin alike, as if with ids, that is only said.
    """
    heads = [_head(line.text or "") for line in lines]
    first, own = {head for head, _ in heads}, {_head(one.text)[0] for one in utterances}
    if any(line.names for line in lines) or len(first | {""}) <= len(lines) or not any(words for _, words in heads):
        return lines
    ids = {str(one.extra["id"]) for one in utterances if "id" in one.extra}
    if first <= ids and not first <= own:
        warn(f"focusasr: {path}: lines begin with ids, {heads[0][0]} and so on, which are not taken for words")
        return [Line(line.number, words, (key,)) for line, (key, words) in zip(lines, heads, strict=True)]
    if len(lines) > 1 and first == own and all(re.search(r"[\d_-]", head) for head in first):
        warn(
            f"focusasr: {path}: lines begin as the references', {heads[0][0]} and so on; if with ids, name both 'text'"
        )
    return lines


def _head(text: str) -> tuple[str, str]:
    """Return the first word of a text, and the rest."""
    head, _, rest = text.strip().partition(" ")
    return head, rest.strip()


def _lines_of(utterance: Utterance, index: Index, unclear: set[tuple[str, float]], path: Path) -> list[Line]:
    """Return the lines under the surest name that any is under; InputError where two texts share all of it.

    A name that two of them share, while another (an id) tells them apart, is none.
    """
    clash = ""
    for name, offset, is_id in _keys(utterance, unclear):
        lines = _of_side(index.get((name, offset), []), utterance.channel, is_id)
        texts: dict[float | None, Line] = {}
        for line in lines:
            other = texts.setdefault(_rounded(line.duration), line)
            if other.text != line.text:
                clash = clash or f"{path}, lines {other.number} and {line.number}: two texts for {name}; keep one"
                if other.names[1:] == line.names[1:]:
                    raise InputError(clash)
                break
        else:
            if lines:
                return lines
    if clash:
        raise InputError(clash)
    return []


def _of_side(lines: list[Line], channel: int | None, is_id: bool = False) -> list[Line]:
    """Return the lines of one side of a recording, or else those that tell none; an id is of one side alone."""
    for side in (channel, None):
        if own := [line for line in lines if line.channel == side]:
            return own
    return lines if channel is None or is_id else []


def _text_of(utterance: Utterance, lines: list[Line]) -> str | None:
    """Return the text that all lines have, or that of the one which lasts as long as the utterance."""
    texts = {line.text for line in lines}
    if len(texts) <= 1:
        return next(iter(texts), None)
    line = min(lines, key=lambda line: _apart(line.duration, utterance.duration))
    return line.text if _apart(line.duration, utterance.duration) <= CLOSE_SECONDS else None


def _apart(one: float | None, other: float | None) -> float:
    """Return the seconds between two durations; None, up to the recording's end, is far from all others."""
    return abs(one - other) if one is not None and other is not None else 0.0 if one is other else math.inf


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _by_name(path: Path, lines: Sequence[Line]) -> Index:
    """Return the lines under all their names, paths also from the folder of `path`."""
    index: Index = defaultdict(list)
    for line in lines:
        full = [real_path(folder / name) for name in line.names for folder in (path.parent, Path())]
        for name in dict.fromkeys([*line.names, *full]):
            index[name, round(line.offset, 3)].append(line)
    return index


def _converted(lines: Sequence[Line], utterances: Sequence[Utterance]) -> list[Line | None]:
    """Return the line of each utterance whose recording went by another suffix: u1.wav became u1.flac.

    The stem has to be that of one recording alone on both sides, and of one text.
    """
    index: Index = defaultdict(list)
    for line in lines:
        for name in line.names:
            if PurePath(name).suffix.lower() in AUDIO_SUFFIXES:
                index[PurePath(name).stem, round(line.offset, 3)].append(line)
    unclear, found = _unclear(utterances), list[Line | None]()
    for one in utterances:
        key = one.audio.stem, round(one.offset, 3)
        named = [] if key in unclear else _of_side(index[key], one.channel)
        alone = len({line.names[0] for line in named}) == 1 == len({line.text for line in named})
        other = alone and PurePath(named[0].names[0]).suffix.lower() != one.audio.suffix.lower()
        found.append(named[0] if other else None)
    return found


def _unclear(utterances: Sequence[Utterance]) -> set[tuple[str, float]]:
    """Return the file names and stems that parts of different files have, or that are ids: they name no file."""
    files: dict[tuple[str, float], set[str]] = defaultdict(set)
    for one in utterances:
        for name in (one.audio.name, one.audio.stem):
            files[name, round(one.offset, 3)].add(real_path(one.audio))
    ids = {(str(one.extra["id"]), round(one.offset, 3)) for one in utterances if "id" in one.extra}
    return ids | {key for key, several in files.items() if len(several) > 1}


def _keys(utterance: Utterance, unclear: set[tuple[str, float]]) -> list[tuple[str, float, bool]]:
    """Return what a line may call an utterance, the surest first, where that begins, and whether it is an id."""
    key = utterance.extra.get("id")
    audio, offset = utterance.audio, round(utterance.offset, 3)
    own = [] if key is None else [str(key)]
    bare = [name for name in (audio.name, audio.stem) if (name, offset) not in unclear]
    named = [(real_path(audio), False), (str(audio), False), *((name, True) for name in own)]
    keys = [(name, offset, is_id) for name, is_id in [*named, *((name, False) for name in bare)]]
    return keys + ([(name, 0.0, True) for name in own] if offset else [])


def _lines(path: Path, keys: tuple[str, ...]) -> list[Line]:
    texts = [line.rstrip("\r\n") for line in read_lines(path)]
    if path.suffix.lower() in JSON_SUFFIXES:
        return list(_json_lines(path, texts, keys))
    if path.suffix.lower() == ".csv":
        raise InputError(f"{path}: commas part names and texts in many ways; write PATH<TAB>TEXT lines or JSON Lines")
    if path.suffix.lower() == ".trn":
        return list(_trn_lines(path, texts))
    if path.name == "text":
        split = ((number, [*text.split(maxsplit=1), ""]) for number, text in enumerate(texts, 1) if text.strip())
        return [Line(number, words.strip(), (key,)) for number, (key, words, *_) in split]
    if any("\t" in text for text in texts):
        return [_tabbed(path, number, text) for number, text in enumerate(texts, 1) if text.strip()]
    return [Line(number, text) for number, text in enumerate(texts, 1)]  # an empty line is an empty text


def _tabbed(path: Path, number: int, text: str) -> Line:
    """Return a line of a name, a tab and a text; a name alone has lost its tab to an editor, and its text is empty."""
    name, tab, words = text.partition("\t")
    if not tab and " " in text.strip():
        raise InputError(f"{path}, line {number}: no tab, where other lines have one behind the name; correct the line")
    return Line(number, words, (name.strip(),))


def _trn_lines(path: Path, texts: list[str]) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if text.strip() and not text.startswith(";;"):
            parts = TRN.match(text)
            if parts is None:
                raise InputError(f"{path}, line {number}: no id in brackets at the end, got {text[:60]!r}")
            yield Line(number, parts["text"], (parts["key"],))


def _json_lines(path: Path, texts: list[str], keys: tuple[str, ...]) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(text)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}); correct or delete the line") from None
        key = next((key for key in keys if isinstance(row, dict) and key in row), None)
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
    """Return a number of seconds, None where the value is none."""
    return value if isinstance(value, (int, float)) and abs(value) <= LARGEST else None
