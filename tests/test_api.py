"""The Python interface: what it takes, what it gives, what it refuses, and that it never prints."""

from __future__ import annotations

import doctest
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import focusasr
from focusasr import api
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.transcription.loaded_model import LoadedModel
from tests.helpers.tiny_whisper import write_whisper

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def recognizer() -> focusasr.Recognizer:
    return focusasr.load(device="cpu")


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three copies of the sample with pauses between them, cut into pieces of 5 s by the tests."""
    samples, rate = soundfile.read(ROOT / "tests" / "data" / "sample.flac", dtype="float32")
    path = tmp_path_factory.mktemp("long") / "long.wav"
    pause = np.zeros(2 * rate, np.float32)
    soundfile.write(path, np.concatenate([samples, pause, samples, pause, samples]), rate)
    return path


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail a test in which anything is printed."""
    capfd.readouterr()
    yield
    assert capfd.readouterr() == ("", "")


def test_examples_of_the_documentation_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(api)
    assert tried >= 10 and failed == 0


def test_every_public_name_is_there_and_no_other() -> None:
    assert set(focusasr.__all__) <= set(dir(focusasr))
    assert all(getattr(focusasr, name) is getattr(api, name) for name in focusasr.__all__)
    with pytest.raises(AttributeError, match="transcribe_file"):
        focusasr.transcribe_file  # noqa: B018


@pytest.mark.usefixtures("silent")
def test_all_kinds_of_audio_give_one_text(recognizer: focusasr.Recognizer, sample: Path, heard: str) -> None:
    samples, rate = soundfile.read(sample, dtype="float32")
    content = sample.read_bytes()
    pipe: Any = io.BytesIO(content)
    pipe.seekable = lambda: False
    with sample.open("rb") as file:
        kinds: list[Any] = [str(sample), sample, content, bytearray(content), io.BytesIO(content), pipe, file]
        texts = [recognizer.transcribe(audio).text for audio in kinds]
    arrays: list[Any] = [samples, samples.astype(np.float64), torch.from_numpy(samples), samples[::-1][::-1]]
    texts += [recognizer.transcribe(audio, sampling_rate=rate).text for audio in arrays]
    assert set(texts) == {heard}


@pytest.mark.usefixtures("silent")
def test_channels_are_chosen_or_told_apart(recognizer: focusasr.Recognizer, sample: Path, heard: str) -> None:
    samples, rate = soundfile.read(sample, dtype="float32")
    call = io.BytesIO()
    soundfile.write(call, np.stack([np.zeros_like(samples), samples], 1), rate, format="WAV")
    assert recognizer.transcribe(call, channel=1).text == heard != recognizer.transcribe(call, channel=0).text
    stream = recognizer.segments(call, channels="separate")
    assert {segment.channel for segment in stream if segment.text} == {1}
    assert stream.result.text.strip() == heard and "channel" in stream.result["segments"][0]
    with pytest.raises(focusasr.UsageError, match="channel"):
        recognizer.transcribe(call, channel=1, channels="separate")


@pytest.mark.usefixtures("silent")
def test_each_result_has_its_own_warnings(recognizer: focusasr.Recognizer, sample: Path) -> None:
    samples, rate = soundfile.read(sample, dtype="float32")
    call = io.BytesIO()
    soundfile.write(call, np.stack([samples, -samples], 1), rate, format="WAV")
    for _ in range(2):
        (line,) = [line for line in recognizer.transcribe(call).warnings if "channels" in line]
        assert "channel 0" in line


