"""The command `listen`: files in real time, pipes, a microphone, and every way in which these end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from focusasr.audio.integrity import AudioError
from focusasr.cli import live_audio
from focusasr.runtime.errors import InputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAUSE_SECONDS = 2


def started(*options: object) -> subprocess.Popen[bytes]:
    """Start the command with a pipe on both sides."""
    command = [sys.executable, "-m", "focusasr", "listen", "--from", "-", "--device", "cpu", *map(str, options)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def pcm(sample: Path, rate: int = 16_000, channels: int = 1, pause: float = 0.0) -> np.ndarray:
    """Return the sample as 16-bit samples (N, channels) at a rate, with a pause after it."""
    samples, own = soundfile.read(sample, dtype="float32")
    assert rate % own == 0
    silence = np.zeros(round(pause * own), np.float32)
    mono = np.repeat(np.concatenate([samples, silence]), rate // own)
    return (np.stack([mono] * channels, 1) * 32767).astype("<i2")


def wav(samples: np.ndarray, rate: int, kind: str = "PCM_16") -> bytes:
    """Return samples as a WAV file."""
    packed = io.BytesIO()
    soundfile.write(packed, samples, rate, format="WAV", subtype=kind)
    return packed.getvalue()


def test_file_is_played_in_real_time_with_partial_texts(run: Any, sample: Path, heard: str, tmp_path: Path) -> None:
    start = time.monotonic()
    result = run("listen", "--from", sample, "--json", "-o", tmp_path, "--device", "cpu")
    assert result.status == 0 and time.monotonic() - start >= 4.2
    *partial, final = [json.loads(line) for line in result.out.splitlines()]
    assert {one["type"] for one in partial} == {"partial"} and (final["type"], final["text"]) == ("final", heard)
    (sound,) = tmp_path.glob("*.flac")
    kept, _ = soundfile.read(sound)
    assert len(kept) == len(soundfile.read(sample)[0])
    assert {path.suffix for path in tmp_path.iterdir()} == {".flac", ".txt", ".srt", ".vtt", ".tsv", ".json"}
    (text,) = tmp_path.glob("*.txt")
    assert text.read_text().strip() == heard


@pytest.mark.parametrize("channels", [None, 1, 2])
def test_text_of_a_pipe_comes_before_its_end(sample: Path, heard: str, channels: int | None) -> None:
    rate = 48_000 if channels == 2 else 16_000
    samples = pcm(sample, rate, channels or 1, PAUSE_SECONDS)
    with started() as process:
        assert process.stdin and process.stdout
        process.stdin.write(samples.tobytes() if channels is None else wav(samples, rate))
        process.stdin.flush()
        line = process.stdout.readline().decode().strip()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == 0
    assert line == heard if rate == 16_000 else line.split()[-2:] == heard.split()[-2:]


def test_first_signal_ends_with_the_last_text_and_whole_files(sample: Path, heard: str, tmp_path: Path) -> None:
    with started("-o", tmp_path, "--json") as process:
        assert process.stdin and process.stdout
        process.stdin.write(pcm(sample).tobytes())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["type"] == "partial"
        time.sleep(0.5)  # so that the rest is read
        process.send_signal(signal.SIGINT)
        process.wait(30)
        last = json.loads(process.stdout.read().decode().splitlines()[-1])
    assert process.returncode == 0 and last["type"] == "final" and heard.startswith(last["text"][:10])
    (text,) = tmp_path.glob("*.txt")
    assert text.read_text().strip() == last["text"]
    assert next(tmp_path.glob("*.flac")).stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["PCM_24", "FLOAT"])
def test_wav_that_is_not_16_bits_is_refused(sample: Path, kind: str) -> None:
    with started() as process:
        out, err = process.communicate(wav(pcm(sample), 16_000, kind), timeout=60)
    assert (process.returncode, out) == (1, b"") and b"16-bit" in err and len(err.splitlines()) == 1


def test_text_is_printed_though_nothing_can_be_kept(
    run: Any, sample: Path, heard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, samples: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    result = run("listen", "--from", sample, "-o", tmp_path, "--device", "cpu")
    assert (result.status, result.out.strip()) == (1, heard)
    assert "No space left" in result.err


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("kind", ["raw", "wav", "streamed", "extensible"])
def test_pcm_gives_the_same_samples_in_any_pieces(piece: int, kind: str) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (2000, 1 if kind == "raw" else 2)).astype("<i2")
    data = samples.tobytes() if kind == "raw" else wav(samples, 16_000)
    if kind == "streamed":  # ffmpeg's header, written before the length is known
        data = data[:40] + b"\xff" * 4 + data[44:]
    elif kind == "wav":  # what follows the audio is no audio
        data += b"LIST\x04\x00\x00\x00abcd"
    elif kind == "extensible":
        packed = io.BytesIO()
        soundfile.write(packed, samples, 16_000, format="WAVEX", subtype="PCM_16")
        data = packed.getvalue()
    pcm_stream = live_audio.PcmStream("a pipe", 16_000)
    parts = [pcm_stream.feed(data[at : at + piece]) for at in range(0, len(data), piece)]
    assert np.array_equal(np.concatenate([*parts, pcm_stream.end()]), samples.mean(axis=1, dtype=np.float32) / 32768)


def test_one_channel_of_a_wav_can_be_chosen() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (300, 2)).astype("<i2")
    assert np.array_equal(live_audio.PcmStream("x", 1, 1).feed(wav(samples, 16_000)) * 32768, samples[:, 1])
    with pytest.raises(AudioError, match="channel 2"):
        live_audio.PcmStream("x", 1, 2).feed(wav(samples, 16_000))


def test_wav_without_audio_is_refused() -> None:
    unfinished = live_audio.PcmStream("a pipe", 16_000)
    unfinished.feed(b"RIFF\x00\x00\x00\x00WAVE")
    with pytest.raises(InputError, match="a pipe"):
        unfinished.end()
    with pytest.raises(InputError, match="a pipe"):
        live_audio.PcmStream("a pipe", 16_000).feed(b"RIFF" + bytes(200_000))


def test_separate_channels_are_refused(run: Any, sample: Path) -> None:
    result = run("listen", "--from", sample, "--channels", "separate")
    assert (result.status, "--channels" in result.err) == (2, True)


def fake_microphone(play: Callable[[Callable[..., None]], None], error: Exception | None = None) -> Any:
    """Return what takes the place of sounddevice: a microphone of 32 kHz that `play` feeds."""

    class PortAudioError(Exception):
        pass

    class InputStream:
        def __init__(self, rate: int, frames: int, callback: Callable[..., None], **_: object) -> None:
            if error:
                raise PortAudioError(str(error))
            assert (rate, frames) == (32_000, 1600)
            self.callback = callback

        def start(self) -> None:
            play(self.callback)

        def close(self) -> None:
            pass

    devices = {"default_samplerate": 32_000.0}
    return SimpleNamespace(InputStream=InputStream, PortAudioError=PortAudioError, query_devices=lambda kind: devices)


def test_lost_microphone_is_an_error_after_the_text(
    run: Any, sample: Path, heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = pcm(sample, 32_000).astype(np.float32) / 32768

    def play(callback: Callable[..., None]) -> None:
        for at in range(0, len(samples), 1600):
            callback(samples[at : at + 1600], 1600, None, None)

    monkeypatch.setitem(sys.modules, "sounddevice", fake_microphone(play))
    monkeypatch.setattr(live_audio, "SILENT_SECONDS", 0.5)
    result = run("listen", "--device", "cpu")
    assert result.status == 1 and result.out.split()[-2:] == heard.split()[-2:]
    assert result.err.splitlines()[-1].startswith("focusasr: microphone: ")


def test_microphone_that_cannot_be_opened_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fake_microphone(lambda callback: None, OSError("device is busy"))
    monkeypatch.setitem(sys.modules, "sounddevice", broken)
    result = run("listen", "--device", "cpu")
    assert result.status == 1 and "device is busy" in result.err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("listen", "--device", "cpu")
    assert result.status == 1 and "[listen]'" in result.err


def test_file_that_cannot_be_read_is_refused(run: Any) -> None:
    result = run("listen", "--from", "absent.wav", "--device", "cpu")
    assert (result.status, result.out) == (1, "") and "absent.wav" in result.err


def test_empty_pipe_is_an_error() -> None:
    with started() as process:
        out, err = process.communicate(b"", timeout=120)
    assert (process.returncode, out) == (1, b"") and b"standard input: empty" in err


def test_recording_may_be_an_argument(run: Any, sample: Path) -> None:
    result = run("listen", sample, "--device", "cpu")
    assert result.status == 0 and result.out == run("listen", "--from", sample, "--device", "cpu").out
    run("listen", sample, "--from", "-").refused(2, "--from -", str(sample))


def test_compressed_audio_in_a_pipe_is_refused(sample: Path) -> None:
    with started() as process:
        out, err = process.communicate(sample.read_bytes(), timeout=120)
    assert (process.returncode, out) == (1, b"") and b"ffmpeg -i - -f wav -" in err


def test_commands_of_one_second_write_different_files(
    run: Any, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focusasr.cli.listen.time.strftime", lambda pattern: "now")
    for _ in range(2):
        assert run("listen", sample, "-o", tmp_path, "--device", "cpu").status == 0
    assert {path.name for path in tmp_path.glob("*.flac")} == {"listen-now.flac", "listen-now-2.flac"}
    assert all(len(soundfile.read(path)[0]) for path in tmp_path.glob("*.flac"))
