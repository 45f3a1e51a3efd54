"""Slices, confused words, silence and comparison on texts whose figures are known by hand; and the page of it all."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.cli.html import write_evaluation_page
from focusasr.config import EvaluationConfig
from focusasr.data.manifest import Utterance
from focusasr.evaluation.analysis import (
    Analysis,
    analyze,
    check_groups,
    confusions,
    insertions_in_silence,
    percentile,
    slices,
    to_json,
)
from focusasr.evaluation.bootstrap import Interval
from focusasr.evaluation.evaluate import Row, evaluate_texts
from focusasr.evaluation.wer import Errors
from focusasr.runtime.errors import InputError

SAID = [
    ("the cat sat", "the hat sat", 0.5, "ann"),
    ("a cat and a dog", "a hat and dog", 3.0, "ann"),
    ("good dog", "good dog", 4.0, "bob"),
    ("", "uh huh", 30.0, "bob"),
]


def evaluation(folder: Path = Path("/sound")):
    utterances = [
        Utterance(folder / f"{place}.wav", text, 0.0, seconds, {"speaker": who})
        for place, (text, _, seconds, who) in enumerate(SAID)
    ]
    return evaluate_texts(utterances, [heard for _, heard, _, _ in SAID], "none")


def test_slices_by_a_key_and_by_duration():
    by_speaker = {part.value: part.score for part in slices(evaluation().rows, "speaker", "auto")}
    assert list(by_speaker) == ["bob", "ann"]  # the worst first: two words invented for two said
    assert (by_speaker["ann"].wer, by_speaker["ann"].words) == (3 / 8, 8)
    durations = [(part.value, part.score.utterances) for part in slices(evaluation().rows, "duration", "auto")]
    assert durations == [("under 1 s", 1), ("2 to 5 s", 2), ("20 s and more", 1)]
    assert [part.value for part in slices(evaluation().rows, "source", "auto")] == ["sound"]
    utterances = [row.utterance for row in evaluation().rows]
    check_groups(utterances, EvaluationConfig(slice=["duration", "source", "speaker"]))
    said = (
        "slice is 'mood'; expected: what a line has: duration, source, speaker; or add it to the lines of the manifest"
    )
    with pytest.raises(InputError, match=said):
        check_groups(utterances, EvaluationConfig(slice=["mood"]))
    check_groups(utterances, EvaluationConfig(bootstrap="speaker"))
    with pytest.raises(InputError, match="bootstrap is 'speaker'"):
        check_groups([Utterance(Path("a.wav"), "a")], EvaluationConfig(bootstrap="speaker"))


def test_most_confused_words_are_counted_with_an_interval():
    found = {(one.kind, one.reference, one.hypothesis): one for one in confusions(evaluation().rows, "auto")}
    assert {key: one.count for key, one in found.items()} == {
        ("S", "cat", "hat"): 2,
        ("D", "a", ""): 1,
        ("I", "", "uh"): 1,
        ("I", "", "huh"): 1,
    }
    pair = found["S", "cat", "hat"]
    assert pair.low == 0 and 3 <= pair.high <= 4
    assert confusions(evaluation().rows[2:3], "auto") == []


def test_silence_score_is_words_per_minute_without_speech():
    result = insertions_in_silence(evaluation().rows, "auto")
    assert result is not None and result.words_per_minute is not None
    assert (result.utterances, result.minutes, result.words, result.words_per_minute.value) == (1, 0.5, 2, 4.0)
    assert insertions_in_silence(evaluation().rows[:3], "auto") is None
    unknown = evaluate_texts([Utterance(Path("nowhere"), "")], ["hm"])
    assert insertions_in_silence(unknown.rows, "auto").words_per_minute is None


def test_another_system_is_compared_where_both_have_a_text():
    whole = analyze(evaluation(), EvaluationConfig(), ["the cat sat", None, "good dog", ""], "other.jsonl")
    comparison = whole.comparison
    assert comparison is not None
    assert (comparison.first, comparison.second) == (3 / 5, 0)  # the second utterance is not in it
    assert (comparison.better, comparison.worse, comparison.equal) == (0, 2, 1) and comparison.probability < 0.05
    with pytest.raises(InputError, match=r"other.jsonl: shares no utterance"):
        analyze(evaluation(), EvaluationConfig(), [None] * 4, "other.jsonl")


def test_json_holds_the_breakdown():
    config = EvaluationConfig(slice=["speaker"])
    figures = json.loads(json.dumps(to_json(evaluation(), analyze(evaluation(), config)), allow_nan=False))
    assert [(part["key"], part["value"]) for part in figures["slices"]] == [("speaker", "bob"), ("speaker", "ann")]
    assert figures["silence"]["words_per_minute"]["value"] == 4.0
    assert figures["comparison"] is None and figures["seconds"] is None and figures["wrong"] == 3


def test_missing_hypotheses_are_failures():
    result = evaluate_texts([Utterance(Path("a"), "one"), Utterance(Path("b"), "two")], ["one", None])
    assert [row.error for row in result.rows] == [None, "no hypothesis for it"]
    assert result.score is not None and result.score.utterances == 1


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (95, 4), (1, 1), (100, 4)])
def test_percentiles_are_values_that_occurred(percent, expected):
    assert percentile([1, 2, 3, 4], percent) == expected
    assert percentile([], percent) is None


class Links(HTMLParser):
    """Collects tags, and everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[tuple[str, str]] = []
        self.articles: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [(tag, str(given[name])) for name in ("src", "href") if name in given]
        self.articles += [given] if tag == "article" else []


def test_the_page_is_self_contained_and_its_sound_is_relative(tmp_path):
    sound = tmp_path / "set" / "ünï #1.wav"
    sound.parent.mkdir()
    soundfile.write(sound, np.zeros(160), 16_000)
    utterances = [Utterance(sound, "<b>one</b> two", 1.5, 2.0), Utterance(tmp_path / "gone.wav", "three")]
    result = evaluate_texts(utterances, ["<i>one</i> two", None], "none")
    page = tmp_path / "reports" / "page.html"
    write_evaluation_page(page, result, Analysis([], [], None), "a < b")
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.fetched == [("audio", "../set/%C3%BCn%C3%AF%20%231.wav#t=1.500,3.500")]
    assert [article["data-kinds"] for article in links.articles] == ["ES", "F"]
    assert "&lt;b&gt;one&lt;/b&gt;" in text and "<b>one" not in text and "<title>a &lt; b" in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'class="pair S"' in text and "no hypothesis for it" in text
    assert text.count("<svg") == 2 and "article {" in text


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        write_evaluation_page(tmp_path / "file" / "p.html", evaluation(), Analysis([], [], None), "t")


def test_words_invented_where_no_length_is_known_are_in_no_rate():
    errors = Errors(0, 0, 2, 0), Errors(0, 0, 9, 0)
    lengths = [60.0, 60.0, 0.0]
    rows = [Row(Utterance(Path(f"{n}.wav")), "", "a b", "a b", *errors, seconds) for n, seconds in enumerate(lengths)]
    result = insertions_in_silence(rows, "auto")
    assert (result.utterances, result.minutes, result.words) == (2, 2.0, 4)
    assert result.words_per_minute == Interval(2.0, 2.0, 2.0)
