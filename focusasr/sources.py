"""Corpora as others lay them out: a reader per layout turns files on disk into utterances, or says what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from focusasr.audio import AUDIO_SUFFIXES, find_sources
from focusasr.manifest import Utterance, numbered_lines, parse_line
from focusasr.settings import InputError
from focusasr.tables import delimiter_of, pick_column, read_header, read_lines, read_rows, require_column

AUDIO_COLUMNS = ("audio_filepath", "path", "file", "audio", "filename", "file_name", "wav")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription")
COMMON_VOICE_COLUMNS = frozenset(("client_id", "path", "sentence"))
COMMON_VOICE_SPLITS = ("train", "dev", "test")
TABLE_SUFFIXES = frozenset((".csv", ".tsv"))
MANIFEST_SUFFIXES = frozenset((".jsonl", ".json"))


@dataclass(frozen=True)
class Columns:
    """Columns of a table that the user named; None: found among the usual names."""

    audio: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Found:
    """One utterance of a corpus, its audio not yet opened.

    `name` is where it lies inside the corpus, with `/` and without suffix; several utterances may share it.
    `where` says which file, and which line of it, told of the utterance.
    """

    utterance: Utterance
    name: str
    where: str

    @property
    def audio(self) -> Path:
        """The file that the utterance is in."""
        return self.utterance.audio


@dataclass(frozen=True)
class Reject:
    """Something that cannot become an utterance: its kind (few, to be counted) and the reason in one line."""

    kind: str
    reason: str
    audio: Path | None = None
    text: str = ""


Readings = Iterator[Found | Reject]
Seen = dict[tuple[Path, float, float | None, str], str]


def read_corpora(inputs: Iterable[str | Path], layout: str = "auto", columns: Columns | None = None) -> Readings:
    """Yield every utterance and every reject of the inputs (folders or files), in their order.

    Runs of white space in texts become one space. An empty text, and an utterance that was there before (same part
    of the same file, same text), become rejects. InputError: an input is missing, or its layout is not recognized.
    """
    columns = columns or Columns()
    seen: Seen = {}
    for path in [_existing(given) for given in inputs]:
        kind = recognize(path, columns) if layout == "auto" else layout
        for found in READERS[kind](path, columns):
            yield found if isinstance(found, Reject) else _checked(found, seen)


def _existing(given: str | Path) -> Path:
    path = Path(given).absolute()
    if not path.exists():
        raise InputError(f"{given}: no such file or folder; name a corpus folder, a table, a manifest or an audio file")
    return path


def _checked(found: Found, seen: Seen) -> Found | Reject:
    utterance = replace(found.utterance, text=" ".join(found.utterance.text.split()))
    if not utterance.text:
        return Reject("empty text", f"{found.where}: the text is empty", utterance.audio)
    key = (found.audio, utterance.offset, utterance.duration, utterance.text)
    if key in seen:
        reason = f"{found.where}: the same audio with the same text as {seen[key]}"
        return Reject("duplicate", reason, utterance.audio, utterance.text)
    seen[key] = found.where
    return replace(found, utterance=utterance)


# Which layout it is


def recognize(path: Path, columns: Columns) -> str:
    """Return the layout of a folder or file; InputError where none fits."""
    layout = _recognize_folder(path, columns) if path.is_dir() else _recognize_file(path, columns)
    if layout is None:
        wanted = ", ".join(READERS)
        raise InputError(f"{path}: no known corpus layout; name it with --layout ({wanted}), or a table's columns")
    return layout


def _recognize_file(path: Path, columns: Columns) -> str | None:
    if path.name.endswith(".trans.txt"):
        return "librispeech"
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "sidecar"
    return _recognize_table(path, columns)


def _recognize_folder(path: Path, columns: Columns) -> str | None:
    if path / "metadata.csv" in _tables_of(path, "ljspeech", columns):
        return "ljspeech"
    if next(path.rglob("*.trans.txt"), None):
        return "librispeech"
    if _manifests(path):
        return "manifest"
    for layout in ("commonvoice", "table"):
        if _tables_of(path, layout, columns):
            return layout
    return "sidecar" if any(_sidecar(audio).is_file() for audio in _audio_files(path)) else None


def _recognize_table(path: Path, columns: Columns) -> str | None:
    header = read_header(path)
    if not (columns.audio or columns.text) and COMMON_VOICE_COLUMNS.issubset(header):
        return "commonvoice"
    if pick_column(header, columns.audio, AUDIO_COLUMNS) and pick_column(header, columns.text, TEXT_COLUMNS):
        return "table"
    return "ljspeech" if path.name == "metadata.csv" and len(header) in (2, 3) and delimiter_of(path) == "|" else None


def _tables_of(folder: Path, layout: str, columns: Columns) -> list[Path]:
    """Return the tables of one layout directly inside the folder; those that cannot be read belong to none."""
    tables = []
    for path in _inside(folder, TABLE_SUFFIXES):
        with contextlib.suppress(InputError):
            tables += [path] if _recognize_table(path, columns) == layout else []
    return tables


def _inside(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Return the files with one of `suffixes` directly inside the folder, sorted."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


# Audio with its text beside it


def _read_sidecars(path: Path, columns: Columns) -> Readings:
    root = path if path.is_dir() else path.parent
    for audio in _audio_files(path):
        sidecar = _sidecar(audio)
        if not sidecar.is_file():
            yield Reject("no text", f"{audio}: no {sidecar.name} beside it", audio)
            continue
        try:
            text = "".join(read_lines(sidecar))
        except InputError as error:
            yield Reject("unreadable text", str(error), audio)
            continue
        yield Found(Utterance(audio, text), _name(audio, root), str(sidecar))


def _audio_files(path: Path) -> list[Path]:
    try:
        sources = find_sources([str(path)])
    except InputError:  # a folder without audio
        return []
    return [Path(source.path) for source in sources if not Path(source.path).name.startswith(".")]


def _sidecar(audio: Path) -> Path:
    return audio.with_suffix(".txt")


# Tables with a header, and Common Voice, which is one


@dataclass(frozen=True)
class _Table:
    """A table to read: audio paths start at `folder`, some columns are `renamed`, `split` tells tables apart."""

    path: Path
    folder: Path
    split: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)


def _read_tables(path: Path, columns: Columns) -> Readings:
    tables = _tables_of(path, "table", columns) if path.is_dir() else [path]
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        yield from _read_table(_Table(table, table.parent, split), columns)


def _read_common_voice(path: Path, columns: Columns) -> Readings:
    """Read one TSV, or of a folder train, dev and test; the other tables repeat clips, or hold refused ones."""
    tables = [path]
    if path.is_dir():
        every = _tables_of(path, "commonvoice", columns)
        splits = [table for table in every if table.stem in COMMON_VOICE_SPLITS]
        tables = splits or [table for table in every if table.stem == "validated"] or every
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        renamed = {"client_id": "speaker", "locale": "language"}
        yield from _read_table(_Table(table, table.parent / "clips", split, renamed), columns)


def _read_table(table: _Table, columns: Columns) -> Readings:
    names = read_header(table.path)
    audio_column = require_column(names, columns.audio, AUDIO_COLUMNS, f"{table.path}: no audio column; --audio-column")
    text_column = require_column(names, columns.text, TEXT_COLUMNS, f"{table.path}: no text column; --text-column")
    for number, fields in itertools.islice(read_rows(table.path), 1, None):
        where = f"{table.path}, line {number}"
        if isinstance(fields, str):
            yield Reject("broken row", f"{where}: {fields}")
        elif len(fields) != len(names):
            yield Reject("broken row", f"{where}: {len(fields)} fields where the header has {len(names)}")
        else:
            row = dict(zip(names, fields, strict=True))
            others = {name: row[name] for name in row if name not in (audio_column, text_column)}
            yield _found_in_row(table, (row[audio_column], row[text_column]), others, where)


def _found_in_row(table: _Table, named: tuple[str, str], others: dict[str, str], where: str) -> Found | Reject:
    """Build the utterance of one row: its audio and text, and its other cells as extra keys where not empty.

    `offset` and `duration` (seconds) choose a part of the file; a `duration` alone only repeats the file's length.
    """
    audio, text = named
    if not audio.strip() or "\0" in audio:
        return Reject("broken row", f"{where}: the cell with the audio file's name is empty or binary", text=text)
    path = _locate(table.folder, audio.strip())
    extra = {table.renamed.get(key, key): value for key, value in others.items() if key and value.strip()}
    offset, duration = extra.pop("offset", None), extra.pop("duration", None)
    part = {"offset": offset, "duration": duration} if offset else {}
    for key in ("audio_filepath", "text"):
        if key in extra:
            extra[f"source_{key}"] = extra.pop(key)
    if table.split:
        extra.setdefault("split", table.split)
    try:
        start, length = (_seconds(part.get(key), key, where) for key in ("offset", "duration"))
    except InputError as error:
        return Reject("broken row", str(error), path, text)
    return Found(Utterance(path, text, start or 0.0, length, extra), _name(path, table.path.parent), where)


def _seconds(cell: str | None, key: str, where: str) -> float | None:
    if cell is None:
        return None
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise InputError(f"{where}: {key} must be seconds, a number of at least 0, got {cell!r}")
    return number


# LibriSpeech, LJSpeech, manifests


def _read_librispeech(path: Path, columns: Columns) -> Readings:
    """Read SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, lines of an id and its text; the audio lies beside."""
    root = path if path.is_dir() else path.parent
    for transcript in sorted(path.rglob("*.trans.txt")) if path.is_dir() else [path]:
        speaker, chapter = transcript.parent.parent.name, transcript.parent.name
        try:
            lines = read_lines(transcript)
        except InputError as error:
            yield Reject("unreadable text", str(error))
            continue
        for number, line in enumerate(lines, start=1):
            key, _, text = line.strip().partition(" ")
            if key:
                audio = _locate(transcript.parent, key)
                utterance = Utterance(audio, text, extra={"speaker": speaker, "chapter": chapter, "id": key})
                yield Found(utterance, _name(audio, root), f"{transcript}, line {number}")


def _read_ljspeech(path: Path, columns: Columns) -> Readings:
    """Read metadata.csv, lines of ID|TEXT|NORMALIZED TEXT without header or quoting; the audio lies in wavs/."""
    table = path / "metadata.csv" if path.is_dir() else path
    for number, line in enumerate(read_lines(table), start=1):
        where = f"{table}, line {number}"
        fields = [field.strip() for field in line.split("|")]
        if not any(fields):
            continue
        if len(fields) not in (2, 3) or not fields[0]:
            yield Reject("broken row", f"{where}: expected ID|TEXT|NORMALIZED TEXT, got {line.strip()[:60]!r}")
            continue
        audio = _locate(table.parent / "wavs", fields[0])
        text = fields[2] if len(fields) == 3 and fields[2] else fields[1]
        yield Found(Utterance(audio, text, extra={"id": fields[0]}), _name(audio, table.parent), where)


def _read_manifests(path: Path, columns: Columns) -> Readings:
    manifests = _manifests(path) if path.is_dir() else [path]
    for manifest in manifests:
        for number, line in numbered_lines(manifest):
            try:
                utterance = parse_line(line, number, manifest, text_required=False)
            except InputError as error:
                yield Reject("broken row", str(error))
                continue
            extra = {"split": manifest.stem, **utterance.extra} if len(manifests) > 1 else utterance.extra
            audio = _locate(manifest.parent, str(utterance.audio))
            where = f"{manifest}, line {number}"
            yield Found(replace(utterance, audio=audio, extra=extra), _name(audio, manifest.parent), where)


def _manifests(folder: Path) -> list[Path]:
    """Return the manifests directly inside a folder: manifest.jsonl, which holds all, or else each that is one."""
    if (folder / "manifest.jsonl").is_file():
        return [folder / "manifest.jsonl"]
    return [path for path in _inside(folder, MANIFEST_SUFFIXES) if _is_manifest(path)]


def _is_manifest(path: Path) -> bool:
    try:
        first = json.loads(next(numbered_lines(path))[1])
    except (StopIteration, ValueError):
        return False
    return isinstance(first, dict) and "audio_filepath" in first


# Names, lines and rows


def _locate(folder: Path, name: str) -> Path:
    """Return the file that a corpus means: as written, in the other Unicode form, with `/` for `\\`, or with a suffix.

    Where there is none it is the path as written: whoever opens it reports it.
    """
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name), name.replace("\\", "/")):
        if os.path.isfile(folder / form):  # False, not an error, for a name that no file can have
            return folder / form
    if PurePath(name).suffix.lower() not in AUDIO_SUFFIXES:
        for suffix in sorted(AUDIO_SUFFIXES):
            if os.path.isfile(folder / f"{name}{suffix}"):
                return folder / f"{name}{suffix}"
    return folder / name


def _name(audio: Path, root: Path) -> str:
    """Return the path from the corpus's root, without suffix; of a file elsewhere, the path without its `..`."""
    path = PurePath(os.path.relpath(audio, root))
    stem = path.with_suffix("") if path.suffix.lower() in AUDIO_SUFFIXES else path
    return "/".join(part for part in stem.parts if part != "..")


READERS: dict[str, Callable[[Path, Columns], Readings]] = {
    "sidecar": _read_sidecars,
    "table": _read_tables,
    "librispeech": _read_librispeech,
    "ljspeech": _read_ljspeech,
    "commonvoice": _read_common_voice,
    "manifest": _read_manifests,
}
