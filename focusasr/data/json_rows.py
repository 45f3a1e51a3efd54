"""Objects in JSON files: one per line, in a list, or by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusasr.data.csv_tables import first_line, read_lines
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import parse_json

Row = dict[str, Any]


def first_object(path: Path) -> Row | None:
    """Return the first object of a JSON file; None if it holds no objects."""
    opening = _parsed(first_line(path))
    if isinstance(opening, dict) and not _by_id(opening):
        return opening
    try:
        return next((row for _, row in read_objects(path) if isinstance(row, dict)), None)
    except InputError:
        return None


def read_objects(path: Path) -> Iterator[tuple[str, Row | str]]:
    """Yield (position, object or error message) for each entry; InputError if the file is not JSON."""
    text = "".join(read_lines(path))
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > 1 and isinstance(_parsed(lines[0][1]), dict):
        yield from _line_by_line(path, lines)
        return
    try:
        whole = parse_json(text)
    except ValueError as error:
        alone = len(lines) == 1 and not text.lstrip().startswith("[")
        if not alone and not any(isinstance(_parsed(line), dict) for _, line in lines):
            raise InputError(f"{path}: not JSON ({error}). Write one object per line, or a list of objects.") from None
        yield from _line_by_line(path, lines)
        return
    yield from _entries(path, whole)


def _line_by_line(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[str, Row | str]]:
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            yield where, f"not JSON ({error}). Correct or delete the line."
            continue
        yield where, row if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"


def _entries(path: Path, whole: Any) -> Iterator[tuple[str, Row | str]]:
    """Yield the objects of a list, of an object by id, or of the one list in an object."""
    if isinstance(whole, dict) and _by_id(whole):
        yield from ((f"{path}, {key!r}", {"id": key, **row}) for key, row in whole.items())
        return
    lists = [value for value in whole.values() if _objects(value)] if isinstance(whole, dict) else []
    if isinstance(whole, dict) and not (len(lists) == 1 == len(whole)):
        yield f"{path}, line 1", whole
        return
    rows = lists[0] if lists else whole
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected objects with audio and text, got {type(whole).__name__}")
    for number, row in enumerate(rows, start=1):
        wrong = f"expected an object, got {type(row).__name__}"
        yield f"{path}, entry {number}", row if isinstance(row, dict) else wrong


def _by_id(row: Row) -> bool:
    return bool(row) and all(isinstance(value, dict) for value in row.values())


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
