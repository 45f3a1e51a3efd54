"""Hypotheses and references from files, matched to utterances."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from focusasr.audio.source import AUDIO_SUFFIXES
from focusasr.data.csv_tables import read_lines
from focusasr.data.manifest import Utterance
from focusasr.data.nist_files import TimedText, parse_ctm
from focusasr.evaluation.text_files import (
    IGNORED,
    REFERENCE_KEYS,
    TEXT_KEYS,
    Line,
    begin_with_ids,
    head_of,
    keyed,
    lines_of,
)
from focusasr.runtime.console import pluralize, warn
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import real_path

CLOSE_SECONDS = 0.02  # between durations of one segment in files of different tools
MOST_COMPARED = 200  # lines compared to detect another order
Index = dict[tuple[str, float], list[Line]]  # keyed by name and begin within the recording


def read_references(path: Path) -> list[Utterance]:
    """Return the utterances of a file of reference texts without audio; InputError if it is empty.

    They are named by the names in the file, or by its name and the line.
    """
    utterances = []
    lines = lines_of(path, REFERENCE_KEYS)
    heads = [head_of(line.text or "")[0] for line in lines]
    if not any(line.names for line in lines) and begin_with_ids(heads):
        lines = keyed(lines)
        warn(f"focusasr: {path}: lines begin with ids, {heads[0]} and so on, which are not taken for words")
    for line in lines:
        name = line.names[0] if line.names else f"{path.name}:{line.number}"
        extra = dict(line.extra or {}) | ({"id": name} if line.names and line.duration is None else {})
        utterances.append(Utterance(Path(name), line.text or "", line.offset, line.duration, extra))
    if not utterances:
        raise InputError(f"{path}: no references in it; expected: at least one line of text")
    return utterances


def read_hypotheses(path: Path, utterances: Sequence[Utterance]) -> list[str | None]:
    """Return the text in a file for each utterance, None if it has none.

    A line is matched by the path (as written, or from the folder of `path`), the `id`, the file name or its stem, and
    the offset, and by the duration if several segments start together; otherwise by the stem of a recording with
    another suffix. Lines without names are matched in order. InputError if the file cannot be read, has another number
    of such lines, has two texts for one utterance, or matches none.
    """
    if path.suffix.lower() == ".ctm":
        return _spoken_in(path, utterances)
    lines = _with_ids(lines_of(path, TEXT_KEYS), path, utterances)
    if not any(line.names for line in lines):
        if len(lines) != len(utterances):
            counts = f"{pluralize(len(lines), 'line')} for {pluralize(len(utterances), 'utterance')}"
            raise InputError(f"{path}: {counts}; expected: one line each, in order, or lines that name their utterance")
        _check_order(path, lines, utterances)
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
    used = {line.number for named in found for line in named}
    if 2 * len(used) < len(lines) and 2 * sum(map(bool, found)) < len(utterances):
        fit = f"only {len(used)} of {len(lines)} lines are of one of the {len(utterances)} utterances to evaluate"
        raise InputError(f"{path}: {fit}; is it of another set?")
    return [_text_of(one, lines) for one, lines in zip(utterances, found, strict=True)]


def _with_ids(lines: list[Line], path: Path, utterances: Sequence[Utterance]) -> list[Line]:
    """Return plain lines as Kaldi's, of an id and words, if each starts with the name of another utterance.

    InputError if they start with unknown ids. If the references are plain lines too, and both start alike, as if with
    ids, only a warning is printed.
    """
    heads = [head_of(line.text or "") for line in lines]
    first, own = {head for head, _ in heads}, {head_of(one.text)[0] for one in utterances}
    if any(line.names for line in lines) or len(first | {""}) <= len(lines) or not any(words for _, words in heads):
        return lines
    names = {name for one in utterances for name in (str(one.audio), one.audio.name, one.audio.stem)}
    names |= {str(one.extra["id"]) for one in utterances if "id" in one.extra}
    are_ids = begin_with_ids([head for head, _ in heads]) and not begin_with_ids(sorted(own))
    if not first <= own and (first <= names or (are_ids and first & names)):
        warn(f"focusasr: {path}: lines begin with ids, {heads[0][0]} and so on, which are not taken for words")
        return keyed(lines)
    if are_ids and utterances:
        other = utterances[0].extra.get("id", utterances[0].audio)
        raise InputError(
            f"{path}: lines begin with ids, such as {heads[0][0]}, that are of no utterance to evaluate, such as "
            f"{other}; is it of another set?"
        )
    if len(lines) > 1 and first == own and all(re.search(r"[\d_-]", head) for head in first):
        warn(
            f"focusasr: {path}: lines begin as the references', {heads[0][0]} and so on; if with ids, name both 'text'"
        )
    return lines


def _check_order(path: Path, lines: Sequence[Line], utterances: Sequence[Utterance]) -> None:
    """Reject plain lines in another order than the references: few fit their own, most fit another."""
    written = [set(one.text.casefold().split()) for one in utterances[:MOST_COMPARED]]
    found = [set((line.text or "").casefold().split()) for line in lines[:MOST_COMPARED]]
    own = [_shared(*pair) for pair in zip(written, found, strict=True)]
    if len(own) < 3 or sum(own) > 0.25 * len(own):
        return
    best = [max(range(len(written)), key=lambda place: _shared(written[place], words)) for words in found]
    fit = sum(_shared(written[place], words) for place, words in zip(best, found, strict=True))
    if min(fit, len(set(best))) > 0.75 * len(own):  # except for a system that writes one text for all
        place = next(place for place, other in enumerate(best) if place != other)
        raise InputError(
            f"{path}: its lines are in another order than the references: line {place + 1} fits number "
            f"{best[place] + 1}; sort them, or begin the lines of both with ids"
        )


def _shared(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(len(one), len(other), 1)


def is_ignored(utterance: Utterance) -> bool:
    """Return whether a reference only marks ignored time, as in STM."""
    return utterance.extra.get(IGNORED) is True


def _spoken_in(path: Path, utterances: Sequence[Utterance]) -> list[str | None]:
    """Return the words of a CTM file in each utterance: of its id, or of its recording between begin and end.

    A word belongs to the segment that contains its middle, or else to the nearest one.
    """
    words: dict[str, list[TimedText]] = defaultdict(list)
    for word in parse_ctm([line.rstrip("\r\n") for line in read_lines(path)], path):
        words[word.name].append(word)
    homes: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(utterances):
        names = (str(one.extra.get("id", "")), str(one.audio), one.audio.name, one.audio.stem)
        if name := next((name for name in names if name in words), None):
            homes[name].append(place)
    if not homes:
        raise InputError(f"{path}: no word is of an utterance to evaluate, such as {utterances[0].audio}; other names?")
    found: dict[int, list[TimedText]] = {place: [] for places in homes.values() for place in places}
    for name, places in homes.items():
        for word in words[name]:
            if fitting := [place for place in places if _same_side(utterances[place], word)]:
                found[min(fitting, key=lambda place: _distance(utterances[place], word))].append(word)
    texts = {
        place: " ".join(word.text for word in sorted(own, key=lambda word: word.begin)) for place, own in found.items()
    }
    return [texts.get(place) for place in range(len(utterances))]


def _same_side(utterance: Utterance, word: TimedText) -> bool:
    return None in (utterance.channel, word.channel) or utterance.channel == word.channel


def _distance(utterance: Utterance, word: TimedText) -> float:
    """Return the seconds between the middle of a word and an utterance, 0 inside."""
    middle = (word.begin + word.end) / 2
    end = math.inf if utterance.duration is None else utterance.offset + utterance.duration
    return max(utterance.offset - middle, middle - end, 0.0)


def _lines_of(utterance: Utterance, index: Index, unclear: set[tuple[str, float]], path: Path) -> list[Line]:
    """Return the lines under the most reliable name with any; InputError if two texts share all names.

    A name that two texts share is skipped if another (an id) distinguishes them.
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
    """Return the lines of one side of a call, or else those without a side; an id is of one side only."""
    for side in (channel, None):
        if own := [line for line in lines if line.channel == side]:
            return own
    return lines if channel is None or is_id else []


