"""Manifests: JSON Lines, one utterance per line, with NeMo's keys."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focusasr.audio.source import Source
from focusasr.runtime.errors import InputError, UsageError, quote
from focusasr.runtime.files import write_lines
from focusasr.runtime.settings import LONGEST_SECONDS, parse_json

KEYS = ("audio_filepath", "text")
OWN_KEYS = (*KEYS, "offset", "duration")


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest: a part of an audio file and its transcript.

    `offset` and `duration` are seconds; `duration` None means to the end of the file. `extra` holds every key that is
    not a field here (such as `speaker`, `language`, `id`), unchanged.
    """

    audio: Path
    text: str = ""
    offset: float = 0.0
    duration: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """Return the value of `language`, None if it is not a string."""
        named = self.extra.get("language")
        return named if isinstance(named, str) else None

    @property
    def channel(self) -> int | None:
        """Return the value of `channel`, counted from 0; None if it is not a valid number."""
        return channel_of(self.extra)

    @property
    def source(self) -> Source:
        """Return the source: a part of a recording, or of one of its channels."""
        return Source(str(self.audio), self.offset, self.duration, self.channel)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the manifest's keys and values, with a path relative to `folder` if it is inside."""
        inside = self.audio.is_relative_to(folder)
        path = self.audio.relative_to(folder) if inside else self.audio
        row: dict[str, Any] = {"audio_filepath": path.as_posix()}
        if self.offset:
            row["offset"] = self.offset
        if self.duration is not None:
            row["duration"] = self.duration
        return {**row, "text": self.text, **self.extra}


def channel_of(row: dict[str, Any]) -> int | None:
    """Return the value of `channel` in a line or table row, None if it is not a number from 0 to 99999."""
    named = row.get("channel")
    told = str(named).strip() if isinstance(named, (int, str)) and not isinstance(named, bool) else ""
    return int(told) if told.isdecimal() and len(told) < 6 else None


def read_manifest(path: Path, on_bad_line: Callable[[str], object] | None = None) -> list[Utterance]:
    """Read every utterance of a manifest; bad lines are passed to `on_bad_line` and skipped, else InputError.

    Audio files are not opened: loading them reports errors one by one.
    """
    return [utterance for _, utterance in read_utterances(path, on_bad_line)]


def read_utterances(
    path: Path, on_bad_line: Callable[[str], object] | None = None, text_required: bool = True
) -> Iterator[tuple[int, Utterance]]:
    """Yield (line number, utterance) of a manifest, as `read_manifest` reads them."""
    for number, line in numbered_lines(path):
        try:
            utterance = parse_line(line, number, path, text_required)
        except InputError as error:
            if on_bad_line is None:
                raise
            on_bad_line(str(error))
        else:
            yield number, utterance


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of every line that is not blank; InputError if the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such manifest. Check the path, or make one with 'focusasr preprocess'.") from None
    except IsADirectoryError:
        inside = sorted(file.name for file in path.glob("[!.]*.jsonl") if file.name != "rejects.jsonl")
        made = f"name one in it: {', '.join(inside)}" if inside else "make one of it with 'focusasr preprocess'"
        raise UsageError(f"{path}: is a folder, not a manifest; {made}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no manifest (not text in UTF-8). Make one with 'focusasr preprocess'.") from None
    lines = text.split("\n")
    yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def parse_line(line: str, number: int, path: Path, text_required: bool = True) -> Utterance:
    """Return the utterance on one line of the manifest at `path`; InputError if the line is invalid."""
    where = f"{path}, line {number}"
    audio_key, text_key = KEYS
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        listed = line.lstrip().startswith("[")
        remedy = "Write an object per line, no list around them." if listed else "Correct or delete the line."
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno}). {remedy}") from None
    except ValueError as error:
        raise InputError(f"{where}: not a flat JSON object ({error}). Correct or delete the line.") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with {audio_key} and {text_key}, got {type(row).__name__}")
    extra = dict(row)
    audio = extra.pop(audio_key, None)
    if not isinstance(audio, str) or not can_name(audio):
        raise InputError(f"{where}: {audio_key} must name a file, got {quote(audio)}")
    untold = text_key not in extra
    text = extra.pop(text_key, "")
    if not isinstance(text, str) or not is_unicode(text):
        raise InputError(f"{where}: {text_key} must be a string of whole characters, got {quote(text)}")
    offset = _seconds(extra.pop("offset", 0.0), "offset", where) or 0.0
    duration = _seconds(extra.pop("duration", None), "duration", where)
    if untold and text_required:
        raise InputError(f"{where}: {text_key} is missing. Write the transcript, or an empty text for silence.")
    return Utterance((path.parent / audio).absolute(), text, offset, duration, extra)


def can_name(text: str) -> bool:
    """Return whether a string can be a file name: non-UTF-8 bytes can on some systems, lone surrogates cannot."""
    with contextlib.suppress(UnicodeEncodeError):
        return bool(text) and b"\0" not in os.fsencode(text)
    return False


def is_unicode(text: str) -> bool:
    """Return whether a string has no lone surrogates, which JSON allows but no encoding does."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _seconds(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= LONGEST_SECONDS:
        raise InputError(f"{where}: {key} must be seconds, a number from 0 to {LONGEST_SECONDS:g}, got {quote(value)}")
    return float(value)


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write utterances as JSON Lines, UTF-8, atomically."""
    folder = path.parent.absolute()
    write_lines(path, (utterance.to_json(folder) for utterance in utterances))
