"""Wrong values of options and of a TOML file's settings, each refused in one line as it was given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from focusasr.data.quality import KINDS
from focusasr.runtime.errors import SettingError, UsageError, as_option


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["transcribe", "x.wav", "--threads", "-1"], ["--threads", "-1", "0", "1024"]),
        (["evaluate", "m", "--threads", "2000"], ["--threads", "2000", "0", "1024"]),
        (["transcribe", "x.wav", "--batch_size", "0"], ["--batch-size 0", "1 to 1000000"]),
        (["transcribe", "x.wav", "--batch-size", "9" * 20], [f"--batch-size {'9' * 20}"]),
        (["transcribe", "x.wav", "--span-scale", "1e-45"], ["--span-scale 1e-45", "1e-09 to 1000000000"]),
        (["transcribe", "x.wav", "--temperature", "nan"], ["--temperature nan"]),
        (["transcribe", "x.wav", "--task", "sing"], ["--task sing", "transcribe, translate"]),
        (["transcribe", "x.wav", "--device", "tpu"], ["--device tpu", "auto, cuda, cuda:N, mps or cpu"]),
        (["transcribe", "x.wav", "--fp16=maybe"], ["--fp16 maybe", "True or False"]),
        (["transcribe", "x.wav", "-m"], ["-m", "focusasr transcribe --help"]),
        (["transcribe", "x.wav", "--languag", "en"], ["--languag;", "--language?", "focusasr transcribe --help"]),
        (["preprocess", "x", "-o", "y", "--split-seconds", "20"], ["--split-seconds 20", "align_with"]),
        (["preprocess", "x", "-o", "y", "--by", "a"], ["--by a", "split", "90/5/5"]),
        (["preprocess", "x", "-o", "y", "--max-seconds", ".05"], ["--max-seconds 0.05", "min_seconds (0.1)"]),
        (["preprocess", "x", "-o", "y", "--align-with", "a"], ["--align-with a", "split_seconds"]),
        (["preprocess", "x", "-o", "y", "--min-rate", "5", "--max-rate", "2"], ["--max-rate 2", "min_rate (5.0)"]),
        (["preprocess", "x", "-o", "y", "--drop", "odd sound"], ["--drop 'odd sound'", *KINDS]),
        (["transcribe", "x.wav", "-f", "srtt"], ["--output-format srtt", "txt, vtt, srt, tsv, json or all"]),
        (["transcribe", "x.wav", "--out", "y"], ["--out;", "--output-dir?", "focusasr transcribe --help"]),
        (["transcribe", "x.wav", "-v"], ["-v", "focusasr transcribe --help"]),
        (["train", "m.jsonl", "--strides", "2", "-o", "y"], ["--strides", "2 whole numbers"]),
        (["convert", "x", "y", "--dtype", "int4"], ["--dtype int4", "float32, float16, int8"]),
        (["train", "m", "--find-batch", "--find-lr"], ["--find-batch and --find-lr"]),
        (["preprocess", "x", "-o", "y", "--lufs", "-16"], ["--lufs -16", "loudness ebu", "'keep'"]),
        (["train", "m.jsonl", "--vocabulary-size", "99"], ["--vocabulary-size 99", "tokens bpe", "'characters'"]),
        (["train", "m.jsonl", "--heads", "5"], ["--width 224", "heads (5)"]),
        (["train", "m.jsonl", "--init-from", "alnum", "--preset", "tiny"], ["--preset tiny"]),
        (["adapt", "tiny.en", "m.jsonl", "--init-from", "alnum"], ["--init-from"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(run, arguments: list[str], named: list[str]) -> None:
    run(*arguments).refused(2, *named)


@pytest.mark.parametrize(
    ("toml", "options", "named"),
    [
        ("[train]\nsteps = 0", [], ["run.toml [train]:", "steps is 0"]),
        ("[train]\nsteps = 0", ["--steps", "-1"], ["run.toml or options [train]:", "steps is -1"]),
        ("[model]\nheads = 5", [], ["run.toml [model]:", "width is 224", "heads (5)"]),
        ("[model]\nheads = 5", ["--width", "20.5"], ["--width 20.5"]),
        ("[model]\nheads = 5", ["--width", "24"], ["options [model]:", "width is 24", "heads (5)"]),
        ("[model]\nheads = 4", ["--heads", "5"], ["options [model]:", "width is 224", "heads (5)"]),
        ('[train]\ninit_from = "alnum"\n[model]\nheads = 2', [], ["run.toml:", "heads is 2", "4"]),
        ('[train]\ninit_from = "alnum"', ["--case", "upper"], ["options:", "case is 'upper'", "'lower'"]),
        ('[train]\ninit_from = "alnum"', ["--tokens", "bpe"], ["options:", "tokens is 'bpe'", "'characters'"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_file(run, toml: str, options: list[str], named: list[str]) -> None:
    Path("run.toml").write_text(toml)
    run("train", "m.jsonl", "--config", "run.toml", *options).refused(2, *named)


@pytest.mark.parametrize(
    ("value", "typed"),
    [(0.1, "0.1"), (20.0, "20"), ("it's", "'it'\"'\"'s'"), (["a", "b c"], "a 'b c'"), ((2, 2), "2 2")],
)
def test_values_as_they_are_typed(value: object, typed: str) -> None:
    assert as_option("a_name", value) == f"--a-name {typed}"
    assert (as_option("a_name", True), as_option("a_name", False)) == ("--a-name", "--no-a-name")
    assert len(as_option("a_name", "x" * 1000)) < 220


def test_a_setting_error_is_a_usage_error() -> None:
    error = SettingError("batch_size", 0, "at least 3")
    assert isinstance(error, UsageError) and "batch_size is 0" in str(error)


def test_help_marks_what_only_whisper_models_heed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown, _, research = run("transcribe", "--help").out.partition("Settings for research:\n")
    native, *whisper = shown.split("Whisper models only:\n")
    assert len(whisper) == 2
    for name in ("--batch-size", "--word-timestamps", "--max-line-width", "--output-dir"):
        assert f"{name} " in native
    for name in ("--span-scale", "--temperature-scale", "--joint-beam-size", "--ctc-weight"):
        assert f"{name} " in research and f"{name} " not in shown
    for name in ("--beam-size", "--temperature", "--task", "--language", "--initial-prompt", "--batched"):
        assert f"  {name} " in "".join(whisper) and f"  {name} " not in native
    assert "that fails --logprob-threshold is" in " ".join("".join(whisper).split())  # not logprob_threshold


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("steps = 5", "[train]"),
        ('train = "a.jsonl"', "[data]"),
        ('preset = "tiny"', "[model]"),
        ("x = 1", "settings: data"),
    ],
)
def test_a_setting_outside_of_tables_is_told_its_table(run, line: str, place: str) -> None:
    Path("run.toml").write_text(f"{line}\n[text]\ncase = 'lower'\n")
    result = run("train", "m.jsonl", "--config", "run.toml")
    result.refused(2, place)


@pytest.mark.parametrize("command", ["train", "adapt", "transcribe", "listen", "serve", "evaluate", "inspect"])
def test_settings_for_research_are_the_last_group_of_a_help(run, command: str) -> None:
    titles = re.findall(r"^(\w.*):$", run(command, "--help").out, re.M)
    assert titles[:2] == ["Arguments", "Options"] or titles[0] == "Options"
    assert titles.count("Settings for research") == 1 and titles[-1] == "Settings for research"


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("transcribe", "languag", "language"),
        ("transcribe", "langauge", "language"),
        ("transcribe", "lang", "language"),
        ("transcribe", "mdoel", "model"),
        ("transcribe", "ouput-dir", "output-dir"),
        ("transcribe", "beamsize", "beam-size"),
        ("transcribe", "word-timestamp", "word-timestamps"),
        ("transcribe", "temprature", "temperature"),
        ("transcribe", "condition-on-prev-text", "condition-on-previous-text"),
        ("transcribe", "no-speech-treshold", "no-speech-threshold"),
        ("transcribe", "treads", "threads"),
        ("train", "learning-rte", "learning-rate"),
        ("train", "weight-deacy", "weight-decay"),
        ("train", "warmup", "warmup-steps"),
        ("transcribe", "diarize", None),
        ("transcribe", "translate", None),
        ("transcribe", "no-timestamps", None),
        ("transcribe", "log-progress", None),
        ("transcribe", "output-srt", None),
        ("transcribe", "min-speakers", None),
        ("transcribe", "hf-token", None),
        ("transcribe", "chunk-size", None),
        ("transcribe", "vad-parameters", None),
        ("transcribe", "no-gpu", None),
        ("transcribe", "format", None),
        ("train", "epochs", None),
        ("train", "lr", None),
        ("train", "gpus", None),
        ("train", "checkpoint", None),
    ],
)
def test_only_near_options_are_suggested(run, command: str, typed: str, meant: str | None) -> None:
    result = run(command, "x", f"--{typed}", "1")
    hint = f"; did you mean --{meant}? See" if meant else "; see"
    said = f"focusasr: no such option: --{typed}{hint} focusasr {command} --help\n"
    assert (result.status, result.out, result.err) == (2, "", said)


@pytest.mark.parametrize(("normalizer", "errors"), [("none", 1), ("basic", 0)])
def test_a_choice_named_none_is_taken(run, normalizer: str, errors: int) -> None:
    Path("truth.txt").write_text("One.\n")
    Path("texts.txt").write_text("one\n")
    result = run("evaluate", "truth.txt", "--hypotheses", "texts.txt", "--normalizer", normalizer, "--json")
    assert result.status == 0 and json.loads(result.out)["wer"] == errors
