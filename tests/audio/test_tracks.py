"""Which sound of a file is read: the default track or another, at the picture's times, and channels that cancel out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

from focusasr.audio.channels import mix
from focusasr.audio.integrity import AudioError
from focusasr.audio.load import channel_count, load, probe_seconds
from focusasr.audio.source import Source

RATE = 16_000


@pytest.fixture(autouse=True)
def nothing_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.runtime.console._printed_once", set())


def tone(hertz: float, seconds: float = 3.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def encode(container: Any, track: Any, wave: np.ndarray, begin: float = 0.0) -> None:
    """Write sound (n, channels) from a time on."""
    for start in range(0, len(wave), 4096):
        part = (wave[start : start + 4096].reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(part, "s16", track.layout.name)
        frame.sample_rate, frame.pts = RATE, start + round(begin * RATE)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def video(path: str, tones: list[np.ndarray], default: int | None = None, begin: float = 0.0) -> Path:
    """Write a picture of ten seconds with several tracks of sound, which begin `begin` seconds after it."""
    with av.open(path, "w") as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        tracks = [container.add_stream("flac", rate=RATE, layout="mono") for _ in tones]
        for index, track in enumerate(tracks):
            track.disposition = Disposition.default if index == default else Disposition(0)
        for number in range(50):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts = number
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for track, wave in zip(tracks, tones, strict=True):
            encode(container, track, wave[:, None], begin)
    return Path(path)


def pitch(waveform: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform))


@pytest.mark.parametrize(("default", "read"), [(0, 440), (1, 880), (None, 440)])
def test_the_default_track_is_read_and_named(default: int | None, read: int, capfd: pytest.CaptureFixture[str]) -> None:
    path = video("talk.mkv", [tone(440), tone(880)], default)
    assert pitch(load(path)) == pitch(load(path)) == pytest.approx(read, abs=2)
    (line,) = capfd.readouterr().err.splitlines()
    assert "talk.mkv" in line and "--audio-track" in line and f"{default or 0} of 0 to 1" in line


def test_a_track_may_be_chosen(capfd: pytest.CaptureFixture[str]) -> None:
    path = str(video("talk.mkv", [tone(440), tone(880)], 0))
    for track, read in enumerate((440, 880)):
        assert pitch(load(Source(path, track=track))) == pytest.approx(read, abs=2)
    assert not capfd.readouterr().err
    with pytest.raises(AudioError, match=r"talk\.mkv.* 2.*--audio-track"):
        load(Source(path, track=2))
    soundfile.write("plain.wav", tone(440), RATE)
    assert pitch(load(Source("plain.wav", track=0))) == pytest.approx(440, abs=2)
    with pytest.raises(AudioError, match="has no audio track 1, only 1"):
        load(Source("plain.wav", track=1))


def test_sound_that_begins_after_the_picture_keeps_its_times() -> None:
    path = video("late.mkv", [tone(440)], begin=4.9)
    waveform = load(path)
    assert len(waveform) / RATE == pytest.approx(7.9, abs=0.02)
    assert not waveform[: round(4.88 * RATE)].any()
    assert pitch(waveform[round(4.95 * RATE) :]) == pytest.approx(440, abs=2)
    assert np.array_equal(load(Source(str(path), 4.0, 2.0)), waveform[4 * RATE : 6 * RATE])
    seconds = probe_seconds(video("late.mp4", [tone(440)], begin=2.0))
    assert seconds is None or seconds == pytest.approx(5.0, abs=0.1)
    assert len(load(video("prompt.mkv", [tone(440)]))) == 3 * RATE


@pytest.mark.parametrize("suffix", ["wav", "mka"])
def test_channels_that_cancel_each_other_are_read_from_one(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    voice = tone(440, 5.0)
    pair = np.stack([voice, -voice + 0.001 * tone(700, 5.0)], axis=1)
    path = f"pair.{suffix}"
    if suffix == "wav":
        soundfile.write(path, pair, RATE)
    else:
        with av.open(path, "w") as container:
            track = container.add_stream("flac", rate=RATE, layout="stereo")
            encode(container, track, pair)
    waveform = load(path)
    assert np.abs(waveform - voice[: len(waveform)]).max() < 0.01
    load(path)
    (line,) = capfd.readouterr().err.splitlines()
    assert path in line and "--channel" in line
    assert channel_count(Source(path)) == 2


def test_channels_that_differ_are_mixed(capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 1000, 2)).astype(np.float32)
    for block in (
        noise[0],
        np.stack([tone(440), 0 * tone(440)], axis=1),
        np.zeros((9, 2), np.float32),
        noise[1] * 1e-6,
    ):
        assert np.allclose(mix(block, "a"), block.mean(axis=1), atol=1e-6)
    assert not capfd.readouterr().err
    quiet = np.stack([0.1 * tone(440), -tone(440)], axis=1)
    assert np.allclose(mix(quiet, "a"), quiet.mean(axis=1), atol=1e-6)
