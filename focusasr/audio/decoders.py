"""Decoders of audio files: libsndfile, or FFmpeg for formats that it does not read."""

from __future__ import annotations

import contextlib
import itertools
import numbers
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

import numpy as np

from focusasr.audio.channels import check_channel, choose_track, frame_values, mix
from focusasr.audio.integrity import (
    AudioError,
    CutOff,
    broken_page,
    goes_on_behind_its_header,
    is_mpeg,
    is_tag,
    missing_bytes,
)
from focusasr.config import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, SAMPLE_RATE_HZ
from focusasr.runtime.libraries import library

READ_VALUES = 2**18  # values (frames times channels) decoded at once: 1 MiB for any number of channels
SLACK_SECONDS = 0.5  # containers round the length of their last packets
LEAST_LEAD_SECONDS, MOST_LEAD_SECONDS = 0.05, 24 * 3600.0  # delay of audio after video
STEP_FRAMES = 1024  # read at once up to the position where a decoder fails
HEADERLESS = frozenset(("adp",))  # formats without a signature, which FFmpeg detects in raw samples


class Sound(Protocol):
    """An open recording: sample rate, number of channels, duration if the header has it, and samples."""

    rate_hz: int
    channels: int
    seconds: float | None

    def close(self) -> None:
        """Close it."""
        ...

    def mono_from(self, start: int, channel: int | None = None) -> Iterator[np.ndarray]:
        """Yield one channel or the mean of all, (n,) float32, from sample `start`; CutOff if the end is missing."""
        ...


