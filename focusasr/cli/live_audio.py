"""Live audio from a microphone, a pipe, or a file in real time."""

from __future__ import annotations

import queue
import sys
import time
import wave
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol, cast

import numpy as np
import soxr

from focusasr.audio.load import stream
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError

BLOCK_SECONDS = 0.1
SILENT_SECONDS = 5.0  # without a block until a microphone counts as lost
INT16 = 32768.0


def played(path: str) -> Iterator[np.ndarray]:
    """Yield a recording at 16 kHz in blocks (n,), each at its time in the recording."""
    start, seconds = time.monotonic(), 0.0
    for block in stream(path, BLOCK_SECONDS):
        seconds += len(block) / SAMPLE_RATE_HZ
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        yield block


def pipe(rate_hz: int) -> Iterator[np.ndarray]:
    """Yield standard input at 16 kHz: a 16-bit WAV file, or raw 16-bit mono samples at `rate_hz`."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise InputError("standard input: no audio. Pipe WAV or raw 16-bit PCM in.")
    raw = _Pipe(sys.stdin.buffer)
    if raw.peek(4) != b"RIFF":
        return resampled(_pcm(iter(lambda: raw.read(2 * round(rate_hz * BLOCK_SECONDS)), b""), 1), rate_hz)
    try:
        sound = wave.open(cast(BinaryIO, raw), "rb")  # noqa: SIM115 - standard input stays open
    except (wave.Error, EOFError) as error:
        raise InputError(f"standard input: this WAV cannot be read ({error}). Send 16-bit PCM.") from None
    if sound.getsampwidth() != 2:
        raise InputError(f"standard input: WAV of {8 * sound.getsampwidth()} bits. Send 16-bit PCM.")
    rate = sound.getframerate()
    frames = max(1, round(rate * BLOCK_SECONDS))
    return resampled(_pcm(iter(lambda: sound.readframes(frames), b""), sound.getnchannels()), rate)


class _Pipe:
    """A pipe with a look at its first bytes; it cannot be sought."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._head, self._at = file, b"", 0

    def peek(self, count: int) -> bytes:
        """Return the first bytes without consuming them."""
        self._head = self._file.read(count)
        return self._head

    def read(self, count: int) -> bytes:
        """Return `count` bytes, fewer only at the end."""
        head, self._head = self._head[:count], self._head[count:]
        data = head + self._file.read(count - len(head))
        self._at += len(data)
        return data

    def tell(self) -> int:
        """Raise OSError, as a pipe does."""
        raise OSError("a pipe cannot be sought")

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: standard input stays open."""


def _pcm(parts: Iterable[bytes], channels: int) -> Iterator[np.ndarray]:
    """Yield the mean of the channels as floats; an incomplete last sample is dropped."""
    for part in parts:
        whole = len(part) // (2 * channels) * 2 * channels
        values = np.frombuffer(part[:whole], "<i2").reshape(-1, channels)
        yield values.astype(np.float32).mean(axis=1) / np.float32(INT16)


def resampled(blocks: Iterable[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """Yield blocks (n,) float32 at `rate_hz` as blocks at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


class _Stream(Protocol):
    def start(self) -> None: ...

    def close(self) -> None: ...


def microphone() -> Iterator[np.ndarray]:
    """Yield audio of the default microphone at 16 kHz; InputError if there is none or if it is lost."""
    try:
        import sounddevice
    except ImportError:
        raise LibraryError(
            "sounddevice is not installed; pip install 'focusasr[listen]' installs it", name="sounddevice"
        ) from None
    except OSError as error:  # the library PortAudio is missing
        raise InputError(f"microphone: {error}. Install PortAudio, or give audio with --from.") from None
    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    try:
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
        device: _Stream = sounddevice.InputStream(
            rate,
            round(rate * BLOCK_SECONDS),
            channels=1,
            dtype="float32",
            callback=lambda data, *_: blocks.put(data[:, 0].copy()),
        )
        device.start()
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(f"microphone: cannot be opened ({error}). Connect one, or give audio with --from.") from None
    return resampled(_recorded(device, blocks), rate)


def _recorded(device: _Stream, blocks: queue.SimpleQueue[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        while True:
            yield blocks.get(timeout=SILENT_SECONDS)
    except queue.Empty:
        raise InputError("microphone: no more audio comes. Connect it again; what was recorded is kept.") from None
    finally:
        device.close()
