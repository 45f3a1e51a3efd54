"""Sound of every container, rate and width arrives whole, or is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from focusasr.audio.integrity import AudioError
from focusasr.audio.load import load, probe_seconds, stream, total_seconds
from focusasr.audio.source import Source, find_sources
from focusasr.runtime.errors import InputError
from tests.helpers.broken_sound import add_sound


def tone(seconds: float, rate_hz: int = 16_000, pitch_hz: float = 440.0) -> np.ndarray:
    """Return a quiet tone that swells (N,), so that no two stretches of it are alike."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * pitch_hz * times) * (0.1 + times / max(seconds, 1))).astype(np.float32)


def write(path: Path, waveform: np.ndarray, rate_hz: int = 16_000, subtype: str | None = None) -> Path:
    kind = "OGG" if path.suffix == ".opus" else None
    soundfile.write(path, waveform, rate_hz, subtype="OPUS" if kind else subtype, format=kind)
    return path


def encode(path: Path, codec: str, waveform: np.ndarray, rate_hz: int, **options: str) -> Path:
    """Write a container that libsndfile does not know."""
    import av

    with av.open(str(path), "w", options=options) as container:
        container.mux(add_sound(container, codec, waveform, rate_hz).encode(None))
    return path


def halve(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def wav_bytes(data: bytes, promised: int, whole: int) -> bytes:
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return b"RIFF" + struct.pack("<I", whole) + form + b"data" + struct.pack("<I", promised) + data


def refusal(source: Source | str | Path) -> str:
    """Return the one line with which a recording is refused."""
    with pytest.raises(AudioError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Finding


def test_inputs_become_sources_in_order_once(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "note.txt", ".hidden.wav", "deep/er/c.m4a", ".cache/d.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    at = str(tmp_path)
    found = find_sources(["-", f"{at}/b.wav", at, f"{at}/*.wav", "-", f"{at}/gone.wav", f"{at}/./b.wav"])
    assert [source.path for source in found] == [
        "-",
        *(f"{at}/{n}" for n in ("b.wav", "a.FLAC", "deep/er/c.m4a", "gone.wav")),
    ]


def test_a_glob_over_folders_gives_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.wav"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "deep" / "back").symlink_to(tmp_path / "in")
    repeated: list[Source] = []
    found = find_sources([f"{tmp_path}/in/**"], repeated.append)
    assert [Path(source.path).name for source in found] == ["a.wav", "b.wav"] and not repeated


def test_links_to_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    for name in ("in/a.wav", "in/deep/b.avi", "disk/c.wav", "disk/more/d.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"in/x": "disk", "in/y": "disk", "in/up": ".", "in/own": "in/deep", "in/z": "disk/more", "disk/back": "in"}
    for link, place in links.items():
        (tmp_path / link).symlink_to(tmp_path / place)
    found = [os.path.relpath(source.path, tmp_path) for source in find_sources([str(tmp_path / "in")])]
    assert found == ["in/a.wav", "in/deep/b.avi", "in/x/c.wav", "in/x/more/d.wav"]


def test_a_file_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "take[1].wav").touch()
    (tmp_path / "take1.wav").touch()
    assert [Path(s.path).name for s in find_sources([str(tmp_path / "take[1].wav")])] == ["take[1].wav"]


@pytest.mark.parametrize("name", ["empty", "*.wav"])
def test_nothing_found_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no recordings in|nothing matches"):
        find_sources([str(tmp_path / name)])
    with pytest.raises(InputError, match="no recordings given"):
        find_sources([])


# Reading what is fine


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.caf", "a.w64", "a.au"])
def test_lossless_containers_give_the_samples(tmp_path: Path, name: str) -> None:
    waveform = tone(1.5)
    np.testing.assert_allclose(load(write(tmp_path / name, waveform)), waveform, atol=2**-15)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.mp3"])
def test_lossy_containers_keep_length_and_pitch(tmp_path: Path, name: str) -> None:
    heard = load(write(tmp_path / name, tone(2.0)))
    assert len(heard) == 32_000
    assert np.argmax(np.abs(np.fft.rfft(heard))) == 880  # half hertz


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz"),
    [("a.m4a", "aac", 44_100), ("a.mp4", "aac", 22_050), ("a.webm", "libopus", 48_000), ("a.aac", "aac", 16_000)],
)
def test_containers_of_ffmpeg(tmp_path: Path, name: str, codec: str, rate_hz: int) -> None:
    heard = load(encode(tmp_path / name, codec, tone(2.0, rate_hz), rate_hz))
    assert len(heard) == pytest.approx(32_000, abs=2048)  # AAC comes in packets of 1024
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) / len(heard) * 16_000 == pytest.approx(440, abs=1)


@pytest.mark.parametrize("rate_hz", [1000, 7999, 8000, 11_025, 44_100, 48_000, 192_000])
def test_any_rate_becomes_16_khz(tmp_path: Path, rate_hz: int) -> None:
    heard = load(write(tmp_path / "a.wav", tone(3.0, rate_hz), rate_hz, "FLOAT"))
    assert len(heard) == 48_000
    middle = slice(8000, 40_000)  # clear of the filter's edges
    np.testing.assert_allclose(heard[middle], tone(3.0)[middle], atol=2e-3)


def test_another_rate_may_be_asked_for(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "a.wav", tone(1.0)), 8000)) == 8000


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-1, 1, (1000, 6)).astype(np.float32)
    heard = load(write(tmp_path / "a.wav", channels, subtype="FLOAT"))
    np.testing.assert_allclose(heard, channels.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_any_sample_format(tmp_path: Path, subtype: str) -> None:
    heard = load(write(tmp_path / "a.wav", tone(0.5), subtype=subtype))
    np.testing.assert_allclose(heard, tone(0.5), atol=2e-2)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f64le", "flac", "alac"])
def test_any_sample_format_of_ffmpeg(tmp_path: Path, codec: str) -> None:
    heard = load(encode(tmp_path / "a.mka", codec, tone(0.5), 16_000))
    np.testing.assert_allclose(heard, tone(0.5), atol=2e-2)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a"])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_the_blocks_of_a_stream_are_the_load(tmp_path: Path, name: str, rate_hz: int) -> None:
    path, waveform = tmp_path / name, tone(7.3, rate_hz)
    _ = encode(path, "aac", waveform, rate_hz) if name == "a.m4a" else write(path, waveform, rate_hz)
    whole = load(path)
    for block_seconds in (0.5, 2.0, 100.0):
        blocks = list(stream(path, block_seconds))
        assert all(len(block) == block_seconds * 16_000 for block in blocks[:-1])
        assert np.array_equal(np.concatenate(blocks), whole)


def test_streamed_resampling_equals_resampling_at_once(tmp_path: Path) -> None:
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100 * 8).astype(np.float32)
    heard = load(write(tmp_path / "a.wav", waveform, 44_100, "FLOAT"))
    np.testing.assert_allclose(heard, soxr.resample(waveform, 44_100, 16_000), atol=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.m4a"])
def test_a_part_is_a_slice_of_the_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _ = encode(path, "aac", tone(6.0), 16_000) if name == "a.m4a" else write(path, tone(6.0))
    rate_hz = 16_000
    whole = load(path, rate_hz)
    for offset, duration in ((0.0, 1.0), (0.12344, 2.5), (3.99999, None), (5.5, 99.0)):
        start = round(offset * rate_hz)
        stop = None if duration is None else start + round(duration * rate_hz)
        np.testing.assert_allclose(load(Source(str(path), offset, duration), rate_hz), whole[start:stop], atol=1e-6)


def test_offset_at_the_end_is_empty_and_past_it_an_error(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.wav", tone(1.0)))
    assert len(load(Source(path, 1.0))) == 0
    assert len(load(Source(path, 0.5, 0.0))) == 0
    assert "offset 1.50 s is past its end at 1.00 s" in refusal(Source(path, 1.5))
    compressed = encode(tmp_path / "a.m4a", "aac", tone(1.0), 16_000)
    assert "offset 9.00 s is past its end at 1.02 s" in refusal(Source(str(compressed), 9.0))


@pytest.mark.parametrize(("offset", "duration"), [(-1.0, None), (float("nan"), None), (0.0, float("inf")), (0.0, -2.0)])
def test_times_that_cannot_be(offset: float, duration: float | None) -> None:
    with pytest.raises(InputError, match=r"expected: seconds, 0 to"):
        Source("a.wav", offset, duration)


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize(("name", "rate_hz"), [("a.wav", 16_000), ("a.wav", 48_000), ("a.aiff", 8000)])
def test_hardly_any_sound_is_fine(tmp_path: Path, name: str, rate_hz: int, samples: int) -> None:
    path = write(tmp_path / name, np.zeros(samples, np.float32), rate_hz)
    heard = load(path)
    assert heard.dtype == np.float32 and len(heard) <= 2 and (samples > 0 or len(heard) == 0)
    assert sum(map(len, stream(path))) == len(heard)


def test_silence_is_fine(tmp_path: Path) -> None:
    assert not load(write(tmp_path / "a.wav", np.zeros(16_000))).any()


@pytest.mark.parametrize(
    ("promised", "whole"),
    [(0, 0), (0, 36), (2**32 - 1, 2**32 - 1), (0x7FFFF000, 0x7FFFF024), (2**31 - 1, 0)],
    ids=["zero", "zero data", "ffmpeg", "espeak-ng", "2 GiB"],
)
def test_a_wav_written_into_a_pipe_has_no_length(tmp_path: Path, promised: int, whole: int) -> None:
    waveform = (tone(1.0) * 2**15).astype("<i2")
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(waveform.tobytes(), promised, whole))
    np.testing.assert_allclose(load(path), waveform / 2**15, atol=1e-6)


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_standard_input_is_read_once_and_can_be_sought(kind: str) -> None:
    packed = io.BytesIO()
    soundfile.write(packed, tone(1.5), 16_000, format=kind)
    code = (
        "from focusasr.audio.source import Source; from focusasr.audio.load import load\n"
        "print(len(load('-')), len(load(Source('-', 0.5, 0.25))), len(load('-')))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=packed.getvalue(), capture_output=True, check=True)
    assert done.stdout.split() == [b"24000", b"4000", b"24000"] and done.stderr == b""


@pytest.mark.parametrize(("name", "exact"), [("a.wav", True), ("a.flac", True), ("a.m4a", True), ("a.aac", False)])
def test_the_length_is_known_without_decoding(tmp_path: Path, name: str, exact: bool) -> None:
    path = tmp_path / name
    _ = write(path, tone(2.5)) if path.suffix in (".wav", ".flac") else encode(path, "aac", tone(2.5), 16_000)
    assert probe_seconds(path) == (pytest.approx(2.5) if exact else None)


def test_the_length_of_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert probe_seconds(tmp_path / "gone.wav") is None


# Refusing what is not


def test_missing_folder_empty_and_text(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no sound\n" * 1000)
    (tmp_path / "noise.wav").write_bytes(np.random.default_rng(0).bytes(100_000))
    (tmp_path / "page.wav").write_text("<html><body>404</body></html>")
    (tmp_path / "list.m4a").write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    assert refusal(tmp_path / "gone.wav") == f"{tmp_path}/gone.wav: no such file; check the path"
    assert "a folder" in refusal(tmp_path)
    assert "empty (0 bytes)" in refusal(tmp_path / "empty.wav")
    for name in ("text.mp3", "noise.wav", "page.wav", "list.m4a"):
        assert f"{name}: not a recording" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["", "a\0b.wav", "a\nb.wav", "\ud800.wav", "x" * 300 + ".wav"])
def test_names_that_no_file_has(name: str) -> None:
    assert "check the path" in refusal(name)


@pytest.mark.parametrize(
    "name", ["a.wav", "a.aiff", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.m4a", "fast.m4a", "a.aac"]
)
def test_a_recording_cut_in_half_is_refused(tmp_path: Path, name: str) -> None:
    path, noise = tmp_path / name, np.random.default_rng(0).uniform(-0.5, 0.5, 80_000).astype(np.float32)
    options = {"movflags": "faststart"} if name == "fast.m4a" else {}
    _ = encode(path, "aac", noise, 16_000, **options) if path.suffix in (".m4a", ".aac") else write(path, noise)
    assert len(load(path)) >= 80_000
    message = refusal(halve(path))
    assert "whole copy" in message or name == "a.m4a"  # without its index nothing tells what this was


def test_an_ogg_cut_anywhere_in_its_last_page_or_just_behind_another(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.ogg", tone(8.0)).read_bytes()
    last_page = whole.rindex(b"OggS")
    path = tmp_path / "a.ogg"
    for kept in (last_page + 1, last_page + 3, last_page + 20, last_page + 40, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert "cut off" in refusal(path)


@pytest.mark.parametrize("kept", [20, 40, 44 + 500])
def test_a_wav_cut_in_its_header_or_soon_after(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut off" in refusal(path)


def test_a_file_without_a_sound_track(tmp_path: Path) -> None:
    import av

    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 16
        container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
        container.mux(track.encode(None))
    assert "no sound in it" in refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_values_that_are_not_sound(tmp_path: Path, value: float, rate_hz: int) -> None:
    waveform = tone(2.0, rate_hz).astype(np.float64)
    waveform[rate_hz] = value
    assert "at 1.00 s is not sound" in refusal(write(tmp_path / "a.wav", waveform, rate_hz, "DOUBLE"))


@pytest.mark.parametrize("rate_hz", [1, 2**31 - 1])
def test_a_header_with_an_absurd_rate(tmp_path: Path, rate_hz: int) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    packed = bytearray(path.read_bytes())
    packed[24:28] = struct.pack("<I", rate_hz)
    path.write_bytes(packed)
    assert f"{rate_hz} Hz" in refusal(path) or "not a recording" in refusal(path)


def test_a_pipe_or_device_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "nothing comes out of this pipe" in refusal(tmp_path / "pipe.wav")
    assert "a device, not a file" in refusal("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0))
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_no_decoder_writes_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, 80_000))
    middle = bytearray(path.read_bytes())
    middle[len(middle) // 2 : len(middle) // 2 + 500] = bytes(range(250)) * 2
    path.write_bytes(middle)
    assert "stops decoding after 2.5 s" in refusal(path)
    assert "stops decoding after 2.5 s" in refusal(halve(path))
    assert capfd.readouterr() == ("", "")


# Costs


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1) as out:
        for _ in range(20):
            out.write(tone(60.0))
    tracemalloc.start()
    seconds = sum(len(block) for block in stream(path)) / 16_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds == 1200 and peak < 12e6  # the whole is 77 MB


def test_importing_the_room_is_quick() -> None:
    code = "import sys, focusasr.audio.load; print(sorted({'torch', 'librosa', 'av', 'soundfile'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.real
def test_real_speech_decodes_whole(real_data: Path) -> None:
    paths = sorted(real_data.glob("longform_en/audio/**/*.*"))
    assert paths and all(len(load(path)) / 16_000 == pytest.approx(probe_seconds(path), abs=0.1) for path in paths)


def test_total_seconds_by_headers_and_given_durations() -> None:
    soundfile.write("two.wav", np.zeros(2 * 16_000), 16_000)
    sources = [Source("two.wav"), Source("two.wav", 0.5), Source("two.wav", 0.5, 0.25), Source("two.wav", 3.0)]
    assert total_seconds(sources) == pytest.approx(2 + 1.5 + 0.25 + 0)
    assert total_seconds([]) == 0
    for unknown in (Source("absent.wav"), Source("-")):
        assert total_seconds([*sources, unknown]) is None
