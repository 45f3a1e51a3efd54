"""The command line as a script for whisper knows it: its names, spellings, defaults and files; and the words said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from focusasr.model import checkpoint_folder, hub
from focusasr.runtime.errors import InputError
from focusasr.text.languages import OWN_NAMES
from focusasr.text.whisper_tokenizer import LANGUAGES, language_code
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig, OutputConfig, SearchConfig
from tests.helpers.tiny_whisper import write_whisper
from tests.helpers.whisper_pairs import chirps

RATE_HZ = 16_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny")


@pytest.fixture
def talk() -> str:
    chance = np.random.default_rng(0)
    soundfile.write("talk.wav", 0.2 * chance.standard_normal(5 * RATE_HZ), RATE_HZ)
    return "talk.wav"


def test_defaults_are_those_of_whisper() -> None:
    """The table of whisper's own command line, where the package is installed."""
    import argparse
    import sys

    import whisper  # noqa: F401

    seen: dict[str, object] = {}

    def look(parser: argparse.ArgumentParser) -> argparse.Namespace:
        seen.update({action.dest: action.default for action in parser._actions})
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", look)
        sys.modules["whisper.transcribe"].cli()
    elsewhere = {"help", "audio", "model", "model_dir", "device", "output_dir", "output_format", "fp16", "threads"}
    ours: dict[str, object] = {"word_timestamps": False}
    for config in (SearchConfig(), LongformConfig(), OutputConfig()):
        ours |= config.__dict__
    assert {name: ours[name] for name in seen.keys() - elsewhere} == {
        name: seen[name] for name in seen.keys() - elsewhere
    }


def test_a_script_for_whisper_runs(run, model: Path, talk: str) -> None:
    """Every option of whisper's, spelled as there."""
    result = run(
        "transcribe", talk, "--model", model, "--model_dir", ".", "--device", "cpu", "--output_dir", "out",
        "--output_format", "all", "--verbose", "False", "--task", "transcribe", "--language", "English",
        "--temperature", "0", "--best_of", "5", "--beam_size", "2", "--patience", "1.0", "--length_penalty", "0.5",
        "--suppress_tokens", "-1", "--initial_prompt", "the cat", "--carry_initial_prompt", "False",
        "--condition_on_previous_text", "True", "--fp16", "False", "--temperature_increment_on_fallback", "None",
        "--compression_ratio_threshold", "2.4", "--logprob_threshold", "-1.0", "--no_speech_threshold", "None",
        "--highlight_words", "False", "--max_line_width", "None", "--max_line_count", "None",
        "--max_words_per_line", "None", "--threads", "0", "--clip_timestamps", "0",
        "--hallucination_silence_threshold", "None", "--prepend_punctuations", "(", "--append_punctuations", ".",
        "--word_timestamps", "False",
    )  # fmt: skip
    assert (result.status, result.out, result.err) == (0, "", "")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        f"talk.{s}" for s in ("json", "srt", "tsv", "txt", "vtt")
    ]
    written = json.loads(Path("out/talk.json").read_text())
    assert list(written) == ["text", "segments", "language"] and written["language"] == "en"
    assert written["segments"] and {segment["temperature"] for segment in written["segments"]} == {0.0}


def test_whisper_models_write_here_and_print_times(run, model: Path, talk: str) -> None:
    result = run("transcribe", talk, "--model", model, "-f", "srt", "--beam_size", "None", "--temperature", "1")
    assert result.status == 0
    assert [path.name for path in Path().iterdir()] == [talk, "talk.srt"] or Path("talk.srt").is_file()
    language, *segments = result.out.splitlines()
    assert language.startswith("Detected language: ") and segments
    assert all(line.startswith("[0") and " --> " in line for line in segments)
    printed = run("transcribe", talk, "--model", model, "-o", "-", "--beam_size", "None", "-f", "txt")
    assert printed.status == 0 and not Path("-").exists() and "-->" not in printed.out


def test_several_recordings_are_named_before_their_text(run, model: Path, talk: str) -> None:
    Path("other.wav").write_bytes(Path(talk).read_bytes())
    result = run(
        "transcribe", talk, "other.wav", "--model", model, "-f", "txt", "--language", "en", "--beam_size", "None"
    )
    lines = result.out.splitlines()
    named = [place for place, line in enumerate(lines) if not line.startswith("[")]
    assert result.status == 0 and [lines[place] for place in named] == [f"{talk}:", "other.wav:"]
    assert lines[1 : named[1]] == lines[named[1] + 1 :] != []


