"""Results of corpus readers, and the search for files named in corpora."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TypeVar

from focusasr.audio.source import AUDIO_SUFFIXES, Source, find_sources
from focusasr.data.manifest import Utterance
from focusasr.runtime.errors import InputError

SPLIT = re.compile("train|dev|valid|test", re.IGNORECASE)  # names of folders and files of a split


@dataclass(frozen=True)
class CorpusUtterance:
    """One utterance of a corpus, its audio not yet opened.

    `name` is its path inside the corpus, with `/` and without suffix; several utterances may share it. `where` is the
    file and line that define it.
    """

    utterance: Utterance
    name: str
    where: str
    told_seconds: float | None = None  # length according to the corpus, compared with the audio

    @property
    def audio(self) -> Path:
        """The file of the utterance."""
        return self.utterance.audio

    def source(self, channel: int | None) -> Source:
        """Return the source to load: the given `channel`, or else the one that the corpus names."""
        meant = self.utterance.source
        return meant if channel is None else replace(meant, channel=channel)

    def of_split(self, split: str) -> CorpusUtterance:
        """Return the utterance with a split, unless that is empty or it has its own."""
        extra = {"split": split, **self.utterance.extra} if split else self.utterance.extra
        return replace(self, utterance=replace(self.utterance, extra=extra))

    def reject(self, kind: str, reason: str) -> Reject:
        return Reject(kind, reason, self.audio, self.utterance.text)


@dataclass(eq=False)
class Reject(Exception):
    """An item that cannot become an utterance: its kind (one of few, for counting) and the reason in one line."""

    kind: str
    reason: str
    audio: Path | None = None
    text: str = ""


CorpusItems = Iterator[CorpusUtterance | Reject]
T = TypeVar("T")
U = TypeVar("U")


def each(items: Iterable[T | Reject], step: Callable[[T], U]) -> Iterator[U | Reject]:
    """Yield the result of a step for each item; a reject that the step raises takes the item's place."""
    for item in items:
        try:
            yield item if isinstance(item, Reject) else step(item)
        except Reject as reject:
            yield reject


def locate(folder: Path, name: str) -> Path:
    """Return the file that a corpus names: as written, in another Unicode form, with `/` for `\\`, or with a suffix.

    A bare name also matches a file in a direct subfolder, if there is exactly one. If nothing matches, the result is
    the path as written, and loading it raises the error.
    """
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name), name.replace("\\", "/")):
        if os.path.isfile(folder / form):  # False, not an error, for an impossible name
            return folder / form
    if PurePath(name).suffix.lower() not in AUDIO_SUFFIXES:
        for suffix in sorted(AUDIO_SUFFIXES):
            if os.path.isfile(folder / f"{name}{suffix}"):
                return folder / f"{name}{suffix}"
    bare = folder != Path() and PurePath(name).name == name  # no search below the working folder
    below = recordings_below(folder).get(unicodedata.normalize("NFC", name), ()) if bare else ()
    return below[0] if len(below) == 1 else folder / name


def locate_from_anywhere(folder: Path, name: str) -> Path:
    """Return the file of `locate`, or else the one from the working folder, where other tools were run."""
    named = locate(folder, name)
    return named if named.is_file() else locate(Path(), name).absolute()


@functools.lru_cache(maxsize=16)  # cleared before each run
def recordings_below(folder: Path) -> dict[str, list[Path]]:
    """Return the recordings in the direct subfolders of a folder, by name and by stem."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*")) if folder.is_dir() else ():
        if path.suffix.lower() in AUDIO_SUFFIXES:
            for name in (path.name, path.stem):
                found.setdefault(unicodedata.normalize("NFC", name), []).append(path)
    return found


def name_in_corpus(audio: Path, root: Path) -> str:
    """Return the path relative to the corpus's root, without suffix, and without `..` for files outside."""
    path = PurePath(os.path.relpath(audio, root))
    stem = path.with_suffix("") if path.suffix.lower() in AUDIO_SUFFIXES else path
    return "/".join(part for part in stem.parts if part != "..")


def existing(given: str | Path) -> Path:
    path = Path(given).absolute()
    if not path.exists():
        raise InputError(f"{given}: no such file or folder. Name a corpus folder, a table, a manifest or a recording.")
    return path


def checked(found: CorpusUtterance, seen: dict[tuple[Source, str], str]) -> CorpusUtterance:
    utterance = replace(found.utterance, text=" ".join(found.utterance.text.split()))
    told = utterance.duration if found.told_seconds is None else found.told_seconds
    found = replace(found, utterance=utterance, told_seconds=told)
    if not utterance.text:
        raise found.reject("empty text", f"{found.where}: the text is empty")
    first = seen.setdefault((found.source(None), utterance.text), found.where)
    if first is not found.where:
        raise found.reject("duplicate", f"{found.where}: the same audio with the same text as {first}")
    return found


def audio_files(path: Path) -> list[Path]:
    try:
        sources = find_sources([str(path)])
    except InputError:  # a folder without audio
        return []
    return [Path(source.path) for source in sources if not Path(source.path).name.startswith(".")]
