"""Recordings of any format, rate and channel count as mono float32, whole or streamed."""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from focusasr.audio.decoders import Sound, open_audio, open_samples
from focusasr.audio.integrity import AudioError, CutOff
from focusasr.audio.source import MemoryAudio, Source
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.libraries import library

if TYPE_CHECKING:
    import soxr

WRITER_SECONDS = 2.0  # time limit for the first byte from a pipe

RIFF = b"RIFF"
WAV_HEADER_BYTES = 44
MOST_WAV_BYTES = 2**32 - 1 - WAV_HEADER_BYTES  # 37 hours at 16 kHz
COPIED_BYTES = 65_536  # from a pipe at once, at most

LARGEST_VALUE = 1e15  # its power still fits float32; also false for NaN and infinity


def load(source: Source | str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Return a whole recording (N,) as mono float32; AudioError if it cannot be read.

    A valid recording may have 0 samples. A `duration` past the end is shortened; an `offset` past the end is an error,
    since the manifest entry must be for another recording.
    """
    return np.concatenate([np.zeros(0, np.float32), *_resampled(_as_source(source), sample_rate_hz)])


def refuse(error: CutOff) -> None:
    """Raise the error of a truncated recording."""
    raise error


def stream(
    source: Source | str | Path, block_seconds: float = 30.0, cut_off: Callable[[CutOff], object] = refuse
) -> Iterator[np.ndarray]:
    """Yield a recording at 16 kHz in blocks (block_seconds * 16000,), the last shorter, in bounded memory.

    The blocks together equal `load`, bit by bit. AudioError as in `load`, possibly after some blocks. A `cut_off` that
    does not raise receives the error of a truncated recording, and the stream ends at the damage.
    """
    samples = to_samples(block_seconds, SAMPLE_RATE_HZ)
    return rechunk(_resampled(_as_source(source), SAMPLE_RATE_HZ, cut_off), samples)


def probe_seconds(path: Source | str | Path) -> float | None:
    """Return a recording's duration from its header, in seconds; None if the header or the file is incomplete."""
    source = _as_source(path)
    if not source.is_repeatable:
        return None
    try:
        with _opened(source) as sound:
            return sound.seconds
    except AudioError:
        return None


def length_seconds(path: Source | str | Path) -> float:
    """Return a recording's duration, decoded if the header has none, in seconds; InputError if it cannot be read."""
    known = probe_seconds(path)
    return len(load(path)) / SAMPLE_RATE_HZ if known is None else known


def channel_count(source: Source) -> int:
    """Return the number of channels of a recording; AudioError if it cannot be read."""
    with _opened(source) as sound:
        return sound.channels


def total_seconds(sources: Iterable[Source]) -> float | None:
    """Return the total duration by headers and given durations, in seconds; None if one is unknown."""
    total = 0.0
    for source in sources:
        if (seconds := known_seconds(source)) is None:
            return None
        total += seconds
    return total


def known_seconds(source: Source) -> float | None:
    """Return the duration of a source, by its header if it has no end, in seconds; None if that is unknown."""
    whole = probe_seconds(source) if source.duration is None else None
    return source.duration if whole is None else max(0.0, whole - source.offset)


def to_samples(seconds: float, sample_rate_hz: int) -> int:
    """Return seconds as a number of samples, rounded; no other function converts them."""
    return round(seconds * sample_rate_hz)


def rechunk(pieces: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """Yield the same samples in blocks of one size, the last block shorter but never empty."""
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
    """Yield the samples of a source at `rate_hz`, mono and checked."""
    with _opened(source) as sound:
        blocks = _up_to_cut(_span(sound, source), cut_off)
        yield from blocks if sound.rate_hz == rate_hz else resampled(blocks, sound.rate_hz, rate_hz)


def make_resampler(from_hz: int, to_hz: int) -> soxr.ResampleStream:
    """Return a resampler for the blocks of one recording; LibraryError if soxr does not load."""
    with library("soxr"):
        import soxr
    return soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")


def resampled(blocks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """Yield blocks of samples (n,) at another rate."""
    resampler = make_resampler(from_hz, to_hz)
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _up_to_cut(blocks: Iterator[np.ndarray], cut_off: Callable[[CutOff], object]) -> Iterator[np.ndarray]:
    try:
        yield from blocks
    except CutOff as error:
        cut_off(error)


def _span(sound: Sound, source: Source) -> Iterator[np.ndarray]:
    """Yield the samples from a source's offset to its end, at the original rate; AudioError for invalid samples."""
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
def _opened(source: Source) -> Iterator[Sound]:
    memory = source.memory
    if memory is not None and isinstance(memory.content, np.ndarray):
        yield open_samples(memory.content, memory.rate_hz, source.name)
        return
    with _file(source) as file, open_audio(file, source.name, source.track) as sound:
        yield sound


@contextmanager
def _file(source: Source) -> Iterator[BinaryIO]:
    if source.is_stdin:
        yield _standard_input()
        return
    if source.memory is not None:
        yield _in_memory(source.memory, source.name)
        return
    try:
        mode = os.stat(source.path).st_mode
    except FileNotFoundError:
        raise AudioError(f"{source.name}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
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


def _in_memory(memory: MemoryAudio, name: str) -> BinaryIO:
    content = memory.content
    if isinstance(content, bytes):
        return io.BytesIO(content)
    assert not isinstance(content, np.ndarray)
    if content.closed:
        raise AudioError(f"{name}: the file is closed. Keep it open until the transcript is complete.")
    return content


def receive_standard_input(rate_hz: int | None = None, tee: Callable[[bytes], object] = lambda data: None) -> None:
    """Read standard input until its end and keep it as the source "-"; `tee` gets its bytes as they come.

    With `rate_hz` it is raw 16-bit mono samples, unless it is a WAV file. AudioError if there is no input.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise AudioError("standard input: no recording comes in; pipe one in, as in 'focusasr transcribe - < FILE'")
    _received.append(_copied(sys.stdin.buffer, "standard input", rate_hz=rate_hz, tee=tee))


_received: list[BinaryIO] = []  # standard input, once it was read


def _standard_input() -> BinaryIO:
    if not _received:
        receive_standard_input()
    return _received[0]


@functools.cache
def _piped(path: str) -> BinaryIO:
    """Copy a named pipe or a <(COMMAND); AudioError if no data arrives within WRITER_SECONDS."""
    name = Source(path).name
    try:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without waiting for a writer
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror}); check its rights") from None
    with open(pipe, "rb", buffering=0) as file:
        last = time.monotonic() + WRITER_SECONDS
        while (head := file.read(1)) == b"" and time.monotonic() < last:  # None if a writer has sent nothing yet
            time.sleep(0.02)
        if head == b"":
            raise AudioError(f"{name}: nothing comes out of this pipe; start what writes into it, or see why it ended")
        os.set_blocking(pipe, True)
        return _copied(file, name, head or b"")


def _copied(
    stream: Any,
    name: str,
    head: bytes = b"",
    rate_hz: int | None = None,
    tee: Callable[[bytes], object] = lambda data: None,
) -> BinaryIO:
    """Copy `head` and the rest of a stream to a temporary file, which is seekable; raw samples get a header."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    read = getattr(stream, "read1", stream.read)
    try:
        while len(head) < len(RIFF) and (data := read(COPIED_BYTES)):
            head += data
        raw = rate_hz is not None and not head.startswith(RIFF)
        copy.write(_wav_header(rate_hz, 0) if raw and rate_hz else b"")
        data = head
        while data:
            copy.write(data)
            tee(data)
            data = read(COPIED_BYTES)
        if raw and rate_hz:
            size = copy.tell() - WAV_HEADER_BYTES
            copy.seek(0)
            copy.write(_wav_header(rate_hz, size // 2 * 2))
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error}); pipe a recording in") from None
    return copy


def _wav_header(rate_hz: int, size: int) -> bytes:
    """Return the header of a WAV file with `size` bytes of 16-bit mono samples."""
    shape = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    size = min(size, MOST_WAV_BYTES)
    return (
        struct.pack("<4sI4s", RIFF, size + WAV_HEADER_BYTES - 8, b"WAVE") + shape + struct.pack("<4sI", b"data", size)
    )
