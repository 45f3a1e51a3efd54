"""The command line as a user meets it: what is on stdout, what on stderr, and the exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from focusasr.cli import app as cli

RATE_HZ = 16_000


def tone(samples: int, channels: int = 1) -> np.ndarray:
    wave = 0.1 * np.sin(2 * np.pi * 300 * np.arange(samples) / RATE_HZ)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def test_one_file_gives_its_text(run, sample: Path, heard: str) -> None:
    result = run("transcribe", sample)
    assert (result.status, result.out) == (0, heard + "\n")


def test_several_files_give_a_line_each_in_the_order_given(run, sample: Path, heard: str) -> None:
    soundfile.write("b.wav", tone(RATE_HZ), RATE_HZ)
    result = run("transcribe", "b.wav", sample)
    assert (result.status, result.out) == (0, f"b.wav\t\n{sample}\t{heard}\n")


def test_one_file_in_another_format(run, sample: Path, heard: str) -> None:
    result = run("transcribe", sample, "-f", "json")
    assert json.loads(result.out)["text"].strip() == heard
    assert run("transcribe", sample, "--output_format", "srt").out.startswith("1\n00:00:00,")


def test_a_file_given_twice_is_heard_once_and_printed_as_several_are(run, sample: Path, heard: str) -> None:
    result = run("transcribe", sample, f"{sample.parent}/./{sample.name}")
    assert (result.status, result.out) == (0, f"{sample}\t{heard}\n")
    assert result.err.startswith("focusasr: each file is heard once; left out") and result.err.count("\n") == 1
    assert run("transcribe", sample, sample, "-f", "srt").status == 2


def test_files_of_every_format(run, sample: Path, heard: str) -> None:
    result = run("transcribe", sample, "--output_dir", "out")
    assert (result.status, result.out) == (0, "")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        f"sample.{s}" for s in ("json", "srt", "tsv", "txt", "vtt")
    ]
    assert Path("out/sample.txt").read_text() == heard + "\n"


def test_two_inputs_of_one_name_do_not_overwrite_each_other(run, sample: Path, heard: str) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
    Path("a/x.flac").write_bytes(sample.read_bytes())
    soundfile.write("b/x.flac", tone(RATE_HZ), RATE_HZ)
    assert run("transcribe", "a", "b", "-o", "out", "-f", "txt").status == 0
    assert sorted(path.read_text().strip() for path in Path("out").iterdir()) == ["", heard]


def test_standard_input(sample: Path, heard: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "focusasr", "transcribe", "-"],
        input=sample.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout.decode().strip()) == (0, heard), result.stderr.decode()


def make_bad_input(kind: str, sample: Path) -> str:
    name = f"{kind}.wav"
    sound = tone(RATE_HZ)
    if kind == "empty":
        Path(name).touch()
    elif kind == "text":
        Path(name).write_text("these are words, not sound\n" * 50)
    elif kind == "nan":
        sound[500] = np.nan
        soundfile.write(name, sound, RATE_HZ, subtype="FLOAT")
    elif kind == "folder":
        Path(name).mkdir()
    return name


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "nan", "folder", "*"])
def test_what_cannot_be_heard_is_named_in_one_line_and_the_others_go_on(
    run, sample: Path, heard: str, kind: str
) -> None:
    name = make_bad_input(kind, sample)
    result = run("transcribe", name, sample)
    assert (result.status, result.out) == (1, f"{sample}\t{heard}\n")
    lines = [line for line in result.err.splitlines() if name in line]
    assert len(lines) == 1 and len(result.err.splitlines()) == 2
    assert "1 of 2 files failed" in result.err
    assert run("transcribe", name, "-o", "out").status == 1
    assert not list(Path("out").iterdir()) if Path("out").exists() else True


@pytest.mark.parametrize(
    ("rate", "channels", "samples"),
    [(16_000, 1, 0), (16_000, 1, 1), (8_000, 1, 8_000), (192_000, 1, 50_000), (48_000, 6, 9_000)],
)
def test_odd_sound_is_heard_all_the_same(run, rate: int, channels: int, samples: int) -> None:
    soundfile.write("odd.wav", 0 * tone(samples, channels), rate)
    result = run("transcribe", "odd.wav")
    assert (result.status, result.out) == (0, "\n")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["transcribe"], 2, "files"),
        (["transcribe", "x.wav", "--no-such-option"], 2, "no-such-option"),
        (["transcribe", "x.wav", "-f", "doc"], 2, "doc"),
        (["transcribe", "x.wav", "y.wav", "-f", "srt"], 2, "--output-dir"),
        (["transcribe", "x.wav", "--batch-size", "0"], 2, "--batch-size 0"),
        (["transcribe", "x.wav", "--batch-size", "x"], 2, "--batch-size x"),
        (["transcribe", "x.wav", "--beam-size", "x"], 2, "--beam-size x"),
        (["transcribe", "x.wav", "--device", "cpu:1"], 2, "--device cpu:1"),
        (["transcribe", "x.wav", "--model", "nowhere"], 1, "nowhere"),
        (["transcribe", "*.nothing"], 1, "*.nothing"),
        (["evaluate", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["train"], 2, "manifest"),
        (["train", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["train", "m.jsonl", "--config", "nowhere.toml"], 1, "nowhere.toml"),
        (["train", "m.jsonl", "--config", "wrong.toml"], 2, "wrong.toml [train]: steps is 0"),
        (["train", "m.jsonl", "--config", "broken.toml"], 1, "broken.toml: not a TOML file"),
        (["train", "m.jsonl=0"], 2, "m.jsonl=0"),
        (["train", "wrong.toml=x"], 2, "wrong.toml=x"),
        (["train", "m.jsonl", "--heads", "5"], 2, "heads"),
        (["train", "m.jsonl", "--resume"], 1, "resume"),
        (["preprocess", "nowhere", "-o", "out"], 1, "nowhere"),
        (["no-such-command"], 2, "no-such-command"),
        (["transcrib", "x.wav"], 2, "'transcribe'?"),
    ],
)
def test_wrong_usage_says_what_is_wrong(run, arguments: list[str], status: int, said: str) -> None:
    Path("wrong.toml").write_text("[train]\nsteps = 0\n")
    Path("broken.toml").write_text("[train")
    result = run(*arguments)
    assert (result.status, result.out) == (status, "")
    assert said.lower() in result.err.lower()  # older Typers write arguments in capitals
    assert result.err.startswith("focusasr: ") and len(result.err.splitlines()) == 1
    assert "value error" not in result.err.lower()


def test_several_formats_are_given_with_commas_or_again(run, sample: Path) -> None:
    assert run("transcribe", sample, "-o", "out", "-f", "srt,json", "-f", "txt").status == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["sample.json", "sample.srt", "sample.txt"]
    result = run("transcribe", sample, "-f", "srt", "-f", "json")
    result.refused(2, "srt and json", "--output-dir")


def test_a_text_in_doubt_is_named_and_others_are_counted(run, sample: Path, heard: str) -> None:
    """Speech turned round is none; who says what the model cannot know should not have to find out by reading."""
    sound, rate = soundfile.read(sample)
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(name, sound[::-1], rate)
    one = run("transcribe", "a.wav")
    assert one.status == 0 and one.out.strip()
    assert re.fullmatch(r"focusasr: a\.wav: this text is in doubt \(mean log probability -\d\.\d\d\); .*\n", one.err)
    several = run("transcribe", "a.wav", sample, "b.wav", "c.wav", "-o", "out")
    assert several.err == one.err + "focusasr: 2 other texts are in doubt too\n"
    assert run("transcribe", sample).err == ""


def test_an_empty_text_is_told_from_silence(run, sample: Path, heard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write("silence.wav", 0 * tone(RATE_HZ), RATE_HZ)
    monkeypatch.setattr("focusasr.text.tokenizer.Tokenizer.decode", lambda self, tokens: "")
    result = run("transcribe", "silence.wav", sample)
    assert (result.status, result.out) == (0, f"silence.wav\t\n{sample}\t\n")
    assert result.err.startswith(f"focusasr: {sample}: has speech") and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("tiny.em", "tiny.en?"), ("openai/whisper-tinny", "(did you mean openai/whisper-tiny?)")],
)
def test_a_model_with_nearly_a_known_name(run, name: str, said: str) -> None:
    result = run("info", name)
    result.refused(1, said)


def test_info_takes_its_checkpoint_in_either_way(run) -> None:
    first, second = run("info", "default", "--json"), run("info", "--model", "default", "--json")
    assert first.status == 0 and first.out == second.out
    assert run("info", "default", "--model", "elsewhere").status == 2


def test_of_many_bad_lines_the_first_are_told(run, sample: Path) -> None:
    Path("m.jsonl").write_text("not json\n" * 40)
    lines = run("evaluate", "m.jsonl").err.splitlines()
    assert len(lines) == 7 and "line 5: not JSON" in lines[4] and "40 lines cannot be used" in lines[5]


def test_tables_have_no_spaces_at_their_ends(run) -> None:
    texts(("a b", "a c"))
    lines = run("evaluate", "refs.txt", "--hypotheses", "hyps.txt", "--slice", "duration").out.splitlines()
    assert len(lines) > 5 and not [line for line in lines if line != line.rstrip()]


def test_what_is_no_corpus_says_what_was_looked_for(run, sample: Path) -> None:
    Path("a").mkdir()
    assert "a: no known corpus layout: no recordings (.wav" in run("preprocess", "a", "-o", "b").err
    Path("a/x.flac").write_bytes(sample.read_bytes())
    assert "1 recording, but no texts with their names (NAME.txt" in run("preprocess", "a", "-o", "b").err


def test_by_a_key_that_is_not_there_is_refused_before_any_work(run, sample: Path) -> None:
    Path("m.jsonl").write_text(json.dumps({"audio_filepath": str(sample), "text": "a", "speaker": "b"}) + "\n")
    result = run("preprocess", "m.jsonl", "-o", "out", "--split", "90/5/5", "--by", "voice")
    assert result.status == 2 and result.err.count("\n") == 1
    assert "expected: a key of the utterances: text, speaker" in result.err
    assert not Path("out/audio").exists()


@pytest.mark.parametrize("command", ["preprocess", "train", "transcribe", "evaluate", "inspect", "info", "convert"])
def test_help_names_every_option_whole_at_80_columns(run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(command, "--help").out
    parameters = next(one for one in typer.main.get_command(cli.app).commands.values() if one.name == command).params
    names = [name for parameter in parameters for name in parameter.opts if name.startswith("--")]
    assert names and not set(names) - set(re.findall(r"--[\w-]+", shown))
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown


def test_a_recording_in_place_of_a_command(run, sample: Path) -> None:
    result = run(sample, "--model", "tiny")
    said = f"focusasr: {sample} is no command; did you mean focusasr transcribe {sample} --model tiny?\n"
    assert (result.status, result.out, result.err) == (2, "", said)
    Path("transcribe").mkdir()
    assert "missing argument" in run("transcribe").err


def test_no_command_shows_the_help(run) -> None:
    result = run()
    assert (result.status, result.out) == (2, "") and "transcribe  Transcribe" in result.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2: not JSON"),
        ('{"text": "a"}', "line 2: audio_filepath"),
        ('{"audio_filepath": "a.wav"}', "line 2: text is missing"),
        ('{"audio_filepath": "a.wav", "text": 5}', "line 2: text"),
        ('{"audio_filepath": "a.wav", "text": "a", "duration": -1}', "line 2: duration"),
    ],
)
def test_a_bad_manifest_line_is_named(run, line: str, said: str) -> None:
    Path("m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "a"}\n' + line + "\n")
    for command in (["evaluate", "m.jsonl"], ["train", "m.jsonl"]):
        result = run(*command)
        assert result.status == 1 and said in result.err and "m.jsonl" in result.err


def test_evaluate_prints_one_object_and_writes_rows(run, sample: Path, heard: str) -> None:
    rows = [{"audio_filepath": str(sample), "text": text, "speaker": "slt"} for text in (heard, heard + " seven")]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("evaluate", "m.jsonl", "--json", "--output", "rows.jsonl")
    figures = json.loads(result.out)
    words = 2 * len(heard.split()) + 1
    assert result.status == 0
    assert (figures["words"], figures["deletions"], figures["utterances"]) == (words, 1, 2)
    assert figures["wer"] == pytest.approx(1 / words) and figures["wer_low"] <= figures["wer"] <= figures["wer_high"]
    assert figures["normalizer"] == "basic" and figures["failed"] == 0
    written = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["hypothesis"] for row in written] == [heard] * 2 and written[0]["speaker"] == "slt"
    assert "WER" in run("evaluate", "m.jsonl").out


def test_evaluate_goes_on_past_a_bad_line_and_says_so(run, sample: Path, heard: str) -> None:
    Path("m.jsonl").write_text("not json\n" + json.dumps({"audio_filepath": str(sample), "text": heard}) + "\n")
    result = run("evaluate", "m.jsonl", "--json")
    assert (result.status, json.loads(result.out)["utterances"]) == (1, 1)
    assert "m.jsonl, line 1: not JSON" in result.err


def test_evaluate_goes_on_past_a_missing_file_and_says_so(run, sample: Path, heard: str) -> None:
    rows = [{"audio_filepath": name, "text": heard} for name in ("absent.wav", str(sample))]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("evaluate", "m.jsonl", "--json")
    figures = json.loads(result.out)
    assert (result.status, figures["failed"], figures["utterances"], figures["wer"]) == (1, 1, 1, 0.0)
    assert "absent.wav" in result.err


@pytest.mark.slow
def test_the_whole_story(run) -> None:
    """A folder of recordings becomes a manifest, a model, transcripts and a figure."""
    Path("recordings").mkdir()
    for index, text in enumerate(["one", "two", "three", "four"]):
        soundfile.write(f"recordings/{text}.wav", tone(RATE_HZ + 1000 * index, 2), RATE_HZ)
        Path(f"recordings/{text}.txt").write_text(text)
    soundfile.write("recordings/untold.wav", tone(RATE_HZ), RATE_HZ)
    result = run("preprocess", "recordings", "-o", "data")
    assert (result.status, result.out.strip()) == (0, str(Path("data/manifest.jsonl").resolve()))
    tiny = ["--width", 16, "--heads", 2, "--encoder-layers", 1, "--decoder-layers", 1, "--workers", 0]
    options = ["--dev", "data/manifest.jsonl", "-o", "runs/a", "--steps", 4, "--evaluate-every", 2, *tiny]
    result = run("train", "data/manifest.jsonl", *options)
    assert (result.status, result.out.strip()) == (0, "runs/a/best"), result.err
    assert "step 4" in result.err
    assert run("train", "data/manifest.jsonl", *options).status == 1  # a run is never overwritten
    assert run("train", "--resume", "-o", "runs/a", "--steps", 6).status == 0
    Path("gone.jsonl").write_text(json.dumps({"audio_filepath": "gone.wav", "text": "one"}) + "\n")
    result = run("train", "data/manifest.jsonl", "gone.jsonl", "-o", "runs/b", "--steps", 2, *tiny)
    assert result.status == 1 and "gone.jsonl" in result.err  # a manifest of which nothing is left
    with Path("gone.jsonl").open("a") as more:
        more.write(json.dumps({"audio_filepath": "recordings/one.wav", "text": "one"}) + "\n")
    result = run("train", "gone.jsonl", "-o", "runs/c", "--steps", 2, *tiny)
    assert (result.status, result.out.strip()) == (1, "runs/c/best") and "gone.wav" in result.err
    assert run("transcribe", "recordings", "--model", "runs/a").status == 0
    figures = json.loads(run("evaluate", "data/manifest.jsonl", "--model", "runs/a/last", "--json").out)
    assert figures["utterances"] == 4


def test_info_tells_checkpoint_device_and_versions(run) -> None:
    result = run("info", "--device", "cpu")
    assert result.status == 0 and "weights" in result.out and "torch" in result.out and "as asked" in result.out
    facts = json.loads(run("info", "--json").out)
    assert facts["model"]["attention"] == "hybrid" and facts["reason"]
    assert run("--version").out.startswith("focusasr ")


def test_closed_output_ends_quietly(sample: Path) -> None:
    command = f"'{sys.executable}' -m focusasr transcribe '{sample}' '{sample}' '{sample}' | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_results_reach_a_pipe_when_stderr_is_a_terminal(sample: Path, heard: str) -> None:
    """A progress bar must not draw what belongs to stdout onto itself."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "focusasr", "transcribe", str(sample), str(sample)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower) as process:
        os.close(follower)
        out = process.communicate(timeout=120)[0].decode()
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert out == f"{sample}\t{heard}\n" or out == heard + "\n"
    assert "transcribing" in shown


