"""Audio sources: files, folders, globs, standard input, memory, or segments of recordings."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from focusasr.audio.integrity import AudioError
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.files import real_path
from focusasr.runtime.settings import LONGEST_SECONDS

if TYPE_CHECKING:
    import numpy as np


AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4 "
    ".mpeg .mpg .mpga .oga .ogg .ogv .opus .ra .rf64 .snd .sph .spx .tta .voc .w64 .wav .wave .weba .webm .wma .wmv "
    ".wv".split()
)
STDIN = "-"
MOST_PEAK = 100.0  # of samples in memory, which are meant to be between -1 and 1
JOINERS = "\u200c\u200d"  # in Persian words and in emoji


@dataclass(frozen=True, eq=False)
class MemoryAudio:
    """Audio in memory: the bytes of a recording, an open binary file, or mono samples (N,) float32.

    A file is read from its start and must be seekable, since it may be read several times. `rate_hz` is the sample
    rate of samples.
    """

    content: bytes | BinaryIO | np.ndarray
    rate_hz: int = SAMPLE_RATE_HZ

    @classmethod
    def of(cls, audio: Any, rate_hz: int | None = None) -> MemoryAudio:
        """Return audio in memory from bytes, a binary file, or a NumPy array or PyTorch tensor (N,) of floats.

        A file that is not seekable, such as a network response, is read into memory.

        InputError for other types, for samples that are not floats or have several channels, and for `rate_hz` with a
        recording, which has its own rate.
        """
        if hasattr(audio, "is_floating_point"):  # a tensor on any device
            audio = (audio.float() if audio.is_floating_point() else audio).detach().cpu().numpy()
        if hasattr(audio, "__array_interface__"):
            return cls(_mono_floats(audio), SAMPLE_RATE_HZ if rate_hz is None else rate_hz)
        if rate_hz is not None:
            raise InputError(f"sampling_rate is {quote(rate_hz)}: only arrays of samples need it. Leave it out.")
        if isinstance(audio, (bytes, bytearray, memoryview)):
            return cls(bytes(audio))
        if not hasattr(audio, "read"):
            kinds = "a path, bytes, a binary file, or an array of samples"
            raise InputError(f"audio: cannot be of type {type(audio).__name__}. Give {kinds}.")
        if not isinstance(audio.read(0), bytes):
            raise InputError("audio: the file is open in text mode. Open it with mode 'rb'.")
        seekable = hasattr(audio, "readinto") and hasattr(audio, "seekable") and audio.seekable()
        return cls(audio if seekable else audio.read())


def _mono_floats(samples: np.ndarray) -> np.ndarray:
    import numpy as np

    if samples.ndim != 1:
        raise InputError(
            f"audio: expected one channel (N,), got shape {samples.shape}. Choose a channel, or average them."
        )
    if samples.dtype.kind != "f":
        scaled = "Convert it to float32 between -1 and 1: divide int16 by 32768."
        raise InputError(f"audio: expected float32 samples, got {samples.dtype}. {scaled}")
    if MOST_PEAK <= (peak := max(samples.max(initial=0.0), -samples.min(initial=0.0))) < np.inf:
        raise InputError(f"audio: samples reach {peak:g}; expected: -1 to 1. Divide samples of 16 bits by 32768.")
    return np.ascontiguousarray(samples, np.float32)


@dataclass(frozen=True)
class Source:
    """A recording, or `duration` seconds of it from `offset`; `path` is a file name, or "-" for standard input.

    `channel` is counted from 0; None is the mean of all. `track` is an audio track, counted from 0; None is the file's
    default track, or else the first. With `memory`, that audio is read, and `path` is only its name.
    """

    path: str
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None
    track: int | None = None
    memory: MemoryAudio | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("offset", self.offset), ("duration", self.duration)):
            if seconds is not None and not 0 <= seconds <= LONGEST_SECONDS:
                raise AudioError(f"{self.name}: {name} is {seconds}; expected: seconds, 0 to {LONGEST_SECONDS:g}")

    @property
    def name(self) -> str:
        """Return the path for messages, quoted if it has unprintable characters."""
        if self.is_stdin:
            return "standard input"
        plain = all(sign.isprintable() or sign in JOINERS or unicodedata.category(sign) == "Zs" for sign in self.path)
        return self.path if self.path and plain else repr(self.path)

    @property
    def is_stdin(self) -> bool:
        """Return whether the source is standard input."""
        return self.memory is None and self.path == STDIN

    @property
    def is_samples(self) -> bool:
        """Return whether the source is samples in memory, not a recording in a format."""
        return self.memory is not None and hasattr(self.memory.content, "__array_interface__")

    @property
    def is_repeatable(self) -> bool:
        """Return whether the source can be opened again: a regular file or memory, not a pipe."""
        return self.memory is not None or os.path.isfile(self.path)


def find_sources(
    inputs: Iterable[str],
    repeated: Callable[[Source], object] = lambda source: None,
    barren: Callable[[InputError], object] | None = None,
) -> list[Source]:
    """Return the recordings for files, folders, globs and "-", in the order given, each path once.

    A folder gives every file in and below it with an audio suffix, sorted, without hidden ones; a glob its matches,
    sorted. A name that exists is never a glob. A missing file stays in the list, so that it fails alone and later.

    `repeated` receives the duplicates. `barren`, if given, receives the errors of folders and globs without recordings
    as long as others have some. InputError if a folder or glob, or the whole list, has no recordings.
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
    for nothing in wrong:
        if barren is None or not found:
            raise nothing
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
    once: dict[str, str | None] = {}  # ** matches a file, its folder, and circular links
    for match in matches:
        if folder := os.path.isdir(match):
            once[real_path(match)] = None
        for path in _files_below(match) if folder else [match]:
            once.setdefault(real_path(path), path)
    if not (paths := [path for path in once.values() if path]):
        raise InputError(f"{Source(name).name}: no recordings in the folders that match; check the pattern")
    return paths


def _files_below(folder: str) -> list[str]:
    paths: dict[str, str] = {}  # by real path, since several links may point to one folder
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
