"""Usual names of columns and keys in corpora, and their roles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.settings import LONGEST_SECONDS

# Case, spaces and marks are ignored; the first name found in a table is used.
NAMES: dict[str, list[str]] = {
    "audio": (
        "audio_filepath path file audio filename wav audio_file wav_filename audio_path wav_path audio_filename "
        "file_path"
    ).split(),
    "text": "text sentence transcript transcription txt wrd words".split(),
    "speaker": "speaker speaker_id spk spk_id client_id".split(),
    "language": "language lang locale".split(),
    "id": "id utterance_id utt_id key".split(),
    "split": ["split"],
    "channel": ["channel"],
    "start": "offset start begin start_time begin_time onset segment_start".split(),
    "end": "end end_time stop stop_time segment_end".split(),
    "duration": "duration dur".split(),
}
TIMES = ("start", "end", "duration")
UNITS = {"milliseconds": 0.001, "millis": 0.001, "msec": 0.001, "ms": 0.001, "seconds": 1.0, "secs": 1.0, "sec": 1.0}
UNITS |= {"s": 1.0, "": 1.0}
CLOCK = re.compile(r"(?:(\d{1,5}):)?(\d{1,3}):(\d{1,2}(?:[.,]\d+)?)")


@dataclass(frozen=True)
class Columns:
    """Columns of a table, or keys of JSON objects, given by the user; None: one of the usual names."""

    audio: str | None = None
    text: str | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Column:
    """A column: its name, and the length of its unit in seconds if it holds times."""

    name: str
    scale: float = 1.0
    has_unit: bool = False


def squeezed(name: str) -> str:
    """Return a name without case, spaces, underscores and other marks."""
    return re.sub(r"[\W_]", "", name.casefold())


def find_columns(names: Collection[str], columns: Columns) -> dict[str, Column]:
    """Return the column of each role in NAMES that exists; columns given by the user take precedence.

    InputError if two columns have the same name for one role.
    """
    found: dict[str, Column] = {}
    given = {field.name: getattr(columns, field.name) for field in fields(columns)}
    for role, usual in NAMES.items():
        own = given.get(role)
        if own is not None:
            fitting = [name for name in names if name == own]
            found |= {role: Column(_only(fitting))} if fitting else {}
            continue
        free = [name for name in names if name not in given.values()]
        column = _usual(role, usual, free)
        found |= {role: column} if column else {}
    return _paired(_onset(found, names))


def _usual(role: str, usual: Iterable[str], names: Collection[str]) -> Column | None:
    units = UNITS if role in TIMES else {"": 1.0}
    for known in usual:
        fitting = {name: unit for unit in units for name in names if squeezed(name) == squeezed(known) + unit}
        several = [name for name in names if name in fitting]
        if several:
            name = _only(several)
            return Column(name, units[fitting[name]], bool(fitting[name]))
    return None


def _only(names: list[str]) -> str:
    if len(names) > 1:
        raise InputError(f"{len(names)} columns have one name, {', '.join(map(repr, names))}. Rename or delete one.")
    return names[0]


def _onset(found: dict[str, Column], names: Collection[str]) -> dict[str, Column]:
    """Return the columns with `offset` as the end if `onset` is the start, as annotation tools write them."""
    onset, offset = (_usual("start", [name], names) for name in ("onset", "offset"))
    if onset and offset and "end" not in found:
        return found | {"start": onset, "end": offset}
    return found


def _paired(found: dict[str, Column]) -> dict[str, Column]:
    """Return the columns without a start that has no end or duration, and without an end that has no start.

    Such a column is something else, perhaps a date. Only `offset` is a valid start by itself.
    """
    alone = "start" in found and not {"end", "duration"} & found.keys() and squeezed(found["start"].name) != "offset"
    without = ({"start"} if alone else set()) | (set() if "start" in found else {"end"})
    return {role: column for role, column in found.items() if role not in without}


def unique_names(names: Iterable[str]) -> list[str]:
    """Return the names with `_2`, `_3` and so on appended to repeated ones."""
    uses: dict[str, int] = {}
    found = []
    for name in names:
        uses[name] = uses.get(name, 0) + 1
        found.append(f"{name}_{uses[name]}" if name and uses[name] > 1 else name)
    return found


def require_roles(
    names: Collection[str], columns: Columns, path: object, without: Collection[str] = ()
) -> dict[str, Column]:
    """Return the result of `find_columns`; InputError if a role is missing that is not in `without`."""
    try:
        found = find_columns(names, columns)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for role in ("audio", "text", "speaker"):
        own = getattr(columns, role)
        if role not in found and role not in without and (role != "speaker" or own is not None):
            tried = repr(own) if own is not None else ", ".join(NAMES[role])
            listed = ", ".join(names)
            raise InputError(
                f"{path}: no {role} column; --{role}-column must name one of {listed} (looked for {tried})"
            )
    return found


def to_seconds(cell: object, key: str, where: str, scale: float = 1.0) -> float | None:
    """Return a cell or JSON value (a number, or h:m:s) as seconds, None as None; InputError for other values."""
    if cell is None:
        return None
    number = _number(cell, scale)
    if number is None or not 0 <= number <= LONGEST_SECONDS:
        raise InputError(f"{where}: {key} must be seconds, a number from 0 to {LONGEST_SECONDS:g}, got {quote(cell)}")
    return number


def _number(cell: object, scale: float) -> float | None:
    if isinstance(cell, bool):
        return None
    clock = CLOCK.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if clock:
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    if isinstance(cell, str) and re.fullmatch(r"\s*\d+,\d+\s*", cell):  # decimal comma
        cell = cell.replace(",", ".")
    try:
        return float(cell) * scale  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def cell_of(row: Mapping[str, Any], found: Mapping[str, Column], role: str) -> Any:
    """Return a row's value of one role; None if it is empty or there is no such column."""
    value = row.get(found[role].name) if role in found else None
    return None if isinstance(value, str) and not value.strip() else value