def test_samples_are_resampled_from_their_rate(recognizer: focusasr.Recognizer, sample: Path) -> None:
    samples, rate = soundfile.read(sample, dtype="float32")
    assert rate == SAMPLE_RATE_HZ
    result = recognizer.transcribe(np.repeat(samples, 3), sampling_rate=3 * rate)
    assert result.duration == pytest.approx(len(samples) / rate, abs=1e-3)
    assert recognizer.transcribe(samples, sampling_rate=2 * rate).duration == pytest.approx(
        result.duration / 2, abs=1e-3
    )


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("audio", "rate", "kind", "seen"),
    [
        ("absent.wav", None, focusasr.AudioError, "absent.wav"),
        (b"", None, focusasr.AudioError, "0 bytes"),
        (b"no sound" * 100, None, focusasr.AudioError, "not a recording"),
        (5, None, focusasr.InputError, "int"),
        (io.StringIO("text"), None, focusasr.InputError, "'rb'"),
        (np.zeros((2, 100), np.float32), 16_000, focusasr.InputError, "(2, 100)"),
        (np.zeros(100, np.int16), 16_000, focusasr.InputError, "int16"),
        (np.full(100, 20_000, np.float32), 16_000, focusasr.InputError, "samples reach 20000"),
        (torch.zeros(100, dtype=torch.int32), 16_000, focusasr.InputError, "int32"),
        (np.full(100, np.nan, np.float32), 16_000, focusasr.AudioError, "nan"),
        (np.zeros(100, np.float32), 5, focusasr.AudioError, "sampling_rate is 5"),
        (np.zeros(100, np.float32), 44_100.5, focusasr.AudioError, "44100.5"),
        ("absent.wav", 16_000, focusasr.InputError, "sampling_rate is 16000"),
        (b"RIFF", 16_000, focusasr.InputError, "sampling_rate is 16000"),
    ],
)
def test_unusable_audio_is_refused_in_one_line(
    recognizer: focusasr.Recognizer, audio: Any, rate: Any, kind: type[Exception], seen: str
) -> None:
    with pytest.raises(kind) as refusal:
        recognizer.transcribe(audio, sampling_rate=rate)
    assert seen in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_truncated_recording_raises_with_its_beginning(recognizer: focusasr.Recognizer, sample: Path) -> None:
    content = sample.read_bytes()
    with pytest.raises(focusasr.AudioError) as refusal:
        recognizer.transcribe(content[: len(content) // 2])
    assert 0 < refusal.value.partial.duration < 4 and refusal.value.partial.text


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"beem_size": 5}, "'beam_size'"),
        ({"xyzzy": 5}, "'xyzzy'"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"beam_size": "many"}, "beam_size is 'many'"),
        ({"task": "translate"}, "task is 'translate'"),
        ({"max_line_width": 20}, "--word-timestamps"),
    ],
)
def test_options_are_refused_as_the_command_refuses_them(
    run: Any, recognizer: focusasr.Recognizer, sample: Path, options: dict[str, Any], seen: str
) -> None:
    for call in (recognizer.transcribe, recognizer.segments):
        with pytest.raises(focusasr.UsageError) as refusal:
            list(call(sample, **options).segments if call == recognizer.transcribe else call(sample, **options))
        assert seen in str(refusal.value)
    with pytest.raises(focusasr.UsageError) as refusal:
        focusasr.load(device="cpu", **options)
    (name, value) = next(iter(options.items()))
    if (" is " in seen or "--" in seen) and value != "many":  # Typer itself refuses what is no number
        command = run("transcribe", sample, f"--{name.replace('_', '-')}", value)
        line = getattr(refusal.value, "typed", str(refusal.value))  # with the option as it is typed
        assert (command.status, command.err.strip()) == (2, f"focusasr: {line}")


def test_options_given_to_load_hold_for_every_call(sample: Path) -> None:
    timed = focusasr.load(device="cpu", word_timestamps=True)
    assert [word["word"] for word in timed.transcribe(sample).words][:2] == [" s", " a"]
    assert timed.transcribe(sample, word_timestamps=False).words == []


def test_weights_are_prepared_once_while_the_compute_type_stays(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from focusasr.model import engine

    prepared: list[object] = []
    usual = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda *given: prepared.append(given[2].compute_type) or usual(*given))
    ours = focusasr.load(device="cpu")
    for options in (
        {},
        {"joint_beam_size": 1},
        {"word_timestamps": True},
        {"fp16": False},
        {"compute_type": "float32"},
    ):
        ours.transcribe(sample, **options)
    assert prepared == ["auto", "float32"]


def test_only_prepared_weights_stay_in_memory(sample: Path, tmp_path: Path, heard: str) -> None:
    ours = focusasr.load(device="cpu")
    assert {one.device.type for one in ours._model._checkpoint.model.parameters()} == {"meta"}
    assert ours.transcribe(sample).text == heard == ours.transcribe(sample, compute_type="bfloat16").text
    assert {one.device.type for one in ours._model._checkpoint.model.parameters()} == {"meta"}
    folder = str(write_whisper(tmp_path / "whisper"))
    whisper = focusasr.load(folder, device="cpu", compute_type="bfloat16")
    assert {one.device.type for one in whisper._model._checkpoint.model.parameters()} == {"meta"}
    options = {"language": "en", "beam_size": 1, "temperature_increment_on_fallback": None}
    before = whisper.transcribe(sample, **options).text
    fresh = focusasr.load(folder, device="cpu", compute_type="bfloat16", word_timestamps=True)
    assert whisper.transcribe(sample, word_timestamps=True, **options) == fresh.transcribe(sample, **options)
    assert whisper.transcribe(sample, **options).text == before


