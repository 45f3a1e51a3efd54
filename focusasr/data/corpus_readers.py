"""One reader per corpus layout, from files on disk to utterances."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from focusasr.audio.source import Source
from focusasr.data.columns import NAMES, Columns, find_columns, require_roles, unique_names
from focusasr.data.corpus import (
    SPLIT,
    CorpusItems,
    CorpusUtterance,
    Reject,
    audio_files,
    checked,
    each,
    existing,
    locate,
    name_in_corpus,
    recordings_below,
)
from focusasr.data.corpus_layouts import (
    BY_NAME,
    STM,
    clips_folder,
    detect_layout,
    manifests_of,
    recognize,
    sidecar_of,
    tables_of,
)
from focusasr.data.csv_tables import read_header, read_lines, read_rows
from focusasr.data.json_rows import read_objects
from focusasr.data.kaldi import read_kaldi
from focusasr.data.lhotse import read_lhotse
from focusasr.data.manifest import Utterance
from focusasr.data.nist_files import parse_stm
from focusasr.data.rows import Row, Table, is_nemo, read_rows_of
from focusasr.data.segment_files import read_segments, segments_of
from focusasr.data.unpack import is_packed, packed_below, packed_in, split_of, unpack
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import parse_json

COMMON_VOICE_SPLITS = ("train", "dev", "test")
HTK = re.compile(r"\s*\d+ \d{5,} \S")  # a label with times
TIMIT = re.compile(r"^0 \d{4,} (?=.*\s*$)")  # TIMIT's prompts begin with the sample range of the recording
TARRED_KEYS = frozenset(("shard_id", "tar_filepath", "tarred_audio_filepaths"))


def read_corpora(
    inputs: Iterable[str | Path],
    layout: str = "auto",
    columns: Columns | None = None,
    scratch: Path | None = None,
) -> CorpusItems:
    """Yield every utterance and every reject of the inputs (folders or files), in their order.

    Runs of white space in texts become one space. Rejects: empty texts, duplicates (same part of the same file, same
    text), and whole recordings with several texts. Archives are unpacked into `scratch`. InputError if an input is
    missing or its layout is not recognized.
    """
    columns = columns or Columns()
    seen: dict[tuple[Source, str], str] = {}
    recordings_below.cache_clear()
    found = (one for given in inputs for one in _read_input(existing(given), layout, columns, scratch))
    items = list(each(found, lambda one: checked(one, seen)))
    texts: dict[Source, list[str]] = {}  # of whole recordings, which only times could separate
    for one in items:
        if isinstance(one, CorpusUtterance) and _is_whole(one):
            texts.setdefault(one.source(None), []).append(one.where)
    yield from each(items, lambda one: _without_conflict(one, texts))


def _read_input(path: Path, layout: str, columns: Columns, scratch: Path | None) -> CorpusItems:
    """Read a folder or file, or each archive of an archive list or of a folder that has only archives."""
    packed = [path] if is_packed(path) else packed_in(path)
    kind = None if packed else layout
    if kind == "auto":
        kind = recognize(path, columns)
        packed = packed_below(path) if kind is None and path.is_dir() else []
    if not packed:
        yield from READERS[kind or detect_layout(path, columns)](path, columns)
        return
    if scratch is None:
        raise InputError(f"{packed[0]}: is an archive, and there is no folder to unpack it into. Unpack it first.")
    splits = {archive: split_of(archive) for archive in packed}
    for archive in packed:
        folder = unpack(archive, scratch, columns)
        kind = detect_layout(folder, columns) if layout == "auto" else layout
        split = splits[archive] if len(set(splits.values())) > 1 else ""
        yield from each(READERS[kind](folder, columns), functools.partial(_of_archive, archive=archive, split=split))


def _of_archive(found: CorpusUtterance, archive: Path, split: str) -> CorpusUtterance:
    return replace(found.of_split(split), name=f"{archive.name.partition('.')[0]}/{found.name}")


def _without_conflict(one: CorpusUtterance, texts: dict[Source, list[str]]) -> CorpusUtterance:
    other = next((where for where in texts.get(one.source(None), ()) if where != one.where), None)
    if _is_whole(one) and other:
        reason = f"{one.where}: {one.audio.name} has another text in {other}. Add start and end of each."
        raise one.reject("several texts", reason)
    return one


def _is_whole(one: CorpusUtterance) -> bool:
    return not one.utterance.offset and one.utterance.duration is None


# Audio with texts of the same name


def _read_beside(path: Path, columns: Columns, subtitles: bool = False) -> CorpusItems:
    """Read the text of each recording: .txt, .lab, .json with a text and other keys, or subtitles.

    If a recording has both, the text is used, or with `subtitles` the subtitles.
    """
    root = path if path.is_dir() else path.parent
    for audio in audio_files(path):
        sidecar, cues, name = sidecar_of(audio), segments_of(audio), name_in_corpus(audio, root)
        if cues and (subtitles or not sidecar):
            yield from read_segments(audio, cues, name)
        elif sidecar:
            try:
                text, extra = _sidecar_text(sidecar, columns)
            except InputError as error:
                yield Reject("unreadable text", str(error), audio)
                continue
            yield CorpusUtterance(Utterance(audio, text, extra=extra), name, str(sidecar))
        else:
            forms = ", ".join((audio.with_suffix(BY_NAME[0]).name, *BY_NAME[1:]))
            yield Reject("no text", f"{audio}: no text file has its name; expected {forms}", audio)


def _sidecar_text(path: Path, columns: Columns) -> tuple[str, dict[str, Any]]:
    whole = "".join(read_lines(path))
    if path.suffix.lower() != ".json":
        if path.suffix.lower() == ".lab" and HTK.match(whole):
            raise InputError(f"{path}: labels with times in 100 ns (HTK). Write the words alone, or times in seconds.")
        return TIMIT.sub("", whole), {}
    try:
        extra = parse_json(whole)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    texts = [key for key, value in extra.items() if isinstance(value, str)] if isinstance(extra, dict) else []
    column = find_columns(texts, columns).get("text")
    if column is None:
        keys = columns.text or " or ".join(NAMES["text"])
        raise InputError(f"{path}: expected an object with a text under {keys}; --text-column names it")
    key = column.name
    others = {k: v for k, v in extra.items() if k not in (key, "audio_filepath", "offset", "duration", "segments")}
    return extra[key], {("source_text" if k == "text" else k): v for k, v in others.items()}


# Tables with a header, including Common Voice


def _read_tables(path: Path, columns: Columns) -> CorpusItems:
    tables = tables_of(path, "table", columns) if path.is_dir() else [path]
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        yield from _read_stm(table, split) if table.suffix.lower() == STM else _read_table(table, columns, split)


def _read_common_voice(path: Path, columns: Columns) -> CorpusItems:
    """Read one TSV, or a folder's train, dev and test; other tables contain duplicates or rejected clips."""
    tables = [path]
    if path.is_dir():
        every = tables_of(path, "commonvoice", columns)
        splits = [table for table in every if table.stem in COMMON_VOICE_SPLITS]
        tables = splits or [table for table in every if table.stem == "validated"] or every
    for table in tables:
        split = table.stem if len(tables) > 1 else None
        yield from _read_table(table, columns, split, clips_folder(read_header(table)) or "clips")


