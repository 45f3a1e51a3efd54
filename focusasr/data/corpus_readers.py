"""Corpora as others lay them out: a reader per layout turns files on disk into utterances, or says what is wrong."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from focusasr.audio.source import AUDIO_SUFFIXES, Source
from focusasr.data.corpus import (
    SPLIT,
    Columns,
    CorpusItems,
    CorpusUtterance,
    Reject,
    audio_files,
    checked,
    existing,
    locate,
    name_in_corpus,
    to_seconds,
    usual_name,
)
from focusasr.data.csv_tables import (
    delimiter_of,
    first_line,
    pick_column,
    read_header,
    read_lines,
    read_rows,
    require_column,
)
from focusasr.data.kaldi import is_kaldi, read_kaldi
from focusasr.data.lhotse import is_lhotse, read_lhotse
from focusasr.data.manifest import KEYS, Utterance, numbered_lines, parse_line
from focusasr.data.subtitle_files import SUBTITLE_SUFFIXES, read_subtitles, subtitles_of
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import parse_json

AUDIO_COLUMNS = ("audio_filepath", "path", "file", "audio", "filename", "file_name", "wav", "audio_file")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription")
COMMON_VOICE_COLUMNS = {  # → the folder of the clips: read sentences, and since 2025 answers to questions
    frozenset(("client_id", "path", "sentence")): "clips",
    frozenset(("client_id", "audio_file", "transcription")): "audios",
}
COMMON_VOICE_SPLITS = ("train", "dev", "test")
SIDECAR_SUFFIXES = (".txt", ".lab", ".json")
TARRED_KEYS = frozenset(("shard_id", "tar_filepath", "tarred_audio_filepaths"))
TABLE_SUFFIXES = frozenset((".csv", ".tsv"))
MANIFEST_SUFFIXES = frozenset((".jsonl", ".json"))


def read_corpora(inputs: Iterable[str | Path], layout: str = "auto", columns: Columns | None = None) -> CorpusItems:
    """Yield every utterance and every reject of the inputs (folders or files), in their order.

    Runs of white space in texts become one space. An empty text, and an utterance that was there before (same part
    of the same file, same text), become rejects. InputError: an input is missing, or its layout is not recognized.
    """
    columns = columns or Columns()
    seen: dict[tuple[Source, str], str] = {}
    for path in [existing(given) for given in inputs]:
        kind = detect_layout(path, columns) if layout == "auto" else layout
        for found in READERS[kind](path, columns):
            yield found if isinstance(found, Reject) else checked(found, seen)


# Which layout it is


def detect_layout(path: Path, columns: Columns) -> str:
    """Return the layout of a folder or file; InputError where none fits."""
    layout = _recognize_folder(path, columns) if path.is_dir() else _recognize_file(path, columns)
    if layout is None:
        for table in [path] if path.suffix.lower() in TABLE_SUFFIXES else _inside(path, TABLE_SUFFIXES):
            _columns_of(table, columns)  # says which one lacks
        raise InputError(f"{path}: no known corpus layout; {_missing(path)}")
    return layout


def _missing(path: Path) -> str:
    """Return what a folder or file lacks to be a corpus, and what to do about it."""
    if path.is_file():
        layouts = ", ".join(READERS)
        return f"wanted: a table, a manifest or a recording; name a table's columns, or --layout ({layouts})"
    below = sorted(
        {file.parent.name for file in path.glob("*/*") if file.suffix.lower() in (*TABLE_SUFFIXES, ".jsonl")}
    )
    if below:
        return f"tables or manifests lie in folders of it; give these: {', '.join(below)}"
    recordings = len(audio_files(path))
    if not recordings:
        return "no recordings (.wav, .flac, .mp3 ...), no table or manifest that names any; give their folder"
    return (
        f"{pluralize(recordings, 'recording')}, but no texts beside them (NAME.txt, .lab, .json, .srt, .vtt) and no "
        "table or manifest that names them; add texts, or say what a table's --audio-column and --text-column are"
    )


def _recognize_file(path: Path, columns: Columns) -> str | None:
    if path.name.endswith(".trans.txt"):
        return "librispeech"
    if is_lhotse(path):
        return "lhotse"
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "subtitles" if subtitles_of(path) and not _sidecar(path) else "sidecar"
    return _recognize_table(path, columns)


def _recognize_folder(path: Path, columns: Columns) -> str | None:
    if path / "metadata.csv" in _tables_of(path, "ljspeech", columns):
        return "ljspeech"
    if next(path.rglob("*.trans.txt"), None):
        return "librispeech"
    if is_kaldi(path):
        return "kaldi"
    if is_lhotse(path):
        return "lhotse"
    if _manifests(path, columns):
        return "manifest"
    for layout in ("commonvoice", "table"):
        if _tables_of(path, layout, columns):
            return layout
    audios = audio_files(path)
    if any(_sidecar(audio) for audio in audios):
        return "sidecar"
    return "subtitles" if any(subtitles_of(audio) for audio in audios) else None


def _recognize_table(path: Path, columns: Columns) -> str | None:
    header = read_header(path)
    if _clips_folder(header):
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
    files = (path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    return sorted(path for path in files if path.is_file())


# Audio with its text beside it


def _read_beside(path: Path, columns: Columns, subtitles: bool = False) -> CorpusItems:
    """Read a text beside each recording: .txt, .lab, .json with a text and other keys, or subtitles.

    Where there are both the text counts, or the `subtitles` that are wanted.
    """
    root = path if path.is_dir() else path.parent
    for audio in audio_files(path):
        sidecar, cues, name = _sidecar(audio), subtitles_of(audio), name_in_corpus(audio, root)
        if cues and (subtitles or not sidecar):
            yield from read_subtitles(audio, cues, name)
        elif sidecar:
            try:
                text, extra = _sidecar_text(sidecar, columns)
            except InputError as error:
                yield Reject("unreadable text", str(error), audio)
                continue
            yield CorpusUtterance(Utterance(audio, text, extra=extra), name, str(sidecar))
        else:
            beside = ", ".join((audio.with_suffix(SIDECAR_SUFFIXES[0]).name, *SIDECAR_SUFFIXES[1:], *SUBTITLE_SUFFIXES))
            yield Reject("no text", f"{audio}: none beside it; wanted: {beside}", audio)


def _sidecar_text(path: Path, columns: Columns) -> tuple[str, dict[str, Any]]:
    whole = "".join(read_lines(path))
    if path.suffix.lower() != ".json":
        return whole, {}
    try:
        extra = parse_json(whole)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    wanted = [columns.text] if columns.text else list(TEXT_COLUMNS)
    key = next((key for key in wanted if isinstance(extra, dict) and isinstance(extra.get(key), str)), None)
    if key is None:
        raise InputError(f"{path}: expected an object with a text under {' or '.join(wanted)}; --text-column names it")
    others = {k: v for k, v in extra.items() if k not in (key, "audio_filepath", "offset", "duration", "segments")}
    return extra[key], {("source_text" if k == "text" else k): v for k, v in others.items()}


def _sidecar(audio: Path) -> Path | None:
    suffixes = (form for suffix in SIDECAR_SUFFIXES for form in (suffix, suffix.upper()))
    return next((path for path in map(audio.with_suffix, suffixes) if path.is_file()), None)


# Tables with a header, and Common Voice, which is one


@dataclass(frozen=True)
class _Table:
    """A table to read: audio paths start at `folder`, some columns are `renamed`, `split` tells tables apart."""

    path: Path
    folder: Path
    split: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)


def _read_tables(path: Path, columns: Columns) -> CorpusItems:
    tables = _tables_of(path, "table", columns) if path.is_dir() else [path]
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        yield from _read_table(_Table(table, table.parent, split), columns)


def _read_common_voice(path: Path, columns: Columns) -> CorpusItems:
    """Read one TSV, or of a folder train, dev and test; the other tables repeat clips, or hold refused ones."""
    tables = [path]
    if path.is_dir():
        every = _tables_of(path, "commonvoice", columns)
        splits = [table for table in every if table.stem in COMMON_VOICE_SPLITS]
        tables = splits or [table for table in every if table.stem == "validated"] or every
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        renamed = {"client_id": "speaker", "locale": "language"}
        clips = _clips_folder(read_header(table)) or "clips"
        yield from _read_table(_Table(table, table.parent / clips, split, renamed), columns)


def _clips_folder(header: list[str]) -> str | None:
    """Return where a Common Voice table's clips lie; None where it is no such table."""
    return next((folder for names, folder in COMMON_VOICE_COLUMNS.items() if names.issubset(header)), None)