def test_result_is_the_json_of_the_command_and_writes_its_files(
    run: Any, recognizer: focusasr.Recognizer, sample: Path, tmp_path: Path
) -> None:
    options = {"word_timestamps": True, "max_line_width": 12, "max_line_count": 1}
    result = recognizer.transcribe(sample, **options)
    typed = ["--word-timestamps", "--max-line-width", "12", "--max-line-count", "1"]
    assert run("transcribe", sample, "-o", tmp_path / "command", *typed).status == 0
    written = result.write(tmp_path / "api")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "command").iterdir()}
    for path in written:
        assert path.read_bytes() == (tmp_path / "command" / path.name).read_bytes()
    assert result.to_dict() == json.loads((tmp_path / "api" / "sample.json").read_text())
    assert result["segments"][0]["text"] == result.segments[0].text
    assert dict(result) == result.to_dict() and "text" in result and result.get("absent") is None
    assert [path.name for path in result.write(tmp_path / "two", "srt, vtt")] == ["sample.srt", "sample.vtt"]
    with pytest.raises(focusasr.UsageError, match="docx"):
        result.write(tmp_path / "none", ["txt", "docx"])
    assert not (tmp_path / "none").exists()


def test_subtitles_without_word_times_are_those_of_the_command(
    run: Any, recognizer: focusasr.Recognizer, sample: Path, tmp_path: Path
) -> None:
    assert run("transcribe", sample, "-o", tmp_path, "-f", "srt").status == 0
    assert recognizer.transcribe(sample).render("srt") == (tmp_path / "sample.srt").read_text()


def test_outputs_of_audio_without_a_name_are_called_audio(recognizer: focusasr.Recognizer, tmp_path: Path) -> None:
    result = recognizer.transcribe(np.zeros(16_000, np.float32))
    assert [path.name for path in result.write(tmp_path, "txt")] == ["audio.txt"]


@pytest.mark.usefixtures("silent")
def test_warnings_are_collected_and_not_printed(recognizer: focusasr.Recognizer, sample: Path) -> None:
    (line,) = recognizer.transcribe(sample, no_speech_threshold=0.5).warnings
    assert "--no-speech-threshold" in line
    assert recognizer.transcribe(sample).warnings == []


def test_segments_of_a_native_model_come_in_order_before_the_end(
    recognizer: focusasr.Recognizer, long_recording: Path
) -> None:
    options = {"max_segment_seconds": 5.0, "batch_size": 1}
    whole = recognizer.transcribe(long_recording, **options)
    stream = recognizer.segments(long_recording, **options)
    assert list(stream) == whole.segments and len(whole.segments) >= 3
    assert stream.result == recognizer.transcribe(long_recording, **options)
    first = threading.Event()
    with recognizer.segments(long_recording, **options) as early:
        next(early)
        first.set()
    assert first.is_set()


def test_long_audio_in_memory_equals_its_file(recognizer: focusasr.Recognizer, long_recording: Path) -> None:
    samples, rate = soundfile.read(long_recording, dtype="float32")
    expected = recognizer.transcribe(long_recording, max_segment_seconds=5.0).segments
    assert recognizer.transcribe(samples, sampling_rate=rate, max_segment_seconds=5.0).segments == expected
    with long_recording.open("rb") as file:
        assert recognizer.transcribe(file, max_segment_seconds=5.0).segments == expected


def test_closed_stream_ends_its_work_and_frees_the_recognizer(
    recognizer: focusasr.Recognizer, long_recording: Path, sample: Path, heard: str
) -> None:
    stream = recognizer.segments(long_recording, max_segment_seconds=5.0, batch_size=1)
    next(stream)
    stream.close()
    assert recognizer.transcribe(sample).text == heard
    with pytest.raises(focusasr.InputError, match="closed"):
        stream.result  # noqa: B018


def test_segments_raise_what_transcribe_raises(recognizer: focusasr.Recognizer) -> None:
    stream = recognizer.segments("absent.wav")
    for _ in range(2):
        with pytest.raises(focusasr.AudioError, match=r"absent\.wav"):
            next(stream)


