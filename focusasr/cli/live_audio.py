"""Live audio from a microphone, a pipe, or a file in real time."""

from __future__ import annotations

import math
import queue
import struct
import sys
import time
from collections.abc import Iterator
from io import BufferedReader
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from focusasr.audio.channels import check_channel
from focusasr.audio.decoders import check_rate
from focusasr.audio.integrity import FIRST_BYTES
from focusasr.audio.load import make_resampler, resampled, stream
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import missing

if TYPE_CHECKING:
    import soxr

BLOCK_SECONDS = 0.05
SILENT_SECONDS = 5.0  # without a block until a microphone counts as lost
READ_BYTES = 65_536  # from a pipe at once, at most
HEADER_BYTES = 65_536  # longest header of a WAV file
UNKNOWN_BYTES = 0x7FFF_0000  # from this size on, as with 0, a header that was written before the audio has no size
PCM_KINDS = (1, 0xFFFE)  # plain, and extensible
INT16 = 32768.0


def played(source: Source) -> Iterator[np.ndarray]:
    """Yield a recording at 16 kHz in blocks (n,), each at its time in the recording."""
    start, seconds = time.monotonic(), 0.0
    for block in stream(source, BLOCK_SECONDS):
        seconds += len(block) / SAMPLE_RATE_HZ
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        yield block


def pipe(rate_hz: int, channel: int | None = None) -> Iterator[np.ndarray]:
    """Yield standard input at 16 kHz as it comes: a 16-bit WAV file, or raw 16-bit mono samples at `rate_hz`."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise InputError("standard input: no audio. Pipe WAV or raw 16-bit PCM in.")
    sound = PcmStream("standard input", rate_hz, channel)
    begun = False
    while data := cast(BufferedReader, sys.stdin.buffer).read1(READ_BYTES):
        begun = True
        yield sound.feed(data)
    if not begun:
        raise InputError("standard input: empty (0 bytes). Look at the command before the pipe.")
    yield sound.end()


class PcmStream:
    """A 16-bit WAV file, or raw 16-bit mono samples at `rate_hz`, that comes in pieces of any size.

    `channel` of a WAV file is counted from 0; None is the mean of all. `name` is its name in errors.
    """

    def __init__(self, name: str, rate_hz: int, channel: int | None = None) -> None:
        self._name, self._rate, self._channel = name, rate_hz, channel
        self._held = b""  # the header so far, or an incomplete sample
        self._channels, self._left = 0, math.inf  # bytes of audio to come; no channels before the header is complete
        self._resampler: soxr.ResampleStream | None = None

    def feed(self, data: bytes) -> np.ndarray:
        """Return samples (n,) float32 at 16 kHz for the next bytes; InputError for another format."""
        self._held += data
        if not self._channels and not self._begin():
            return np.zeros(0, np.float32)
        size = 2 * self._channels
        count = int(min(len(self._held), self._left)) // size * size
        values = np.frombuffer(self._held[:count], "<i2").reshape(-1, self._channels).astype(np.float32)
        self._left -= count
        self._held = self._held[count:] if self._left >= size else b""
        mono = values.mean(axis=1) if self._channel is None else values[:, self._channel]
        return self._resampled(mono / np.float32(INT16))

    def end(self) -> np.ndarray:
        """Return the last samples (n,); an incomplete sample is dropped. InputError for an incomplete header."""
        if self._held[:4] == b"RIFF" and not self._channels:
            raise InputError(f"{self._name}: this WAV cannot be read (its header is incomplete). Send 16-bit PCM.")
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _begin(self) -> bool:
        """Read the header, if there is one; False if it is incomplete."""
        if b"RIFF".startswith(self._held[:4]) and len(self._held) < 4:
            return False
        if self._held[:4] != b"RIFF":
            if self._held.startswith(tuple(FIRST_BYTES)):
                remedy = "Decode it before: ffmpeg -i - -f wav -"
                raise InputError(f"{self._name}: expected WAV or raw 16-bit PCM, got compressed audio. {remedy}")
            self._check_channel(1)
            return True
        found = _wav_header(self._held)
        if found is None:
            if len(self._held) <= HEADER_BYTES:
                return False
            raise InputError(f"{self._name}: no audio in its first {HEADER_BYTES} bytes. Send 16-bit PCM.")
        kind, channels, self._rate, bits, start, size = found
        if kind not in PCM_KINDS or bits != 16 or not channels:
            raise InputError(f"{self._name}: WAV of format {kind} with {bits} bits. Send 16-bit PCM.")
        check_rate(self._rate, self._name)
        self._check_channel(channels)
        self._left = size if 0 < size < UNKNOWN_BYTES else math.inf
        self._held = self._held[start:]
        return True

    def _check_channel(self, channels: int) -> None:
        check_channel(self._channel, channels, self._name)
        self._channels = channels

    def _resampled(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        if self._rate == SAMPLE_RATE_HZ:
            return samples
        if self._resampler is None:
            self._resampler = make_resampler(self._rate, SAMPLE_RATE_HZ)
        return self._resampler.resample_chunk(samples, last=last)


def _wav_header(data: bytes) -> tuple[int, int, int, int, int, int] | None:
    """Return format, channels, rate, bits, and start and size of the audio in bytes; None if the header is incomplete.

    A file whose audio comes before its format has format 0.
    """
    at, kind, channels, rate, bits = 12, 0, 0, 0, 0
    while len(data) >= at + 8:
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            return kind, channels, rate, bits, at + 8, size
        if name == b"fmt " and len(data) >= at + 24:
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, at + 8)
        at += 8 + size + size % 2
    return None


class _Stream(Protocol):
    def start(self) -> None: ...

    def close(self) -> None: ...


def microphone() -> Iterator[np.ndarray]:
    """Yield audio of the default microphone at 16 kHz; InputError if there is none or if it is lost."""
    try:
        import sounddevice
    except ImportError:
        raise missing("sounddevice", "listen") from None
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
    recorded = _recorded(device, blocks)
    return recorded if rate == SAMPLE_RATE_HZ else resampled(recorded, rate, SAMPLE_RATE_HZ)


def _recorded(device: _Stream, blocks: queue.SimpleQueue[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        while True:
            yield blocks.get(timeout=SILENT_SECONDS)
    except queue.Empty:
        raise InputError("microphone: no more audio comes. Connect it again; what was recorded is kept.") from None
    finally:
        device.close()
