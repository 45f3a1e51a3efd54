"""The one door through which sound enters: any container, rate and number of channels becomes mono float32."""

from __future__ import annotations

import functools
import glob
import math
import os
import shutil
import stat
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from focusasr.config import SAMPLE_RATE_HZ
from focusasr.containers import AudioError, CutOff, Sound, opened
from focusasr.files import real_path
from focusasr.libraries import library
from focusasr.manifest import Utterance
from focusasr.settings import LONGEST_SECONDS, InputError

AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4 "
    ".mpeg .mpg .mpga .oga .ogg .ogv .opus .ra .rf64 .snd .sph .spx .tta .voc .w64 .wav .wave .weba .webm .wma .wmv "
    ".wv".split()
)
STDIN = "-"
JOINERS = "\u200c\u200d"  # of Persian letters, of emoji
WRITER_SECONDS = 2.0  # that a pipe may wait for somebody to write into it

LARGEST_VALUE = 1e15  # its power still fits float32; also false for NaN and infinity


@dataclass(frozen=True)
class Source:
    """A recording, or `duration` seconds of it from `offset` on; `path` is a file name, or "-" for standard input.

    `channel` chooses one of several, counted from 0; None is their mean.
    """

    path: str
    offset: float = 0.0
    duration: float | None = None
    channel: int | None = None

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


def source_of(utterance: Utterance) -> Source:
    """Return what one line of a manifest means: a part of a recording, or of one of its channels."""
    return Source(str(utterance.audio), utterance.offset, utterance.duration, utterance.channel)


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