@contextmanager
def open_audio(file: BinaryIO, name: str, track: int | None = None) -> Iterator[Sound]:
    """Open the recording in a seekable file; `name` is its name in errors, `track` the audio track.

    AudioError if the file is empty, not audio, truncated before its samples, or has an impossible sample rate.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise AudioError(f"{name}: empty (0 bytes); record or copy it again")
    missing, for_ffmpeg = missing_bytes(file, size)
    sound: Sound
    try:
        sound = (_open_ffmpeg if for_ffmpeg or is_mpeg(file) else _open_any)(file, name, track)
    except AudioError:
        if missing:
            raise _damaged(name, 0.0) from None
        raise
    if missing:
        sound = _TruncatedAudio(sound, name)
    try:
        check_rate(sound.rate_hz, name)
        yield sound
    finally:
        sound.close()


def open_samples(samples: np.ndarray, rate_hz: int, name: str) -> Sound:
    """Open mono samples (N,) float32 as a recording; AudioError if the sample rate is invalid."""
    if not isinstance(rate_hz, numbers.Integral) or not _is_rate(rate_hz):
        expected = f"a whole number of Hz from {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}"
        raise AudioError(f"{name}: sampling_rate is {rate_hz!r}. It must be {expected}.")
    return _Samples(samples, int(rate_hz), name)


def check_rate(rate_hz: int, name: str) -> None:
    """Raise AudioError if the header of the recording `name` has an impossible sample rate."""
    if not _is_rate(rate_hz):
        wanted = f"{LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz"
        raise AudioError(f"{name}: its header has {rate_hz} Hz; expected: {wanted}, export it again")


def _is_rate(rate_hz: int) -> bool:
    return LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ


class _Samples:
    """Samples in memory."""

    def __init__(self, samples: np.ndarray, rate_hz: int, name: str) -> None:
        self._samples, self._name, self.rate_hz, self.channels = samples, name, rate_hz, 1
        self.seconds: float | None = len(samples) / rate_hz

    def close(self) -> None:
        """Do nothing: the samples belong to the caller."""

    def mono_from(self, start: int, channel: int | None = None) -> Iterator[np.ndarray]:
        """Yield the samples from `start`."""
        check_channel(channel, self.channels, self._name)
        if start > len(self._samples):
            raise _past_the_end(self._name, start, len(self._samples), self.rate_hz)
        return (self._samples[at : at + READ_VALUES] for at in range(start, len(self._samples), READ_VALUES))


def _bytes_only(file: BinaryIO) -> Any:
    """Return a file object without a name, so that no decoder guesses the format from a suffix."""
    file.seek(0)
    return SimpleNamespace(read=file.read, readinto=file.readinto, seek=file.seek, tell=file.tell)  # type: ignore[attr-defined]


class _TruncatedAudio:
    """A recording whose end is missing."""

    def __init__(self, sound: Sound, name: str) -> None:
        self._sound, self._name = sound, name
        self.seconds: float | None = None
        self.rate_hz, self.channels, self.close = sound.rate_hz, sound.channels, sound.close

    def mono_from(self, start: int, channel: int | None = None) -> Iterator[np.ndarray]:
        """Yield the samples that are present, then raise CutOff."""
        position = start
        with contextlib.suppress(AudioError):  # CutOff below covers any error at the end
            for block in self._sound.mono_from(start, channel):
                yield block
                position += len(block)
        if position == start > 0:
            seen = f"cut off before {start / self.rate_hz:.2f} s, the offset"
            raise CutOff(f"{self._name}: {seen}; get a whole copy")
        raise _damaged(self._name, position / self.rate_hz)


def _open_any(file: BinaryIO, name: str, track: int | None) -> Sound:
    with library("soundfile"):
        import soundfile

    try:
        sound = soundfile.SoundFile(_bytes_only(file))
    except soundfile.LibsndfileError:
        return _open_ffmpeg(file, name, track)
    if track is not None:
        choose_track([sound], track, name)
    return _Sndfile(sound, name, file)


class _Sndfile:
    """A recording open in libsndfile."""

    def __init__(self, sound: Any, name: str, file: BinaryIO) -> None:
        self._sound, self._name, self._file = sound, name, file
        self._frames: int | None = sound.frames if sound.frames < 2**62 else None  # unknown in FLAC from a pipe
        self.rate_hz: int = sound.samplerate
        self.channels: int = sound.channels
        self.seconds = None if self._frames is None else self._frames / max(1, self.rate_hz)

    def close(self) -> None:
        """Close the file in libsndfile."""
        self._sound.close()

    def mono_from(self, start: int, channel: int | None = None) -> Iterator[np.ndarray]:
        """Yield one channel, or the mean of all, from sample `start`, with a seek if the file allows it."""
        check_channel(channel, self._sound.channels, self._name)
        if self._frames is not None and start > self._frames:
            raise _past_the_end(self._name, start, self._frames, self.rate_hz)
        position = start if self._frames is not None and self._sound.seekable() else 0
        return _after(self._blocks(position, channel), start - position, self.rate_hz, self._name)

    def _blocks(self, position: int, channel: int | None) -> Iterator[np.ndarray]:
        import soundfile

        failed = False
        for block_frames in (max(1, READ_VALUES // self._sound.channels), STEP_FRAMES):
            try:
                if failed:  # a FLAC decoder that failed cannot seek
                    self.close()
                    self._sound = soundfile.SoundFile(_bytes_only(self._file))
                if position and self._sound.seek(position) != position:  # in a damaged Ogg file
                    raise _damaged(self._name, position / self.rate_hz if failed else 0.0)
                while len(block := self._sound.read(block_frames, dtype="float32", always_2d=True)):
                    yield mix(block, self._name) if channel is None else block[:, channel]
                    position += len(block)
                break
            except soundfile.LibsndfileError:  # a block that fails returns no samples
                failed = True
        if failed or (self._frames is not None and position < self._frames):
            raise _damaged(self._name, position / self.rate_hz)
        if self._sound.format == "OGG" and (at := broken_page(self._file)) is not None:
            raise CutOff(f"{self._name}: damaged at byte {at}, so some audio is missing; get a whole copy")


def _open_ffmpeg(file: BinaryIO, name: str, track: int | None) -> Sound:
    with library("av"):
        import av

    guessed = is_mpeg(file) and goes_on_behind_its_header(file)
    try:
        # playlists cannot open other files
        container = av.open(_bytes_only(file), options={"protocol_whitelist": "none"})
    except (av.FFmpegError, ValueError) as error:
        file.seek(4)
        if file.read(4) == b"ftyp":  # MP4, with the index usually at the end
            raise AudioError(f"{name}: cut off or damaged, without an index of its sound; get a whole copy") from None
        raise _no_recording(name, _reason(error)) from None
    try:
        if container.format.name in HEADERLESS:
            raise _no_recording(name, "it has no known signature")
        if not container.streams.audio:
            raise AudioError(f"{name}: no sound in it ({container.format.name}); give a file with an audio track")
        return _Ffmpeg(container, name, guessed, choose_track(container.streams.audio, track, name))
    except AudioError:
        container.close()
        raise


class _Ffmpeg:
    """An audio track of a recording open in FFmpeg.

    If the track starts after the video, silence comes first, so that times match the video.
    """

    def __init__(self, container: Any, name: str, guessed: bool, track: Any) -> None:
        self._container, self._name = container, name
        self._track = track
        if self._track.codec_context is None:  # PyAV before 18.1 would crash in decoding
            raise AudioError(f"{name}: nothing in it can be decoded (no decoder for its format); export it again")
        self._end_seconds = 0.0  # end of the decoded audio, in the file's timestamps
        self._lead_seconds = _lead_seconds(container, track)
        self.seconds = None if guessed else self._header_seconds()
        self.close = container.close
        self._frames = self._decode()
        self._first = next(self._frames, None)  # a decoded frame has the true rate: AAC may double its header's
        self.rate_hz: int = self._first.sample_rate if self._first else self._track.rate or SAMPLE_RATE_HZ
        self.channels: int = self._first.layout.nb_channels if self._first else 1

    def _header_seconds(self) -> float | None:
        """Return the duration; None if FFmpeg only estimates it from the bit rate."""
        family, track = self._container.format.name, self._track
        known = "mp4" in family or family == "flac" or (family == "mp3" and track.start_time)  # MP3 with a header
        if known and track.duration is not None:
            return float(track.duration * track.time_base) + self._lead_seconds
        if "matroska" in family and len(self._container.streams) == 1 and self._container.duration is not None:
            return float(self._container.duration / 1e6)
        return None

    def mono_from(self, start: int, channel: int | None = None) -> Iterator[np.ndarray]:
        """Yield one channel, or the mean of all, from sample `start`; earlier samples are decoded and dropped."""
        return _after(self._blocks(channel), start, self.rate_hz, self._name)

    def _blocks(self, channel: int | None) -> Iterator[np.ndarray]:
        lead = round(self._lead_seconds * self.rate_hz) if self._first else 0
        for begin in range(0, lead, READ_VALUES):
            yield np.zeros(min(READ_VALUES, lead - begin), np.float32)
        for frame in itertools.chain([self._first] if self._first else [], self._frames):
            if frame.sample_rate != self.rate_hz:
                change = f"changes from {self.rate_hz} to {frame.sample_rate} Hz after {self._end_seconds:.1f} s"
                raise AudioError(f"{self._name}: {change}; export it with one sample rate")
            check_channel(channel, frame.layout.nb_channels, self._name)
            values = frame_values(frame)
            yield mix(values, self._name) if channel is None else values[:, channel]
        if self._cut_off():
            raise _damaged(self._name, self._end_seconds)

    def _cut_off(self) -> bool:
        slack = min(SLACK_SECONDS, self.seconds / 2) if self.seconds else 0.0  # less slack for short files
        return self.seconds is not None and self._end_seconds < self.seconds - slack

    def _decode(self) -> Iterator[Any]:
        """Yield decoded frames; skip packets that fail before the first frame, after a known end, or as tags."""
        import av

        failed: Exception | None = None
        packets = iter(self._container.demux(self._track))
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                break
            except (av.FFmpegError, ValueError) as error:
                failed = error
                if self._end_seconds and not is_tag(bytes(packet)) and (self.seconds is None or self._cut_off()):
                    raise _damaged(self._name, self._end_seconds) from None
                continue
            for frame in frames:
                begin_seconds = self._end_seconds if frame.time is None else frame.time
                self._end_seconds = begin_seconds + frame.samples / frame.sample_rate
                yield frame
        if failed and not self._end_seconds:
            raise AudioError(f"{self._name}: nothing in it can be decoded ({_reason(failed)}); export it again")


def _lead_seconds(container: Any, track: Any) -> float:
    """Return the delay of a track after the start of the recording, in seconds; 0 for a mere codec delay."""
    if container.start_time is None or track.start_time is None:
        return 0.0
    lead = float(track.start_time * track.time_base) - container.start_time / 1e6
    return lead if LEAST_LEAD_SECONDS < lead < MOST_LEAD_SECONDS else 0.0


def _after(blocks: Iterator[np.ndarray], start: int, rate_hz: int, name: str) -> Iterator[np.ndarray]:
    """Drop the first `start` samples; AudioError if there are fewer."""
    position = 0
    for block in blocks:
        if position + len(block) > start:
            yield block[max(0, start - position) :]
        position += len(block)
    if position < start:
        raise _past_the_end(name, start, position, rate_hz)


def _past_the_end(name: str, start: int, length: int, rate_hz: int) -> AudioError:
    seen = f"offset {start / rate_hz:.2f} s is past its end at {length / rate_hz:.2f} s"
    return AudioError(f"{name}: {seen}; correct the offset")


def _no_recording(name: str, reason: str) -> AudioError:
    wanted = "expected: wav, flac, ogg, opus, mp3, m4a, mp4, webm or another format that FFmpeg reads"
    bare = "bare samples need a header first, as of 'ffmpeg -f s16le -ar 16000 -i FILE FILE.wav'"
    return AudioError(f"{name}: not a recording ({reason}); {wanted}; {bare}")


def _damaged(name: str, seconds: float) -> CutOff:
    return CutOff(f"{name}: stops decoding after {seconds:.1f} s, cut off or damaged; get a whole copy")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
