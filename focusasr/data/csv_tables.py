"""Text tables separated by commas, semicolons, bars or tabs, with line numbers."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from focusasr.runtime.errors import InputError


def read_lines(path: Path) -> list[str]:
    """Return a text file's lines with their ends (LF, CRLF or CR); InputError if it is neither UTF-8 nor UTF-16."""
    with _told(path):
        whole = path.read_bytes()
        return io.StringIO(whole.decode(_encoding(whole[:2])), newline="").readlines()


def first_line(path: Path) -> str:
    """Return the first line that is not blank, without reading the rest; InputError as in `read_lines`."""
    with _told(path), path.open("rb") as file:
        encoding = _encoding(file.read(2))
    with _told(path), path.open(encoding=encoding, newline="") as lines:
        return next((line for line in lines if line.strip()), "")


def _encoding(head: bytes) -> str:
    """Return UTF-16 if a file begins with its byte order mark, as Excel and PowerShell write it, else UTF-8."""
    return "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder. Name a file in it.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from None


def delimiter_of(path: Path) -> str:
    """Return the separator of a table's fields, judged by its first line: tab, bar, semicolon or comma."""
    return _delimiter(first_line(path))


def _delimiter(first: str) -> str:
    for delimiter in "\t|":
        if delimiter in first:
            return delimiter
    return ";" if first.count(";") > first.count(",") else ","


def read_rows(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line number, fields or error message) for every row that is not blank."""
    return _rows(read_lines(path), delimiter_of(path))


def read_header(path: Path) -> list[str]:
    """Return the names in a table's first row; InputError if there is no row."""
    first = first_line(path)
    _, names = next(_rows([first], _delimiter(first)), (0, "the file is empty"))
    if isinstance(names, str):
        raise InputError(f"{path}: no header line ({names})")
    return [name.strip() for name in names]


def _rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    rows = _plain_rows(lines, delimiter) if delimiter in "\t|" else _quoted_rows(lines, delimiter)
    return ((number, fields) for number, fields in rows if any(map(str.strip, fields)))


def _plain_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Split line by line: in tables with tabs or bars, a stray quote must not swallow the following lines."""
    for number, line in enumerate(lines, start=1):
        yield number, [_unquoted(cell) for cell in line.rstrip("\r\n").split(delimiter)]


def _unquoted(cell: str) -> str:
    """Remove the quotes around a whole cell, `"a ""b"" c"` to `a "b" c`; keep any other quotes."""
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _quoted_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Split by the rules of CSV; after an invalid quote continue with the line after the row's first."""
    start = 0
    while start < len(lines):
        reader, first = csv.reader(lines[start:], delimiter=delimiter, strict=True), start
        try:
            for fields in reader:
                yield first + 1, fields
                first = start + reader.line_num
            return
        except csv.Error as error:
            yield first + 1, f"not CSV ({error})"
            start = first + 1