def texts(*pairs: tuple[str, str]) -> None:
    Path("refs.txt").write_text("".join(f"{said}\n" for said, _ in pairs))
    Path("hyps.txt").write_text("".join(f"{heard}\n" for _, heard in pairs))


def test_evaluate_scores_two_files_of_text_without_a_model(run) -> None:
    texts(("The cat sat.", "the cat sat"), ("on the mat", "on a mat"))
    Path("worse.txt").write_text("cat\nmat\n")
    options = ["--hypotheses", "hyps.txt", "--against", "worse.txt", "--html", "page.html", "--output", "rows.jsonl"]
    result = run("evaluate", "refs.txt", *options, "--json")
    figures = json.loads(result.out)
    assert (result.status, figures["wer"], figures["substitutions"]) == (0, 1 / 6, 1)
    assert figures["comparison"]["second"] == 4 / 6 and figures["comparison"]["probability"] == 1.0
    assert "<html" in Path("page.html").read_text()
    again = run("evaluate", "refs.txt", "--hypotheses", "rows.jsonl", "--json")
    assert json.loads(again.out)["wer"] == 1 / 6
    table = run("evaluate", "refs.txt", "--hypotheses", "hyps.txt", "--against", "worse.txt")
    assert "here is better with probability" in " ".join(table.out.split()) and "normalizer" in table.out


