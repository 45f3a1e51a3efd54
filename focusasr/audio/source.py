"""Recordings to read: files, folders, globs, standard input, or parts of a recording."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from focusasr.audio.integrity import AudioError
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import real_path
from focusasr.runtime.settings import LONGEST_SECONDS

AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4 "
    ".mpeg .mpg .mpga .oga .ogg .ogv .opus .ra .rf64 .snd .sph .spx .tta .voc .w64 .wav .wave .weba .webm .wma .wmv "
    ".wv".split()
)
STDIN = "-"
JOINERS = "\u200c\u200d"  # of Persian letters, of emoji


@dataclass(frozen=True)
class Source:
    """A recording, or `duration` seconds of it from `offset` on; `path` is a file name, or "-" for standard input.

    `channel` chooses one of several, counted from 0; None is their mean. `track` chooses one of several audio tracks;
    None is the one that the file calls its default, or else the first.
    """

    path: str
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None
    track: int | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("offset", self.offset), ("duration", self.duration)):
            if seconds is not None and not 0 <= seconds <= LONGEST_SECONDS:
                raise AudioError(f"{self.name}: {name} is {seconds}; wanted: seconds, 0 to {LONGEST_SECONDS:g}")

    @property
    def name(self) -> str:
        """The path as it goes into a line of text."""
        if self.path == STDIN:
            return "standard input"
        plain = all(sign.isprintable() or sign in JOINERS or unicodedata.category(sign) == "Zs" for sign in self.path)
        return self.path if self.path and plain else repr(self.path)


def find_sources(
    inputs: Iterable[str],
    repeated: Callable[[Source], object] = lambda source: None,
    barren: Callable[[InputError], object] | None = None,
) -> list[Source]:
    """Return the recordings that files, folders, globs and "-" stand for, in the order given, each path once.

    `repeated` is told of those that are left out because they came before, `barren`, where there is one, of folders and
    globs that stand for nothing, while others stand for something.

    A folder stands for every file in and below it that has a suffix of sound, sorted, hidden ones left out; a glob for
    what it matches, sorted. A name that exists is never taken for a glob. A file that is missing stays in the list, so
    that it fails alone and later. InputError where a folder or glob, or the whole list, stands for nothing.
    """
    found: dict[str, Source] = {}
    wrong: list[InputError] = []
    for name in inputs:
        try:
            paths = _expand(name)
        except InputError as error:
            wrong.append(error)
            continue
        for path in paths:
            source = Source(path)
            if found.setdefault(path if path == STDIN else os.path.abspath(path), source) is not source:
                repeated(source)
    if wrong and (barren is None or not found):
        raise wrong[0]
    if barren is not None:
        for nothing in wrong:
            barren(nothing)
    if not found:
        raise InputError("no recordings given; name files, folders, globs or - for standard input")
    return list(found.values())


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        if not (paths := _files_below(name)):
            looked = "looked for .wav, .flac, .mp3, .m4a and the like"
            raise InputError(f"{Source(name).name}: no recordings in this folder; {looked}")
        return paths
    if name == STDIN or os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    if not (matches := sorted(glob.glob(name, recursive=True))):
        raise InputError(f"{Source(name).name}: nothing matches; check the pattern")
    once: dict[str, str | None] = {}  # ** finds a file by its folder and by itself, and again by links in a circle
    for match in matches:
        if folder := os.path.isdir(match):
            once[real_path(match)] = None
        for path in _files_below(match) if folder else [match]:
            once.setdefault(real_path(path), path)
    if not (paths := [path for path in once.values() if path]):
        raise InputError(f"{Source(name).name}: no recordings in the folders that match; check the pattern")
    return paths


def _files_below(folder: str) -> list[str]:
    paths: dict[str, str] = {}  # by what they are without links, of which several may lead to one folder
    root, been = os.path.realpath(folder), set[str]()

    def leads_elsewhere(link: str) -> bool:
        place = os.path.realpath(link)
        within, around = (os.path.join(one, "") for one in (root, place))
        fresh = place not in been and not around.startswith(within) and not within.startswith(around)
        been.add(place)
        return fresh

    for where, folders, names in os.walk(folder, followlinks=True):
        visible = [name for name in sorted(folders) if not name.startswith(".")]
        linked = [
            name for name in visible if os.path.islink(link := os.path.join(where, name)) and not leads_elsewhere(link)
        ]
        folders[:] = [name for name in visible if name not in linked]
        sounds = (name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."))
        for path in (os.path.join(where, name) for name in sounds):
            paths.setdefault(real_path(path), path)
    return sorted(paths.values(), key=lambda path: Path(path).parts)
