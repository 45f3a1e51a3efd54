"""Evaluation of texts that a stand-in recognizer yields: figures, rows, the table, and files that fail."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from focusasr.audio.source import Source
from focusasr.cli.tables import print_evaluation
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.evaluation.analysis import to_json
from focusasr.evaluation.evaluate import Evaluation, evaluate, write_rows
from focusasr.evaluation.wer import score
from focusasr.runtime.errors import InputError
from focusasr.transcription.result import Outcome, Transcript

RATES = ("wer", "cer", "ser", "substitution_rate", "deletion_rate", "insertion_rate")
KEYS = [
    *(rate + bound for rate in RATES for bound in ("", "_low", "_high")),
    *("substitutions", "deletions", "insertions", "words", "wrong", "utterances", "interval_over", "drawn"),
    *("normalizer", "failed", "audio_seconds", "seconds", "audio_seconds_per_second"),
    *("latency_p50_seconds", "latency_p95_seconds", "reused", "decoder_tokens", "decoder_passes"),
]
ROW_KEYS = [
    *("audio_filepath", "reference", "hypothesis", "normalized_reference", "normalized_hypothesis"),
    *("wer", "substitutions", "deletions", "insertions", "words", "audio_seconds", "error"),
]


class Recognizer:
    """Yields the given texts in order, two seconds of sound each; None is a file that fails."""

    def __init__(self, *texts: str | None, wait_seconds: float = 0.0):
        self.texts, self.wait_seconds = texts, wait_seconds
        self.sources: list[Source] = []

    def __call__(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        for source, text in zip(sources, self.texts, strict=True):
            time.sleep(self.wait_seconds)
            self.sources.append(source)
            if text is None:
                yield Outcome(source, None, f"{source.path}: no such file", 0.0)
            else:
                yield Outcome(source, Transcript(text, [], None), None, 2.0)


def said(*texts: str, folder: Path = Path("/sound")) -> list[Utterance]:
    return [Utterance(folder / f"{index}.wav", text) for index, text in enumerate(texts)]


def printed(evaluation: Evaluation, width: int = 100, color: bool = False, worst: int = 5) -> str:
    out = io.StringIO()
    system = "standard" if color else None
    print_evaluation(evaluation, Console(file=out, width=width, force_terminal=color, color_system=system), worst)
    return out.getvalue()


def test_figures_are_those_of_score_under_exactly_the_agreed_keys():
    references, hypotheses = ["The cat sat.", "On the mat", "hello"], [" the cat sat", " on a mat now", ""]
    figures = to_json(evaluate(Recognizer(*hypotheses), said(*references), "basic"))
    assert list(figures) == KEYS
    expected = score(references, hypotheses, "basic").to_json()
    unit = {"interval_over": expected.pop("unit")}
    assert {key: figures[key] for key in [*expected, *unit]} == expected | unit
    assert (figures["substitutions"], figures["deletions"], figures["insertions"]) == (1, 1, 1)
    assert figures["wer"] == 3 / 7
    assert (figures["audio_seconds"], figures["normalizer"], figures["failed"]) == (6.0, "basic", 0)
    json.dumps(figures, allow_nan=False)


def test_seconds_are_the_time_that_recognizing_took():
    evaluation = evaluate(Recognizer("a", "b", wait_seconds=0.05), said("a", "b"))
    assert evaluation.pace is not None and 0.1 <= evaluation.pace.seconds < 5
    assert len(evaluation.pace.latencies) == 2 and min(evaluation.pace.latencies) >= 0.05


def test_each_line_of_the_manifest_is_asked_for_with_its_part_of_the_file(tmp_path):
    recognizer = Recognizer("a", "b")
    evaluate(recognizer, [Utterance(tmp_path / "x.wav", "a", 1.5, 2.0), Utterance(tmp_path / "x.wav", "b")])
    path = str(tmp_path / "x.wav")
    assert recognizer.sources == [Source(path, 1.5, 2.0), Source(path, 0.0, None)]


def test_failed_file_is_reported_and_in_no_rate():
    evaluation = evaluate(Recognizer("one two", None, "three"), said("one two", "lost words here", "tree"))
    assert [row.error for row in evaluation.failures] == ["/sound/1.wav: no such file"]
    figures = to_json(evaluation)
    assert (figures["failed"], figures["utterances"], figures["words"]) == (1, 2, 3)
    assert figures["wer"] == 1 / 3
    assert figures["audio_seconds"] == 4.0
    assert "2; 1 more failed and are in no rate" in printed(evaluation)


def test_nothing_scored_is_null_and_not_a_perfect_score(tmp_path):
    evaluation = evaluate(Recognizer(None, None), said("a", "b"))
    figures = to_json(evaluation)
    assert list(figures) == KEYS
    assert [figures[key] for key in ("wer", "wer_low", "wer_high", "cer")] == [None] * 4
    assert (figures["words"], figures["utterances"], figures["failed"]) == (0, 0, 2)
    assert "none: every file failed" in printed(evaluation)
    write_rows(evaluation, tmp_path / "rows.jsonl")
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert (row["hypothesis"], row["wer"], row["words"]) == (None, None, None)
    assert row["error"] == "/sound/0.wav: no such file"


def test_empty_reference_is_scored_as_jiwer_defines():
    figures = to_json(evaluate(Recognizer("uh huh", "a b"), said("", "a b")))
    assert (figures["wer"], figures["insertions"], figures["words"]) == (1.0, 2, 2)
    silent = evaluate(Recognizer("uh huh"), said(""))
    assert to_json(silent)["wer"] == 2
    assert "no reference has a word; 2 words inserted" in printed(silent)


def test_rows_hold_what_was_compared_and_what_the_manifest_carried(tmp_path):
    utterances = [
        Utterance(tmp_path / "a.wav", "Grüß Gott!", 1.5, 2.0, {"speaker": "anna", "wer": "stale"}),
        Utterance(Path("/elsewhere/b.wav"), "Yes", extra={"id": "\ud800"}),
    ]
    evaluation = evaluate(Recognizer(" Grüß dich Gott", "yes"), utterances, "basic")
    write_rows(evaluation, tmp_path / "rows.jsonl")
    data = (tmp_path / "rows.jsonl").read_bytes()
    assert "Grüß Gott!".encode() in data
    first, second = (json.loads(line) for line in data.decode().splitlines())
    assert first == {
        "audio_filepath": "a.wav",
        "offset": 1.5,
        "duration": 2.0,
        "speaker": "anna",
        "reference": "Grüß Gott!",
        "hypothesis": "Grüß dich Gott",
        "normalized_reference": "grüß gott",
        "normalized_hypothesis": "grüß dich gott",
        "wer": 0.5,
        "substitutions": 0,
        "deletions": 0,
        "insertions": 1,
        "words": 2,
        "audio_seconds": 2.0,
        "error": None,
    }
    assert set(second) == {*ROW_KEYS, "id"}
    assert (second["audio_filepath"], second["id"]) == ("/elsewhere/b.wav", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_that_cannot_be_written_are_one_line(tmp_path):
    evaluation = evaluate(Recognizer("a"), said("a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        write_rows(evaluation, tmp_path / "file" / "rows.jsonl")


def test_empty_manifest_and_unknown_normalizer_are_refused_before_any_work():
    recognizer = Recognizer("a")
    with pytest.raises(InputError, match="no line of the manifest can be used"):
        evaluate(recognizer, [])
    with pytest.raises(InputError, match="expected: none, basic, english"):
        evaluate(recognizer, said("a"), "whisper")
    assert recognizer.sources == []


def test_recognizer_that_loses_a_file_is_a_bug_and_said():
    def one_only(sources):
        return iter([Outcome(next(iter(sources)), Transcript("a", [], None), None, 1.0)])

    with pytest.raises(ValueError, match="shorter"):
        evaluate(one_only, said("a", "b"))


def test_table_tells_the_rate_its_interval_and_the_normalizer():
    text = printed(evaluate(Recognizer("a b c x", "a b c d"), said("a b c d", "a b c d"), "none"))
    assert "12.5 % (95 % interval 0.0 % to 25.0 %)" in text
    assert "substitutions 1: 12.5 % (0.0 % to 25.0 %) of the words" in re.sub(" +", " ", text)
    assert "95 %, bootstrap over 2 utterances" in text
    assert "4.0 s in" in text
    assert "none" in text.split("normalizer")[1]


def test_utterances_without_a_text_are_named(run):
    Path("refs.txt").write_text("a.wav\tone\nb.wav\ttwo\nc.wav\tthree\n")
    Path("some.txt").write_text("b.wav\ttwo\n")
    result = run("evaluate", "refs.txt", "--hypotheses", "some.txt")
    assert (result.status, result.err) == (1, "focusasr: some.txt: no text for 2 of 3 utterances, such as a.wav\n")
    result = run("evaluate", "refs.txt", "--hypotheses", "refs.txt", "--against", "some.txt")
    assert (result.status, result.err) == (0, "focusasr: some.txt: no text for 2 of 3 utterances, such as a.wav\n")


def test_one_recording_gives_no_interval_anywhere(run):
    for name, text in (("refs.txt", "a b c d"), ("hyps.txt", "a b c x"), ("worse.txt", "x")):
        Path(name).write_text(f"{text}\n")
    options = ("--hypotheses", "hyps.txt", "--against", "worse.txt", "--slice", "source", "--html", "page.html")
    result = run("evaluate", "refs.txt", *options)
    table = re.sub(" +", " ", result.out)
    assert result.status == 0 and "WER 25.0 %\n" in table and "intervals none: one utterance gives no interval" in table
    assert "25.0 % none" in table and "d → x 1\n" in table and "(" not in table.split("normalizer")[0]
    assert "-75.0 points; 1 utterances better" in table.replace("\n ", " ")
    figures = json.loads(run("evaluate", "refs.txt", *options, "--json").out)
    assert [figures[f"{rate}_{bound}"] for rate in RATES for bound in ("low", "high")] == [None] * 12
    assert figures["comparison"]["probability"] is None and figures["slices"][0]["score"]["wer_low"] is None
    page = Path("page.html").read_text()
    assert "one utterance gives no interval" in page and 'class="whisker"' not in page and "None" not in page


def test_evaluating_a_folder_names_the_manifest_in_it(run):
    Path("a b").mkdir()
    assert "make one of it with 'focusasr preprocess'" in run("evaluate", "a b").err
    for name in ("manifest.jsonl", "rejects.jsonl", "test.jsonl"):
        Path("a b", name).touch()
    result = run("evaluate", "a b")
    said = "focusasr: a b: is a folder, not a manifest; name one in it: manifest.jsonl, test.jsonl\n"
    assert (result.status, result.err) == (2, said)


def test_table_shows_the_worst_first_with_differences_that_need_no_color():
    references = ["right", "one two three four five six", "[b]bold[/b] x"]
    hypotheses = ["right", "one too four five six seven", "[b]bold[/b] y"]
    evaluation = evaluate(Recognizer(*hypotheses), said(*references), "none")
    lines = printed(evaluation).split("\n")
    at = lines.index("/sound/1.wav: 3 errors in 6 words")
    assert lines[at + 1 : at + 4] == [
        "REF: one two three four five six *****",
        "HYP: one too ***** four five six seven",
        "         S   D                   I",
    ]
    assert "/sound/2.wav: 1 error in 2 words" in lines[at + 4 :]
    assert "REF: [b]bold[/b] x" in lines
    assert "0.wav" not in "".join(lines)
    assert "2.wav" not in printed(evaluation, worst=1)
    assert "wav" not in printed(evaluation, worst=0)


def test_long_differences_fold_at_the_width_word_under_word():
    words = " ".join(f"word{index}" for index in range(30))
    evaluation = evaluate(Recognizer(words.replace("word7 ", "ward7 ")), said(words), "none")
    lines = printed(evaluation, width=40).split("\n")
    lines = lines[next(index for index, line in enumerate(lines) if line.startswith("REF")) :]
    assert max(map(len, lines)) <= 40
    assert " ".join(line[5:] for line in lines if line.startswith("REF: ")) == words
    at = next(index for index, line in enumerate(lines) if "ward7" in line)
    assert lines[at + 1].index("S") == lines[at].index("ward7") == lines[at - 1].index("word7")


def test_color_is_added_in_a_terminal_and_changes_no_letter():
    evaluation = evaluate(Recognizer("a x"), said("a b"))
    colored = printed(evaluation, color=True)
    assert "\x1b[33mx\x1b[0m" in colored
    plain = printed(evaluation)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def test_rows_go_along_with_the_manifest_they_came_from(tmp_path):
    write_manifest(tmp_path / "manifest.jsonl", said("a", folder=tmp_path))
    evaluation = evaluate(Recognizer("a"), said("a", folder=tmp_path))
    write_rows(evaluation, tmp_path / "rows.jsonl")
    names = [json.loads((tmp_path / name).read_text())["audio_filepath"] for name in ("manifest.jsonl", "rows.jsonl")]
    assert names == ["0.wav", "0.wav"]


@pytest.mark.parametrize("option", [["--batch-size", "3"], ["--beam-size", "2"], ["--model", "default"]])
def test_what_is_meant_for_a_model_is_refused_where_none_is_asked(run, option: list[str]) -> None:
    Path("refs.txt").write_text("a b\n")
    result = run("evaluate", "refs.txt", "--hypotheses", "refs.txt", *option)
    result.refused(2, " ".join(option), "--hypotheses")


@pytest.mark.parametrize(
    "options",
    [
        ["--output", "refs.txt"],
        ["--html", "./refs.txt"],
        ["--output", "hyps.txt"],
        ["--against", "worse.txt", "--output", "worse.txt"],
        ["--output", "a", "--html", "a"],
    ],
)
def test_evaluate_writes_over_nothing_that_it_reads(run, options: list[str]) -> None:
    for name in ("refs.txt", "hyps.txt", "worse.txt"):
        Path(name).write_text("a b\n")
    result = run("evaluate", "refs.txt", "--hypotheses", "hyps.txt", *options)
    result.refused(2, "overwritten")
    assert {path.name: path.read_text() for path in Path().glob("*.txt")} == {
        "refs.txt": "a b\n", "hyps.txt": "a b\n", "worse.txt": "a b\n",
    }  # fmt: skip