def _read_table(path: Path, columns: Columns, split: str | None = None, clips: str = "") -> CorpusItems:
    names = read_header(path)
    table = Table(path, path.parent / clips, require_roles(names, columns, path), split)
    yield from read_rows_of(table, _cells(path, names))


def _cells(path: Path, names: list[str]) -> Iterator[tuple[str, Row | str]]:
    """Yield the non-empty cells of each row, by column; repeated headers, as in concatenated tables, are skipped."""
    for number, fields in itertools.islice(read_rows(path), 1, None):
        where = f"{path}, line {number}"
        if isinstance(fields, str):
            yield where, fields
        elif [field.strip() for field in fields] == names:
            continue
        elif len(fields) != len(names):
            yield where, f"{len(fields)} fields, but {len(names)} in the header"
        else:
            pairs = zip(unique_names(names), fields, strict=True)
            yield where, {name: cell for name, cell in pairs if name and cell.strip()}


def _read_stm(path: Path, split: str | None) -> CorpusItems:
    """Read NIST's STM; its lines name recordings without suffix, in the same folder or a direct subfolder."""
    names = ("audio", "channel", "speaker", "start", "end", "text")
    lines = parse_stm([line.rstrip("\r\n") for line in read_lines(path)], path)
    rows: list[tuple[str, Row | str]] = []
    for line in lines:
        if isinstance(line, str):
            rows.append((str(path), line.removeprefix(f"{path}, ")))
        elif not line.is_ignored:
            cells = (line.name, line.channel, line.speaker, line.begin, line.end, line.text)
            found = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
            rows.append((f"{path}, line {line.number}", found))
    yield from read_rows_of(Table(path, path.parent, find_columns(names, Columns()), split), rows)


# LibriSpeech, LJSpeech, manifests


def _read_librispeech(path: Path, columns: Columns) -> CorpusItems:
    """Read SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, lines of an id and its text; the audio is in the same folder."""
    root = path if path.is_dir() else path.parent
    for transcript in sorted(path.rglob("*.trans.txt")) if path.is_dir() else [path]:
        speaker, chapter = transcript.parent.parent.name, transcript.parent.name
        above = transcript.relative_to(root).parts[:-3]  # the subset, such as train-clean-100, in a folder of several
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
    """Read metadata.csv, lines of ID|TEXT|NORMALIZED TEXT without header or quoting; the audio is in wavs/."""
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
    manifests = manifests_of(path, columns) if path.is_dir() else [path]
    for manifest in manifests:
        rows = list(read_objects(manifest))
        objects = [(where, row) for where, row in rows if isinstance(row, dict)]
        for where, row in objects:
            if not TARRED_KEYS.isdisjoint(row):
                raise InputError(
                    f"{where}: tarred, its audio is inside archives. Unpack them (tar -xf) and use the manifest "
                    "whose audio_filepath names the files."
                )
        names = dict.fromkeys(itertools.chain.from_iterable(row for _, row in objects))
        found = require_roles(names, columns, manifest, without=() if columns.text else ("text",))
        split = manifest.stem if len(manifests) > 1 else None
        yield from read_rows_of(Table(manifest, manifest.parent, found, split, is_nemo(found)), rows)


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