@pytest.mark.parametrize(("limit", "status"), [(0.16, 1), (0.17, 0)])
def test_evaluate_fails_above_a_limit_in_one_line(run, limit: float, status: int) -> None:
    texts(("a b c d e f", "a b c d e x"))
    result = run("evaluate", "refs.txt", "--hypotheses", "hyps.txt", "--fail-above", limit)
    assert result.status == status
    assert result.err == ("focusasr: WER 16.67 %; --fail-above allows 16.00 %\n" if status else "")


def test_evaluate_refuses_what_cannot_be(run) -> None:
    texts(("a", "a"))
    for name, value, status, said in (
        ("--fail-above", "10", 2, "--fail-above 10"),
        ("--slice", "mood", 2, "--slice mood"),
        ("--against", "no.txt", 1, "no.txt: cannot be read (No such file"),
    ):
        result = run("evaluate", "refs.txt", "--hypotheses", "hyps.txt", name, value)
        result.refused(status, said)


def test_evaluate_hears_what_transcribe_prints_and_leaves_nothing_aside(run, sample: Path) -> None:
    printed = run("transcribe", sample).out.strip()
    Path("m.jsonl").write_text(json.dumps({"audio_filepath": str(sample), "text": printed}) + "\n")
    result = run("evaluate", "m.jsonl", "--output", "rows.jsonl", "--json")
    assert json.loads(Path("rows.jsonl").read_text())["hypothesis"] == printed
    assert json.loads(result.out)["audio_seconds_per_second"] > 0
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