def _columns_of(path: Path, columns: Columns) -> tuple[list[str], str, str]:
    """Return a table's header, and of it the columns of audio and text; InputError where one is not there."""
    names = read_header(path)
    audio = require_column(names, columns.audio, AUDIO_COLUMNS, f"{path}: no audio column; --audio-column")
    return names, audio, require_column(names, columns.text, TEXT_COLUMNS, f"{path}: no text column; --text-column")


def _read_table(table: _Table, columns: Columns) -> CorpusItems:
    names, audio_column, text_column = _columns_of(table.path, columns)
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


def _found_in_row(
    table: _Table, named: tuple[str, str], others: dict[str, str], where: str
) -> CorpusUtterance | Reject:
    """Build the utterance of one row: its audio and text, and its other cells as extra keys where not empty.

    `offset` and `duration` (seconds) choose a part of the file; a `duration` alone only tells the file's length.
    """
    audio, text = named
    if not audio.strip() or "\0" in audio:
        return Reject("broken row", f"{where}: the cell with the audio file's name is empty or binary", text=text)
    path = locate(table.folder, audio.strip())
    cells = {usual_name(key, others): value for key, value in others.items() if key and value.strip()}
    extra = {table.renamed.get(key, key): value for key, value in cells.items()}
    offset, duration = extra.pop("offset", None), extra.pop("duration", None)
    part = {"offset": offset, "duration": duration} if offset else {}
    for key in ("audio_filepath", "text"):
        if key in extra:
            extra[f"source_{key}"] = extra.pop(key)
    if table.split:
        extra.setdefault("split", table.split)
    try:
        start, length = (to_seconds(part.get(key), key, where) for key in ("offset", "duration"))
        told = None if part else to_seconds(duration, "duration", where)
    except InputError as error:
        return Reject("broken row", str(error), path, text)
    utterance = Utterance(path, text, start or 0.0, length, extra)
    return CorpusUtterance(utterance, name_in_corpus(path, table.path.parent), where, told)