def load(source: Source | str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Return a whole recording (N,) as mono float32; AudioError where it cannot be read.

    A valid recording may have 0 samples. `duration` past the end gives what there is; `offset` past the end is an
    error, since the line that says so is about another recording.
    """
    return np.concatenate([np.zeros(0, np.float32), *_resampled(_as_source(source), sample_rate_hz)])


def refuse(error: CutOff) -> None:
    """Take no recording that is cut off."""
    raise error


def stream(
    source: Source | str | Path, block_seconds: float = 30.0, cut_off: Callable[[CutOff], object] = refuse
) -> Iterator[np.ndarray]:
    """Yield a recording at 16 kHz in blocks (block_seconds * 16000,), the last shorter, in bounded memory.

    Together the blocks equal `load`, to the bit. AudioError as there, possibly after some blocks; with another
    `cut_off`, which is told why, a recording that is cut off ends where it can be heard no further.
    """
    samples = to_samples(block_seconds, SAMPLE_RATE_HZ)
    return in_blocks(_resampled(_as_source(source), SAMPLE_RATE_HZ, cut_off), samples)


def probe_seconds(path: Source | str | Path) -> float | None:
    """Return a recording's length without decoding it; None where its header does not know or it is no whole file."""
    source = _as_source(path)
    if not os.path.isfile(source.path):
        return None
    try:
        with _file(source) as file, opened(file, source.name) as sound:
            return sound.seconds
    except AudioError:
        return None


def total_seconds(sources: Iterable[Source]) -> float | None:
    """Return how much sound there is in all, by headers and given durations; None where one does not know."""
    total = 0.0
    for source in sources:
        seconds = source.duration
        if seconds is None:
            whole = probe_seconds(source)
            if whole is None:
                return None
            seconds = max(0.0, whole - source.offset)
        total += seconds
    return total


def to_samples(seconds: float, sample_rate_hz: int) -> int:
    """Return the number of samples in a time: the only place where seconds become samples, rounded once."""
    return round(seconds * sample_rate_hz)


def in_blocks(pieces: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """Yield the same samples in blocks of one size, the last one shorter and never empty."""
    held: list[np.ndarray] = []
    missing = block_samples
    for piece in pieces:
        while len(piece) >= missing:
            yield np.concatenate([*held, piece[:missing]])
            held, piece, missing = [], piece[missing:], block_samples
        held.append(piece)
        missing -= len(piece)
    if missing < block_samples:
        yield np.concatenate(held)


def _as_source(source: Source | str | Path) -> Source:
    return source if isinstance(source, Source) else Source(str(source))


def _resampled(source: Source, rate_hz: int, cut_off: Callable[[CutOff], object] = refuse) -> Iterator[np.ndarray]:
    """Yield what a source asks for at the wanted rate, mono, each sample checked."""
    with _file(source) as file, opened(file, source.name) as sound:
        blocks = _up_to_cut(_span(sound, source), cut_off)
        if sound.rate_hz == rate_hz:
            yield from blocks
            return
        with library("soxr"):
            import soxr

        resampler = soxr.ResampleStream(sound.rate_hz, rate_hz, 1, dtype="float32", quality="HQ")
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _up_to_cut(blocks: Iterator[np.ndarray], cut_off: Callable[[CutOff], object]) -> Iterator[np.ndarray]:
    try:
        yield from blocks
    except CutOff as error:
        cut_off(error)


def _span(sound: Sound, source: Source) -> Iterator[np.ndarray]:
    """Yield the samples between a source's offset and its end, at the sound's own rate, and find broken ones."""
    position = start = to_samples(source.offset, sound.rate_hz)
    stop = math.inf if source.duration is None else start + to_samples(source.duration, sound.rate_hz)
    for block in sound.mono_from(start, source.channel):
        block = block[: int(min(len(block), stop - position))]
        if not (fine := np.abs(block) < LARGEST_VALUE).all():
            at = int(np.argmin(fine))
            seen = f"a sample of {block[at]} at {(position + at) / sound.rate_hz:.2f} s"
            raise AudioError(f"{source.name}: {seen} is not sound; export the recording again")
        yield block
        position += len(block)
        if position >= stop:
            break


@contextmanager
def _file(source: Source) -> Iterator[BinaryIO]:
    if source.path == STDIN:
        yield _standard_input()
        return
    try:
        mode = os.stat(source.path).st_mode
    except FileNotFoundError:
        raise AudioError(f"{source.name}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise AudioError(f"{source.name}: cannot be opened ({error}); check the path") from None
    if stat.S_ISDIR(mode):
        raise AudioError(f"{source.name}: a folder, not a recording; name a file in it")
    if stat.S_ISFIFO(mode):
        yield _piped(source.path)
        return
    if not stat.S_ISREG(mode):
        raise AudioError(f"{source.name}: a device, not a file; name a recording, or - for standard input")
    try:
        with open(source.path, "rb") as file:
            yield file
    except OSError as error:
        raise AudioError(f"{source.name}: cannot be read ({error.strerror}); check the file and its rights") from None


@functools.cache
def _standard_input() -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise AudioError("standard input: no recording comes in; pipe one in, as in 'focusasr transcribe - < FILE'")
    return _copied(sys.stdin.buffer, "standard input")


@functools.cache
def _piped(path: str) -> BinaryIO:
    """Copy a named pipe, or that of <(COMMAND); AudioError where nobody opens it to write within WRITER_SECONDS."""
    name = Source(path).name
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which waits for no writer
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror}); check its rights") from None
    with open(pipe, "rb", buffering=0) as file:
        last = time.monotonic() + WRITER_SECONDS
        while (head := file.read(1)) == b"" and time.monotonic() < last:  # None where a writer has sent nothing yet
            time.sleep(0.02)
        if head == b"":
            raise AudioError(f"{name}: nothing comes out of this pipe; start what writes into it, or see why it ended")
        os.set_blocking(pipe, True)
        return _copied(file, name, head or b"")


def _copied(stream: IO[bytes], name: str, head: bytes = b"") -> BinaryIO:
    """Copy what comes in, after its `head`, to a temporary file, so that it can be sought and read again."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        copy.write(head)
        shutil.copyfileobj(stream, copy)
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror}); pipe a recording in") from None
    return copy