def test_text_appears_while_a_recording_is_transcribed(
    run, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two windows the first one's text is printed before the second one is read."""
    soundfile.write("long.wav", chirps(50.0).numpy(), 16_000)
    printed: list[str] = []
    honest = WhisperRecognizer._read

    def look(*arguments: Any) -> Any:
        printed.append(capfd.readouterr().out)
        return honest(*arguments)

    monkeypatch.setattr(WhisperRecognizer, "_read", look)
    options = ("--language", "en", "--beam_size", "None", "--temperature_increment_on_fallback", "None")
    assert run("transcribe", "long.wav", "--model", model, "-f", "txt", *options).status == 0
    assert len(printed) > 1 and not printed[0] and printed[1].startswith("[00:")


def test_a_prompt_that_is_cut_is_told(run, model: Path, talk: str) -> None:
    long = "one two three four " * 100
    for option in ("--initial_prompt", "--hotwords", "--prefix"):
        result = run("transcribe", talk, "--model", model, "--language", "en", "--beam_size", "None", option, long)
        (line,) = [line for line in result.err.splitlines() if "are cut" in line]
        assert option.replace("_", "-") in line and result.status == 0
    assert "are cut" not in run("transcribe", talk, "--model", model, "--beam_size", "None", option, "one two").err


def test_a_language_is_detected_and_written(run, model: Path, talk: str) -> None:
    said = run(
        "transcribe",
        talk,
        "--model",
        model,
        "-o",
        "-",
        "-f",
        "json",
        "--beam_size",
        "1",
        "--temperature_increment_on_fallback",
        "none",
    )
    assert json.loads(said.out)["language"] in ("en", "de", "es")
    asked = run(
        "transcribe", talk, "--model", model, "-o", "-", "-f", "json", "--beam_size", "1", "--language", "German"
    )
    assert json.loads(asked.out)["language"] == "de"
    assert "did you mean German?" in run("transcribe", talk, "--model", model, "--language", "Germn").err


@pytest.mark.parametrize(("option", "value"), [("suppress-tokens", "1,99999"), ("beam-size", "99999")])
def test_what_a_model_has_too_few_tokens_for_is_refused(run, model: Path, talk: str, option: str, value: str) -> None:
    result = run("transcribe", talk, "--model", model, "-o", "-", f"--{option}", value)
    assert (result.status, result.out) == (2, "")
    line = result.err.splitlines()[-1]
    assert f"--{option}" in line and value in line
    assert "this model has" in result.err


def test_batches_read_the_same_sound(run, model: Path, talk: str) -> None:
    result = run(
        "transcribe", talk, talk, "--model", model, "--batched", "True", "--batch_size", "2", "-o", "out", "-f", "json"
    )
    assert result.status == 0 and Path("out/talk.json").is_file()


def test_whisper_models_say_what_they_do_without(run, model: Path, talk: str) -> None:
    command = ("transcribe", talk, "--model", model, "-o", "-", "--ctc-weight", "0.5", "--vad-threshold", "0.4")
    native, finder = "--ctc-weight: has no effect without a native model", "--vad-threshold: has no effect"
    result = run(*command)
    assert result.status == 0 and [line[10:] for line in result.err.splitlines()] == [
        native,
        f"{finder} without --vad-filter or --batched",
    ]
    assert finder not in run(*command, "--vad-filter", "True").err
    lengths = ("--vad_min_silence_duration_ms", "500", "--max-segment-seconds", "9")
    idle = run("transcribe", talk, "--model", model, "-o", "-", *lengths).err
    assert idle.count("has no effect without --vad-filter or --batched") == 2
    assert run("transcribe", talk, "--model", model, "-o", "-", *lengths, "--batched", "True").err == ""


def test_native_models_say_what_they_do_without(run, sample: Path, heard: str) -> None:
    result = run(
        "transcribe", sample, "--temperature", "0.4", "--initial_prompt", "x", "--language", "de", "--beam_size", "None"
    )
    assert (result.status, result.out) == (0, heard + "\n")
    assert "--temperature, --initial-prompt: ignored" in result.err
    assert "--language de: ignored, because this model knows only en" in result.err
    assert len(result.err.splitlines()) == 2
    result = run("transcribe", sample, "--max-segment-seconds", 45)
    said = "--max-segment-seconds 45: this model was trained on at most 20 s, and may lose words in longer segments"
    assert result.status == 0 and result.err == f"focusasr: {said}\n"
    for option in (["--task", "translate"], ["--multilingual", "True"]):
        run("transcribe", sample, *option).refused(2, option[0], "--model")
    assert run("transcribe", sample, "--language", "English", "--task", "transcribe").err == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--max_line_width", "30"], 2, "needs --word-timestamps"),
        (["--highlight_words", "True"], 2, "needs --word-timestamps"),
        (["--patience", "0.01"], 2, "--patience 0.01"),
        (["--suppress_tokens", "a,b"], 2, "--suppress-tokens a,b"),
        (["--suppress_tokens", "²"], 2, "--suppress-tokens '²'"),
        (["--suppress_tokens", "9" * 5000], 2, "--suppress-tokens 9"),
        (["--temperature", "1e-40"], 2, "--temperature 1e-40"),
        (["--temperature_increment_on_fallback", "1e-320"], 2, "--temperature-increment-on-fallback"),
        (["--clip_timestamps", "1,x"], 2, "--clip-timestamps 1,x"),
        (["--clip_timestamps", "0,2,5,2"], 2, "--clip-timestamps 0,2,5,2"),
        (["--beam_size", "two"], 2, "beam-size"),
        (["--multilingual", "True", "--language", "de"], 2, "--multilingual"),
        (["--vad_min_silence_duration_ms", "-1"], 2, "--vad-min-silence-duration-ms -1"),
        (["--language", "klingon"], 2, "--language klingon"),
    ],
)
def test_wrong_values_are_named(run, sample: Path, arguments: list[str], status: int, said: str) -> None:
    result = run("transcribe", sample, *arguments)
    assert (result.status, result.out) == (status, "")
    assert said in result.err