# LibriSpeech, LJSpeech, manifests


def _read_librispeech(path: Path, columns: Columns) -> CorpusItems:
    """Read SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, lines of an id and its text; the audio lies beside."""
    root = path if path.is_dir() else path.parent
    for transcript in sorted(path.rglob("*.trans.txt")) if path.is_dir() else [path]:
        speaker, chapter = transcript.parent.parent.name, transcript.parent.name
        above = transcript.relative_to(root).parts[:-3]  # train-clean-100, in the folder of several
        told = {"split": above[-1]} if above and SPLIT.search(above[-1]) else {}
        try:
            lines = read_lines(transcript)
        except InputError as error:
            yield Reject("unreadable text", str(error))
            continue
        for number, line in enumerate(lines, start=1):
            key, _, text = line.strip().partition(" ")
            if key:
                audio = locate(transcript.parent, key)
                extra = {"speaker": speaker, "chapter": chapter, "id": key, **told}
                where = f"{transcript}, line {number}"
                yield CorpusUtterance(Utterance(audio, text, extra=extra), name_in_corpus(audio, root), where)


def _read_ljspeech(path: Path, columns: Columns) -> CorpusItems:
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
        audio = locate(table.parent / "wavs", fields[0])
        text = fields[2] if len(fields) == 3 and fields[2] else fields[1]
        yield CorpusUtterance(
            Utterance(audio, text, extra={"id": fields[0]}), name_in_corpus(audio, table.parent), where
        )


def _read_manifests(path: Path, columns: Columns) -> CorpusItems:
    manifests = _manifests(path, columns) if path.is_dir() else [path]
    for manifest in manifests:
        keys = _keys(manifest, columns) or KEYS
        for number, line in numbered_lines(manifest):
            try:
                utterance = parse_line(line, number, manifest, text_required=False, keys=keys)
            except InputError as error:
                yield Reject("broken row", str(error))
                continue
            if not TARRED_KEYS.isdisjoint(utterance.extra):
                raise InputError(
                    f"{manifest}, line {number}: tarred, its audio lies inside archives; unpack them (tar -xf) and "
                    "give the manifest whose audio_filepath names the files"
                )
            extra = {"split": manifest.stem, **utterance.extra} if len(manifests) > 1 else utterance.extra
            audio = locate(manifest.parent, str(utterance.audio))
            where = f"{manifest}, line {number}"
            utterance = replace(utterance, audio=audio, extra=extra)
            yield CorpusUtterance(utterance, name_in_corpus(audio, manifest.parent), where, utterance.duration)


def _manifests(folder: Path, columns: Columns) -> list[Path]:
    """Return the manifests directly inside a folder: manifest.jsonl, which holds all, or else each that is one.

    A .json beside a recording of its name is that one's text.
    """
    if (folder / "manifest.jsonl").is_file():
        return [folder / "manifest.jsonl"]
    sounds = {path.stem for path in _inside(folder, AUDIO_SUFFIXES)}
    listed = _inside(folder, MANIFEST_SUFFIXES)
    alone = [path for path in listed if path.suffix.lower() != ".json" or path.stem not in sounds]
    alone.sort(key=lambda path: path.stem.casefold() == "all")  # last: what stands in train or test too is of that
    return [path for path in alone if _keys(path, columns)]


def _keys(manifest: Path, columns: Columns) -> tuple[str, str] | None:
    """Return a manifest's keys of audio and text by its first line: NeMo's, or, as in a table, those of others.

    None: it is no manifest. A .json may be many things, so that its audio's key must be NeMo's or what the user named.
    """
    try:
        first = parse_json(first_line(manifest))
    except ValueError:
        return None
    names = list(first) if isinstance(first, dict) else []
    audio = pick_column(names, columns.audio, AUDIO_COLUMNS if manifest.suffix.lower() == ".jsonl" else KEYS[:1])
    if audio is None:
        return None
    text = require_column(names, columns.text, (), f"{manifest}: no text key; --text-column") if columns.text else None
    return audio, text or pick_column(names, None, TEXT_COLUMNS) or KEYS[1]


READERS: dict[str, Callable[[Path, Columns], CorpusItems]] = {
    "sidecar": _read_beside,
    "table": _read_tables,
    "librispeech": _read_librispeech,
    "ljspeech": _read_ljspeech,
    "commonvoice": _read_common_voice,
    "manifest": _read_manifests,
    "kaldi": lambda path, columns: read_kaldi(path if path.is_dir() else path.parent),
    "lhotse": lambda path, columns: read_lhotse(path),
    "subtitles": lambda path, columns: _read_beside(path, columns, subtitles=True),
}
