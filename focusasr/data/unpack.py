"""Unpacking of archives (tar, zip) and columnar files (parquet, arrow)."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from focusasr.audio.integrity import FIRST_BYTES
from focusasr.audio.source import AUDIO_SUFFIXES
from focusasr.data.columns import Columns, require_roles
from focusasr.data.corpus import SPLIT, locate
from focusasr.data.corpus_layouts import BY_NAME, MANIFEST_SUFFIXES, STM, TABLE_SUFFIXES
from focusasr.data.csv_tables import first_line, read_lines
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.files import fitting, unwritable
from focusasr.runtime.libraries import install_command

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
COLUMNAR = (".parquet", ".arrow")
TEXTS = {suffix.lower() for suffix in (*BY_NAME, *TABLE_SUFFIXES, *MANIFEST_SUFFIXES, STM)}
KALDI = {"text", "segments", "wav.scp", "utt2spk", "utt2lang"}
BATCH_ROWS = 100


def is_packed(path: Path) -> bool:
    """Return whether a file is an archive or a columnar file, by its name."""
    return path.name.lower().endswith((*ARCHIVES, *COLUMNAR)) and os.path.isfile(path)


def packed_below(folder: Path) -> list[Path]:
    """Return the archives and columnar files in a folder and below it, sorted."""
    packed = sorted(path for path in folder.rglob("*") if is_packed(path))
    return [path for path in packed if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def packed_in(path: Path) -> list[Path]:
    """Return the archives that a file lists, one per line, as in WeNet's shards.list; none for other files."""
    if path.suffix.lower() != ".list" or not path.is_file() or first_line(path).lstrip().startswith(("{", "[")):
        return []
    named = [line.strip() for line in read_lines(path) if line.strip()]
    found = [place if os.path.isfile(place) else Path(name) for name in named for place in [path.parent / name]]
    for archive in found:
        if not is_packed(archive):
            raise InputError(f"{path}: lists {quote(str(archive))}, which is no archive. Correct the line.")
    return found


def split_of(archive: Path) -> str:
    """Return the split in a shard's name (train-00000-of-00002.parquet) or its folder's name; "" if there is none."""
    stem = re.split(r"[-_.]?\d|\.", archive.name)[0].rstrip("-_")
    return next((name for name in (stem, archive.parent.name) if SPLIT.search(name)), "")


def unpack(path: Path, folder: Path, columns: Columns) -> Path:
    """Unpack a file into its own folder inside `folder`; return that folder, or its only subfolder.

    InputError if it cannot be read. Files keep the time of `path`, so that a later run recognizes them.
    """
    target = folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12] / fitting(path.name)
    with _readable(path, target):
        target.mkdir(parents=True, exist_ok=True)
        if path.name.lower().endswith(COLUMNAR):
            _unpack_rows(path, target, columns)
        else:
            _unpack_files(path, target)
        when = path.stat().st_mtime_ns
        for file in target.rglob("*"):
            os.utime(file, ns=(when, when))
    while len(inside := list(target.iterdir())) == 1 and inside[0].is_dir():
        target = inside[0]
    return target


@contextmanager
def _readable(path: Path, target: Path) -> Iterator[None]:
    damage = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)
    try:
        yield
    except (OSError, *damage) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unwritable(target, error, "choose another folder with --output-dir") from None
        raise InputError(f"{path}: cannot be unpacked ({error}). Copy it again, or unpack it yourself.") from None


def _unpack_files(path: Path, target: Path) -> None:
    for name, file in _members(path):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as out:
            shutil.copyfileobj(file, out)


def _members(path: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Yield the recordings and texts of an archive with paths inside it; links and other files are skipped."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            for info in zipped.infolist():
                if (name := _inside(info.filename)) and not info.is_dir():
                    with zipped.open(info) as unzipped:
                        yield name, unzipped
        return
    with tarfile.open(path, "r|*") as tarred:
        for member in tarred:
            file = tarred.extractfile(member) if member.isfile() else None
            if file and (name := _inside(member.name)):
                yield name, file


def _inside(name: str) -> PurePosixPath | None:
    """Return a member's path if it is a recording or text; None for others, and for paths outside the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    known = path.suffix.lower() in AUDIO_SUFFIXES or path.suffix.lower() in TEXTS or path.name in KALDI
    outside = path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name)
    return path if known and not outside and not path.name.startswith(".") else None


# Parquet and arrow files as written by the datasets library


def _unpack_rows(path: Path, target: Path, columns: Columns) -> None:
    """Write the recordings of a columnar file into a folder, with a rows.jsonl that names them."""
    with (target / "rows.jsonl").open("w", encoding="utf-8") as out:
        audio = ""
        for number, row in enumerate(_rows(path)):
            audio = audio or require_roles(row, columns, path)["audio"].name
            row[audio] = _audio_of(row[audio], path, target / f"{number:06}")
            kept = {name: value for name, value in row.items() if not isinstance(value, bytes)}
            out.write(json.dumps(kept, ensure_ascii=False, default=str) + "\n")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        kind = path.suffix.lower().removeprefix(".")
        raise InputError(f"{path}: {kind} needs pyarrow. Install it: {install_command('data')}") from None
    try:
        if path.suffix.lower() == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                    yield from batch.to_pylist()
            return
        with pyarrow.memory_map(str(path)) as source:
            for batch in _batches(source):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}). Copy it again.") from None


def _batches(source: Any) -> Iterator[Any]:
    """Yield the batches of an arrow file, in the stream format of datasets or in the file format."""
    import pyarrow

    try:
        yield from pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def _audio_of(value: Any, path: Path, place: Path) -> Any:
    """Return the name of the recording in a cell; if the cell holds the audio itself, write it to `place`."""
    name = value.get("path") if isinstance(value, dict) else value
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        suffix = Path(name).suffix if isinstance(name, str) else ""
        file = place.with_suffix(suffix if suffix.lower() in AUDIO_SUFFIXES else _suffix(data))
        file.write_bytes(data)
        return file.name
    return str(locate(path.parent, name)) if isinstance(name, str) and name else None


def _suffix(data: bytes) -> str:
    return next((suffix for head, suffix in FIRST_BYTES.items() if data.startswith(head)), ".wav")
