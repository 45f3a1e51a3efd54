"""Rows of tables and JSON: a recording, its text, and optionally times."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from focusasr.audio.load import probe_seconds
from focusasr.data.columns import TIMES, Column, cell_of, squeezed, to_seconds
from focusasr.data.corpus import CorpusItems, CorpusUtterance, Reject, locate, name_in_corpus
from focusasr.data.manifest import KEYS, Utterance, can_name, is_unicode
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError, quote

Row = dict[str, Any]
PLACEHOLDER = re.compile(r"^\{\w+\}[/\\]|^\$\{?\w+\}?[/\\]")  # SpeechBrain's {data_root}/
NESTED = ("path", "file", "filename", "audio_filepath")
LATE_SECONDS = 1.0  # tolerance for the end of a segment after that of its recording, before times may be milliseconds
LEAST_MILLISECONDS = 100  # the median segment of a table in milliseconds
MOST_PROBED = 20  # recordings


@dataclass(frozen=True)
class Table:
    """The common properties of a table's rows: its file, the base folder of paths, its split and columns.

    `duration_is_part`: a duration without a start selects a part, as in NeMo's manifests; otherwise it is only
    compared.
    """

    path: Path
    folder: Path
    columns: dict[str, Column]
    split: str | None = None
    duration_is_part: bool = False


def read_rows_of(table: Table, rows: Iterable[tuple[str, Row | str]]) -> CorpusItems:
    """Yield the utterance of each row (position, cells by name or error message), or a reject."""
    listed = list(rows)
    scale = _scale(table, [row for _, row in listed if isinstance(row, dict)])
    for where, row in listed:
        if isinstance(row, str):
            yield Reject("broken row", f"{where}: {row}")
            continue
        try:
            yield _utterance(table, row, where, scale)
        except _BrokenRow as broken:
            yield Reject("broken row", f"{where}: {broken}", broken.audio, broken.text)


class _BrokenRow(Exception):
    """An unusable row: the problem, and the known part of the row."""

    def __init__(self, problem: str, audio: Path | None = None, text: object = "") -> None:
        super().__init__(problem)
        self.audio, self.text = audio, text if isinstance(text, str) else ""


def _utterance(table: Table, row: Row, where: str, scale: float) -> CorpusUtterance:
    """Build the utterance of one row; cells without a role become extra keys."""
    text_column = table.columns.get("text")
    text = row.get(text_column.name, "") if text_column else ""
    audio = locate(table.folder, _audio_name(table, row, text))
    if not isinstance(text, str) or not is_unicode(text):
        key = text_column.name if text_column else KEYS[1]
        raise _BrokenRow(f"{key} must be a string of whole characters, got {quote(text)}", audio)
    try:
        begin, length, whole = _part(table, row, where, scale)
    except InputError as error:
        raise _BrokenRow(str(error).removeprefix(f"{where}: "), audio, text) from None
    utterance = Utterance(audio, text, begin, length, _extra(table, row))
    return CorpusUtterance(utterance, name_in_corpus(audio, table.path.parent), where, whole)


def _audio_name(table: Table, row: Row, text: object) -> str:
    """Return the file that a row names, directly or in a nested object, as in the datasets library."""
    key = table.columns["audio"].name
    value = row.get(key)
    if isinstance(value, dict):
        if not {"start", "stop"}.isdisjoint(value):
            raise _BrokenRow(f"{key} has times in samples. Write start and end as keys, in seconds.", text=text)
        value = next((value[name] for name in NESTED if isinstance(value.get(name), str)), None)
    name = PLACEHOLDER.sub("", value.strip()) if isinstance(value, str) else ""
    if not name or not can_name(name):
        raise _BrokenRow(f"{key} must name a file, got {quote(value)}", text=text)
    return name


def _part(table: Table, row: Row, where: str, scale: float) -> tuple[float, float | None, float | None]:
    """Return an utterance's start, its length (None: to the end), and the length that is only compared."""
    start, end, length = (_time(table, row, where, role, scale) for role in TIMES)
    if end is not None:
        if end <= (start or 0.0):
            raise InputError(f"{where}: the end ({end:g} s) is not after the start ({start or 0.0:g} s)")
        return start or 0.0, round(end - (start or 0.0), 6), None
    part = start is not None or table.duration_is_part
    return start or 0.0, length if part else None, None if part else length


def _time(table: Table, row: Row, where: str, role: str, scale: float) -> float | None:
    cell = cell_of(row, table.columns, role)
    if cell is None:
        return None
    column = table.columns[role]
    usual = scale if role != "duration" and not column.has_unit else 1.0
    return to_seconds(cell, column.name, where, column.scale * usual)


def _scale(table: Table, rows: list[Row]) -> float:
    """Return the unit of start and end columns without one, in seconds: 0.001 if only milliseconds fit the recordings.

    The unit is milliseconds if all times are whole numbers, usually 100 or more apart, and some end is after its
    recording's end, but none is when read as milliseconds.
    """
    end = table.columns.get("end")
    if end is None or end.has_unit:
        return 1.0
    cells = [[cell_of(row, table.columns, role) for role in ("start", "end")] for row in rows]
    if not all(_is_whole(cell) for pair in cells for cell in pair if cell is not None):
        return 1.0
    times = [(int(str(first or 0)), int(str(last or 0)), row) for (first, last), row in zip(cells, rows, strict=True)]
    if not times or median(last - first for first, last, _ in times) < LEAST_MILLISECONDS:
        return 1.0
    latest: dict[Path, int] = {}
    for _, last, row in times:
        with contextlib.suppress(_BrokenRow):
            audio = locate(table.folder, _audio_name(table, row, ""))
            latest[audio] = max(last, latest.get(audio, 0))
    known = [(seconds, last) for audio, last in [*latest.items()][:MOST_PROBED] if (seconds := _seconds(audio))]
    late = any(last > seconds + LATE_SECONDS for seconds, last in known)
    if not late or any(last / 1000 > seconds + LATE_SECONDS for seconds, last in known):
        return 1.0
    warn(f"focusasr: {table.path}: {end.name} is read as milliseconds: its recordings are shorter in seconds")
    return 0.001


def _is_whole(cell: object) -> bool:
    return isinstance(cell, (int, str)) and re.fullmatch(r"\d{1,12}", str(cell).strip()) is not None


def _seconds(audio: Path) -> float | None:
    return probe_seconds(audio) if audio.is_file() else None


def _extra(table: Table, row: Row) -> Row:
    """Return the cells that have no field of their own, under the names of manifests."""
    roles = {column.name: role for role, column in table.columns.items()}
    extra: Row = {"split": table.split} if table.split else {}
    for name, value in row.items():
        role = roles.get(name, "")
        if role in ("audio", "text", *TIMES):
            continue
        key = role or name
        if not role and key in (*KEYS, "offset", "duration", "channel", *roles.values()):
            key = f"source_{key}"
        extra[key] = value
    return extra


def is_nemo(columns: dict[str, Column]) -> bool:
    """Return whether a manifest uses NeMo's key for audio; then durations select a part."""
    return squeezed(columns["audio"].name) == squeezed(KEYS[0])