def test_switches_take_a_word_or_none(run, sample: Path, heard: str) -> None:
    """--word_timestamps True, =False, or bare before a file: the file is never taken for the word."""
    for spelled in (["--vad_filter", "True"], ["--vad-filter"], ["--vad_filter=false"], ["--no-vad-filter"]):
        assert run("transcribe", *spelled, sample).out == heard + "\n"


def test_names_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []
    for module in (hub, checkpoint_folder):
        monkeypatch.setattr(module, "download", lambda *arguments: asked.append(arguments) or tmp_path)
    for name in ("tiny.en", "large", "turbo", "large-v1", "distil-whisper/distil-small.en"):
        checkpoint_folder.find_checkpoint(name, True, tmp_path)
    openai = [f"openai/whisper-{size}" for size in ("tiny.en", "large-v3", "large-v3-turbo", "large")]
    assert asked == [(name, True, tmp_path) for name in (*openai, "distil-whisper/distil-small.en")]
    (tmp_path / "tiny.en.pt").touch()
    assert checkpoint_folder.find_checkpoint("tiny.en", False, tmp_path) == tmp_path / "tiny.en.pt"
    (tmp_path / "large-v3-turbo.pt").touch()  # as whisper keeps it
    assert checkpoint_folder.find_checkpoint("turbo", False, tmp_path) == tmp_path / "large-v3-turbo.pt"
    Path("base").mkdir()
    assert checkpoint_folder.find_checkpoint("base") == Path("base")  # what lies here wins


@pytest.mark.parametrize(("name", "near"), [("runs/min", "runs/mine"), ("./smal", "small"), ("base.pt", "base")])
def test_the_nearest_name_is_told(name: str, near: str) -> None:
    for folder in ("runs/mine/best", "small", "./min"):
        Path(folder).mkdir(parents=True)
    for folder in ("runs/mine/best", "small"):
        Path(folder, "config.json").touch()
    with pytest.raises(InputError, match=rf"\(did you mean {near}\?\)"):
        checkpoint_folder.find_checkpoint(name, True)


def test_names_of_languages() -> None:
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    for name, code in TO_LANGUAGE_CODE.items():
        assert language_code(name.title()) == code
    assert {language_code(code.upper()) for code in LANGUAGES} == set(LANGUAGES)
    with pytest.raises(InputError, match="did you mean Welsh"):
        language_code("welch")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        *(("Deutsch", "de"), ("français", "fr"), ("ESPAÑOL", "es"), ("日本語", "ja"), ("русский", "ru")),
        *(("en-US", "en"), ("zh-CN", "zh"), ("zh_Hant_TW", "zh"), ("zh-HK", "yue"), ("pt_BR", "pt"), ("sv-SE", "sv")),
        *(("nb-NO", "no"), ("nn-NO", "nn"), ("haw-US", "haw"), ("iw", "he"), ("fil", "tl")),
    ],
)
def test_languages_may_have_regions_or_their_own_names(given: str, code: str) -> None:
    assert language_code(given) == code


def test_own_names_stand_for_languages_of_whisper() -> None:
    assert set(OWN_NAMES.values()) <= set(LANGUAGES) and len(set(OWN_NAMES.values())) > 85
    for wrong in ("xx-US", "-US", "deutsches", ""):
        with pytest.raises(InputError, match="language"):
            language_code(wrong)
