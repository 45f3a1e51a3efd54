"""Kaldi data folders: wav.scp, text, segments, utt2spk; commands are never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from focusasr.data.columns import to_seconds
from focusasr.data.corpus import CorpusItems, CorpusUtterance, Reject, locate_from_anywhere, name_in_corpus
from focusasr.data.csv_tables import read_lines
from focusasr.data.manifest import Utterance
from focusasr.runtime.errors import InputError

EXTRA_MAPS = {"utt2spk": "speaker", "utt2lang": "language"}  # file → key


def is_kaldi(folder: Path) -> bool:
    """Return whether a folder holds wav.scp and text."""
    return all((folder / name).is_file() for name in ("wav.scp", "text"))


def read_kaldi(folder: Path) -> CorpusItems:
    """Yield every utterance of `text`; utterances with a pipe, or without a recording, become rejects."""
    recordings = {key: (value, where) for key, value, where in _entries(folder / "wav.scp")}
    segments = None
    if (folder / "segments").is_file():
        segments = {key: (value, where) for key, value, where in _entries(folder / "segments")}
    maps = {
        key: {name: value for name, value, _ in _entries(folder / file)}
        for file, key in EXTRA_MAPS.items()
        if (folder / file).is_file()
    }
    for utterance, text, where in _entries(folder / "text"):
        extra = {"id": utterance, **{key: known[utterance] for key, known in maps.items() if utterance in known}}
        try:
            recording, begin, length = _part(utterance, segments, where)
            command, line = recordings.get(recording, ("", ""))
            if not command:
                raise InputError(f"{where}: {recording} is not in wav.scp")
            audio = _file(folder, command, line)
        except InputError as error:
            yield Reject("broken row", str(error), text=text)
            continue
        found = Utterance(audio, text, begin, length, extra)
        yield CorpusUtterance(found, name_in_corpus(audio, folder), where)


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split(maxsplit=1)
        if parts:
            yield parts[0], parts[1].strip() if len(parts) > 1 else "", f"{path}, line {number}"


def _part(utterance: str, segments: dict[str, tuple[str, str]] | None, where: str) -> tuple[str, float, float | None]:
    """Return an utterance's recording, start and length; an end of -1 is the recording's."""
    if segments is None:
        return utterance, 0.0, None
    if utterance not in segments:
        raise InputError(f"{where}: {utterance} is not in segments")
    value, where = segments[utterance]
    fields = value.split()
    if len(fields) != 3:
        raise InputError(f"{where}: expected UTTERANCE RECORDING BEGIN END, got {utterance} {value}")
    begin = to_seconds(fields[1], "begin", where) or 0.0
    if fields[2] == "-1":
        return fields[0], begin, None
    end = to_seconds(fields[2], "end", where) or 0.0
    if end <= begin:
        raise InputError(f"{where}: the end ({end:g} s) is not after the begin ({begin:g} s)")
    return fields[0], begin, round(end - begin, 6)


def _file(folder: Path, value: str, where: str) -> Path:
    """Return the file that a line of wav.scp names; InputError for a command or a part of an archive."""
    if value.endswith("|") or value.startswith("|"):
        raise InputError(f"{where}: {value[:60]!r} is a command, and commands in corpora are not run. Write its output "
                         "to files and name these in wav.scp.")  # fmt: skip
    named = locate_from_anywhere(folder, value)
    if not named.is_file() and ".ark:" in value:
        raise InputError(f"{where}: {value!r} is a part of an archive. Copy it out (wav-copy) and name the files.")
    return named
