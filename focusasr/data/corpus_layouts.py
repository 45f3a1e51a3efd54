"""Recognition of corpus layouts: the reader that a folder or file needs."""

from __future__ import annotations

import contextlib
import typing
from pathlib import Path

from focusasr.audio.source import AUDIO_SUFFIXES
from focusasr.config import PreprocessConfig
from focusasr.data.columns import Columns, find_columns, require_roles
from focusasr.data.corpus import audio_files
from focusasr.data.csv_tables import delimiter_of, read_header
from focusasr.data.json_rows import first_object
from focusasr.data.kaldi import is_kaldi
from focusasr.data.lhotse import is_lhotse
from focusasr.data.segment_files import SEGMENT_SUFFIXES, is_labels, segments_of
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import hints_of

COMMON_VOICE_COLUMNS = {  # → folder of the clips: read sentences, and since 2025 answers to questions
    frozenset(("client_id", "path", "sentence")): "clips",
    frozenset(("client_id", "audio_file", "transcription")): "audios",
}
SIDECAR_SUFFIXES = (".txt", ".lab", ".json")
TABLE_SUFFIXES = frozenset((".csv", ".tsv"))
STM = ".stm"
BY_NAME = (*SIDECAR_SUFFIXES, *SEGMENT_SUFFIXES)
MANIFEST_SUFFIXES = frozenset((".jsonl", ".ndjson", ".json", ".list"))  # .list is WeNet's


def detect_layout(path: Path, columns: Columns) -> str:
    """Return the layout of a folder or file; InputError if there is none."""
    layout = recognize(path, columns)
    if layout is None:
        for table in [path] if path.suffix.lower() in TABLE_SUFFIXES else inside(path, TABLE_SUFFIXES):
            require_roles(read_header(table), columns, table)  # the error names the missing column
        raise InputError(f"{path}: no known corpus layout: {_missing(path)}")
    return layout


def recognize(path: Path, columns: Columns) -> str | None:
    """Return the layout of a folder or file, None if no reader supports it."""
    return _recognize_folder(path, columns) if path.is_dir() else _recognize_file(path, columns)


def _missing(path: Path) -> str:
    """Return why a folder or file is not a corpus, and the remedy."""
    if path.is_file():
        layouts = ", ".join(typing.get_args(hints_of(PreprocessConfig)["layout"]))
        return f"expected a table, a manifest, an archive or a recording. Name its columns, or --layout ({layouts})."
    tables = (*TABLE_SUFFIXES, STM, ".jsonl")
    below = sorted({file.parent.name for file in path.glob("*/*") if file.suffix.lower() in tables})
    if below:
        return f"tables or manifests are in its subfolders. Use these as inputs: {', '.join(below)}."
    recordings = len(audio_files(path))
    if not recordings:
        return "no recordings (.wav, .flac, .mp3 ...), no table or manifest that names any. Use their folder as input."
    return (
        f"{pluralize(recordings, 'recording')}, but no texts with their names (NAME{', '.join(BY_NAME)}) and no table "
        "or manifest that names them. Add texts, or name a table's --audio-column and --text-column."
    )


def _recognize_file(path: Path, columns: Columns) -> str | None:
    if path.name.endswith(".trans.txt"):
        return "librispeech"
    if is_lhotse(path):
        return "lhotse"
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return "subtitles" if segments_of(path) and not sidecar_of(path) else "sidecar"
    return _recognize_table(path, columns)


def _recognize_folder(path: Path, columns: Columns) -> str | None:
    if path / "metadata.csv" in tables_of(path, "ljspeech", columns):
        return "ljspeech"
    if next(path.rglob("*.trans.txt"), None):
        return "librispeech"
    if is_kaldi(path):
        return "kaldi"
    if is_lhotse(path):
        return "lhotse"
    if manifests_of(path, columns):
        return "manifest"
    for layout in ("commonvoice", "table"):
        if tables_of(path, layout, columns):
            return layout
    audios = audio_files(path)
    if any(sidecar_of(audio) for audio in audios):
        return "sidecar"
    return "subtitles" if any(segments_of(audio) for audio in audios) else None


def _recognize_table(path: Path, columns: Columns) -> str | None:
    if path.suffix.lower() == STM:
        return "table"
    header = read_header(path)
    if clips_folder(header):
        return "commonvoice"
    try:
        roles = find_columns(header, columns).keys()
    except InputError:  # reading the table raises the error
        return "table"
    if {"audio", "text"} <= roles:
        return "table"
    return "ljspeech" if path.name == "metadata.csv" and len(header) in (2, 3) and delimiter_of(path) == "|" else None


def tables_of(folder: Path, layout: str, columns: Columns) -> list[Path]:
    """Return the tables of one layout directly inside the folder; unreadable tables are left out."""
    tables = []
    for path in inside(folder, TABLE_SUFFIXES | {STM}):
        with contextlib.suppress(InputError):
            tables += [path] if _recognize_table(path, columns) == layout else []
    return tables


def inside(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Return the files with one of `suffixes` directly inside the folder, sorted."""
    files = (path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
    return sorted(path for path in files if path.is_file())


def clips_folder(header: list[str]) -> str | None:
    """Return the folder of a Common Voice table's clips; None if it is no such table."""
    return next((folder for names, folder in COMMON_VOICE_COLUMNS.items() if names.issubset(header)), None)


def sidecar_of(audio: Path) -> Path | None:
    """Return the text file of a recording, if there is one."""
    suffixes = (form for suffix in SIDECAR_SUFFIXES for form in (suffix, suffix.upper()))
    files = (path for path in map(audio.with_suffix, suffixes) if path.is_file())
    return next((path for path in files if not is_labels(path)), None)


def manifests_of(folder: Path, columns: Columns) -> list[Path]:
    """Return the manifests directly inside a folder: manifest.jsonl, which is complete, or else every manifest.

    A .json with the name of a recording is its text, not a manifest.
    """
    if (folder / "manifest.jsonl").is_file():
        return [folder / "manifest.jsonl"]
    sounds = {path.stem for path in inside(folder, AUDIO_SUFFIXES)}
    listed = inside(folder, MANIFEST_SUFFIXES)
    alone = [path for path in listed if path.suffix.lower() != ".json" or path.stem not in sounds]
    alone.sort(key=lambda path: path.stem.casefold() == "all")  # last: train.jsonl and test.jsonl determine the split
    return [path for path in alone if _is_manifest(path, columns)]


def _is_manifest(path: Path, columns: Columns) -> bool:
    """Return whether the first object of a file names a recording; an object in a .json also needs a text."""
    try:
        first = first_object(path) or {}
        found = find_columns(first, columns)
    except InputError:
        return False
    audio = first.get(found["audio"].name) if "audio" in found else None
    return isinstance(audio, (str, dict)) and (path.suffix.lower() != ".json" or "text" in found)