def _text_of(utterance: Utterance, lines: list[Line]) -> str | None:
    """Return the text that all lines share, or that of the line with the utterance's duration."""
    texts = {line.text for line in lines}
    if len(texts) <= 1:
        return next(iter(texts), None)
    line = min(lines, key=lambda line: _apart(line.duration, utterance.duration))
    return line.text if _apart(line.duration, utterance.duration) <= CLOSE_SECONDS else None


def _apart(one: float | None, other: float | None) -> float:
    """Return the difference of two durations in seconds; None, up to the recording's end, is far from all others."""
    return abs(one - other) if one is not None and other is not None else 0.0 if one is other else math.inf


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _by_name(path: Path, lines: Sequence[Line]) -> Index:
    """Return the lines under all their names, including paths from the folder of `path`."""
    index: Index = defaultdict(list)
    for line in lines:
        full = [real_path(folder / name) for name in line.names for folder in (path.parent, Path())]
        for name in dict.fromkeys([*line.names, *full]):
            index[name, round(line.offset, 3)].append(line)
    return index


def _converted(lines: Sequence[Line], utterances: Sequence[Utterance]) -> list[Line | None]:
    """Return the line of each utterance whose recording has another suffix there: u1.wav became u1.flac.

    The stem must be unique among the recordings of both sides, and have one text.
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
    """Return ambiguous file names and stems: those of segments of different files, or those that are ids."""
    files: dict[tuple[str, float], set[str]] = defaultdict(set)
    for one in utterances:
        for name in (one.audio.name, one.audio.stem):
            files[name, round(one.offset, 3)].add(real_path(one.audio))
    ids = {(str(one.extra["id"]), round(one.offset, 3)) for one in utterances if "id" in one.extra}
    return ids | {key for key, several in files.items() if len(several) > 1}


def _keys(utterance: Utterance, unclear: set[tuple[str, float]]) -> list[tuple[str, float, bool]]:
    """Return the names of an utterance, the most reliable first, each with its begin and whether it is an id."""
    key = utterance.extra.get("id")
    audio, offset = utterance.audio, round(utterance.offset, 3)
    own = [] if key is None else [str(key)]
    bare = [name for name in (audio.name, audio.stem) if (name, offset) not in unclear]
    named = [(real_path(audio), False), (str(audio), False), *((name, True) for name in own)]
    keys = [(name, offset, is_id) for name, is_id in [*named, *((name, False) for name in bare)]]
    return keys + ([(name, 0.0, True) for name in own] if offset else [])