def test_progress_gets_all_seconds_and_may_end_the_work(
    recognizer: focusasr.Recognizer, long_recording: Path, sample: Path, heard: str
) -> None:
    seconds: list[float] = []
    recognizer.transcribe(sample, progress=seconds.append)
    assert sum(seconds) == pytest.approx(4.26, abs=0.01)

    def stop(seconds: float) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        recognizer.transcribe(long_recording, progress=stop)
    assert recognizer.transcribe(sample).text == heard


def test_threads_share_a_recognizer(recognizer: focusasr.Recognizer, sample: Path, heard: str) -> None:
    texts: list[str] = []
    work = [threading.Thread(target=lambda: texts.append(recognizer.transcribe(sample).text)) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert texts == [heard] * 4


@pytest.mark.parametrize("batched", [False, True])
def test_whisper_models_give_segments_of_audio_in_memory(tmp_path: Path, sample: Path, batched: bool) -> None:
    ours = focusasr.load_model(str(write_whisper(tmp_path / "whisper")), device="cpu", batched=batched, beam_size=1)
    assert ours.is_whisper
    whole = ours.transcribe(sample.read_bytes(), language="en", temperature_increment_on_fallback=None)
    stream = ours.segments(sample, language="en", temperature_increment_on_fallback=None)
    assert list(stream) == whole.segments == stream.result.segments
    assert whole.language == "en"


def test_cpu_continues_a_stream_without_repeating_segments(
    recognizer: focusasr.Recognizer, long_recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from focusasr.transcription.native import Recognizer

    options = {"max_segment_seconds": 5.0, "batch_size": 1}
    expected = recognizer.transcribe(long_recording, **options).segments
    model = LoadedModel(api.ModelChoice(device="cpu"))
    loaded = model.recognizer(api.Options.read(api.sort_options(options)))
    native = loaded.recognizer
    assert isinstance(native, Recognizer)
    monkeypatch.setattr(native, "device", torch.device("meta"))  # so that it counts as one that can fail
    usual, calls = native._answers, []

    def fail_later(pieces: Any) -> Any:
        calls.append(len(pieces))
        if len(calls) == 3:
            raise RuntimeError("CUDA error: the device is gone")
        with monkeypatch.context() as patch:
            patch.setattr(native, "device", torch.device("cpu"))
            return usual(pieces)

    monkeypatch.setattr(native, "_answers", fail_later)
    found: list[focusasr.Segment] = []
    (outcome,) = loaded.shared(
        [api.Source(str(long_recording))], lambda *_: None, found=lambda *part: found.extend(part[2])
    )
    assert outcome.transcript is not None and len(calls) == 3
    assert [(one.start, one.text) for one in found] == [(one.start, one.text) for one in expected]


def test_score_has_an_interval_and_refuses_uneven_lists() -> None:
    score = focusasr.score(["a b c d", "e f", "g"], ["a b c x", "e f", "g"])
    assert score.wer == pytest.approx(1 / 7)
    rate = score.rates["wer"]
    assert rate.low is not None and rate.high is not None and rate.low <= rate.value == score.wer <= rate.high
    assert focusasr.score("a b", "a c").wer == 0.5
    for references, hypotheses in ((["a"], []), ([], []), (["a", "b"], ["a"])):
        with pytest.raises(focusasr.InputError, match=f"{len(references)} references"):
            focusasr.score(references, hypotheses)
    with pytest.raises(focusasr.InputError, match="None"):
        focusasr.score(["a", None], ["a", "b"])  # type: ignore[list-item]


def test_available_models_are_those_that_load_names() -> None:
    names = focusasr.available_models()
    assert names[0] == "default" and {"alnum", "tiny.en", "turbo", "large-v3"} <= set(names)


def test_model_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(focusasr.InputError, match="tiny-en") as refusal:
        focusasr.load("tiny-en", device="cpu")
    assert "did you mean" in str(refusal.value)
    with pytest.raises(focusasr.UsageError, match="device is 'gpu'"):
        focusasr.load(device="gpu")


def test_samples_have_no_track_and_no_channel(recognizer: focusasr.Recognizer) -> None:
    silence = np.zeros(16_000, np.float32)
    for options in ({"audio_track": 0}, {"channel": 0}, {"channels": "separate"}):
        for method in (recognizer.transcribe, recognizer.segments):
            with pytest.raises(focusasr.UsageError, match=next(iter(options))):
                method(silence, **options)
        with pytest.raises(focusasr.UsageError, match=next(iter(options))):
            recognizer.live(**options)
