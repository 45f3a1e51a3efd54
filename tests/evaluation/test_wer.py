"""Error rates against hand-computed cases, jiwer's own answers and the bootstrap's known truths."""

from __future__ import annotations

import json
import subprocess
import sys

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.evaluation.bootstrap import compare, resample_totals
from focusasr.evaluation.wer import (
    NORMALIZERS,
    Errors,
    Score,
    align,
    align_columns,
    count_character_errors,
    count_errors,
    normalize,
    normalizer,
    score,
    summarize,
)
from focusasr.runtime.errors import InputError

SENTENCE = st.lists(st.sampled_from(["a", "bee", "sea", "ü"]), max_size=6).map(" ".join)
SENTENCES = st.lists(SENTENCE, min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "substitutions", "deletions", "insertions", "hits"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 0, 0, 0, 6),
        ("the cat sat on the mat", "the hat sat on mat", 1, 1, 0, 4),
        ("a b c d e f", "a x c e f g h", 1, 1, 2, 4),
        ("a b c", "", 0, 3, 0, 0),
        ("", "a b", 0, 0, 2, 0),
        ("", "", 0, 0, 0, 0),
        ("a b", "c d e", 2, 0, 1, 0),
        ("naïve café", "naive café", 1, 0, 0, 1),
        (" a\tb\n", "a\u00a0b", 0, 0, 0, 2),
    ],
)
def test_words_are_counted_as_by_hand(reference, hypothesis, substitutions, deletions, insertions, hits):
    errors = count_errors(reference, hypothesis)
    assert errors == Errors(substitutions, deletions, insertions, hits)
    assert errors.words == len(reference.split())
    assert errors.count == substitutions + deletions + insertions


def test_characters_are_code_points_and_the_space_is_one():
    assert count_character_errors("ab cd", "abcd") == Errors(0, 1, 0, 4)
    assert count_character_errors("日本語", "日本誤") == Errors(1, 0, 0, 2)
    assert count_character_errors("  ab ", "ab") == Errors(0, 0, 0, 2)


def test_rates_are_of_all_words_not_the_mean_of_utterances():
    result = score(["a b c d e f g h", "x y"], ["a b c d e f g h", "z z"], "none")
    assert (result.wer, result.words, result.utterances) == (0.2, 10, 2)
    assert (result.substitutions, result.deletions, result.insertions) == (2, 0, 0)
    assert result.cer == 2 / (15 + 3)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, SENTENCES)
def test_rates_equal_jiwers_on_any_sentences_empty_ones_too(references, hypotheses):
    count = min(len(references), len(hypotheses))
    references, hypotheses = references[:count], hypotheses[:count]
    result, expected = score(references, hypotheses, "none"), jiwer.process_words(references, hypotheses)
    assert result.wer == expected.wer
    assert result.cer == jiwer.cer(references, hypotheses)
    assert (result.substitutions, result.deletions) == (expected.substitutions, expected.deletions)
    assert (result.insertions, result.words) == (expected.insertions, sum(len(text.split()) for text in references))


def test_empty_reference_counts_insertions_as_jiwer_4_does():
    assert count_errors("", "a b").rate == 2
    silent = score(["", ""], ["", "a b c"])
    assert (silent.wer, silent.cer, silent.words, silent.insertions) == (3, 5, 0, 3)
    assert (silent.rates["wer"].low, silent.rates["wer"].high) == (
        0,
        6,
    )  # each set of two draws the second utterance 0, 1 or 2 times
    assert score(["", "a b"], ["c", "a b"]).wer == 0.5
    assert score([""], [""]).wer == 0


def test_no_utterances_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        score([], [])
    with pytest.raises(ValueError, match="shorter"):
        score(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", "  Hello,\t World! ", "Hello, World!"),
        ("basic", "Hello, World! [noise] (laughs)", "hello world"),
        ("basic", "Straße, Café, ÉTÉ", "straße café été"),
        ("basic", "हिन्दी में।", "हिन्दी में"),
        ("basic", "e\u0301te\u0301", "été"),
        ("english", "Um, Mr. Smith doesn't like the COLOUR!", "mister smith does not like the color"),
        ("english", "one two three", "123"),
        ("english", "", ""),
        ("basic", " ... ", ""),
    ],
)
def test_normalizers_rewrite_as_they_say(name, text, expected):
    assert normalizer(name)(text) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_normalizers_return_words_parted_by_single_spaces_whatever_they_get(text):
    for name in NORMALIZERS:
        result = normalizer(name)(text)
        assert result == " ".join(result.split())
        if name == "none":
            assert result.split() == text.split()


def test_normalizer_decides_what_is_an_error():
    references, hypotheses = ["It's five o'clock, Anna."], ["it is 5 o'clock anna"]
    none, basic, english = (score(references, hypotheses, name) for name in NORMALIZERS)
    assert (none.substitutions, none.insertions, none.words) == (4, 1, 4)
    assert (basic.substitutions, basic.words) == (2, 6)  # it s five o clock anna
    assert (english.wer, english.words) == (0, 5)


def test_unknown_normalizer_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"'whisper'.*none, basic, english"):
        normalizer("whisper")
    with pytest.raises(InputError):
        normalize([], "whisper")


def test_interval_is_the_same_for_a_seed_and_in_any_order():
    rng = np.random.default_rng(3)
    references = [" ".join(["a"] * int(count)) for count in rng.integers(1, 12, size=60)]
    hypotheses = [reference.replace("a", "b", int(rng.integers(0, 3))) for reference in references]
    first = score(references, hypotheses, seed=1)
    assert first == score(references, hypotheses, seed=1)
    assert first == score(references[::-1], hypotheses[::-1], seed=1)
    other = score(references, hypotheses, seed=2)
    assert other.wer == first.wer
    assert (other.rates["wer"].low, other.rates["wer"].high) != (first.rates["wer"].low, first.rates["wer"].high)
    assert first.rates["wer"].low < first.wer < first.rates["wer"].high


def test_interval_agrees_with_the_binomial_for_one_word_utterances():
    right, wrong = Errors(0, 0, 0, 1), Errors(1, 0, 0, 0)
    result = summarize([wrong] * 40 + [right] * 360, [wrong] * 40 + [right] * 360)
    spread = 1.96 * (0.1 * 0.9 / 400) ** 0.5
    assert result.wer == 0.1
    assert result.rates["wer"].low == pytest.approx(0.1 - spread, abs=0.005)
    assert result.rates["wer"].high == pytest.approx(0.1 + spread, abs=0.005)


def test_resampling_draws_whole_utterances_and_as_many_as_there_are():
    counts = np.array([[1, 10], [1, 10], [5, 20], [0, 7]])
    totals = resample_totals(np.column_stack([counts, np.ones(4, dtype=int)]), seed=0)
    assert totals.shape == (1000, 3)
    assert (totals[:, 2] == 4).all()
    assert np.allclose(totals.mean(axis=0), [7, 47, 4], rtol=0.05)
    plain = np.random.default_rng(1).integers(0, 4, size=(100_000, 4))
    assert totals[:, 0].std() == pytest.approx(counts[plain, 0].sum(axis=1).std(), rel=0.1)


def test_one_utterance_gives_no_interval_and_equal_ones_give_one_without_width():
    for copies, bound in ((1, None), (5, 0.25)):
        result = score(["a b c d"] * copies, ["a b c x"] * copies)
        assert (result.rates["wer"].low, result.wer, result.rates["wer"].high) == (bound, 0.25, bound)
    words = [Errors(1, 0, 0, 3)] * 5
    assert summarize(words, words, groups=["ann"] * 5).rates["cer"].low is None


def test_large_sets_are_resampled_in_little_memory():
    words = [Errors(index % 3, index % 2, 0, 10 + index % 7) for index in range(100_000)]
    result = summarize(words, words)
    assert result.utterances == 100_000
    assert 0 < result.rates["wer"].high - result.rates["wer"].low < 0.005


def test_alignment_shows_each_kind_of_error_without_color():
    text = align("one two three four five six", "one too four five six seven")
    assert text.split("\n") == [
        "REF: one two three four five six *****",
        "HYP: one too ***** four five six seven",
        "         S   D                   I",
    ]
    assert align("same words", "same words") == "REF: same words\nHYP: same words"
    assert align("", "") == "REF:\nHYP:"
    assert align("", "hi") == "REF: **\nHYP: hi\n     I"
    assert align("hi", "") == "REF: hi\nHYP: **\n     D"


def test_alignment_pads_by_terminal_cells():
    assert align_columns("日本 x", "a y") == [("日本", "a   ", "S   "), ("x", "y", "S")]


def test_importing_the_room_loads_nothing_heavy():
    heavy = ["jiwer", "numpy", "rich", "torch", "whisper_normalizer"]
    code = f"import sys, focusasr.evaluation.wer; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_sets_drawn_without_a_word_do_not_widen_the_interval():
    result = score(["", "a b c d"], ["x y z", "a b c d"], "none")
    assert (result.wer, result.rates["wer"].low, result.rates["wer"].high) == (0.75, 0.0, 0.75)
    one = compare([3, 0], [0, 0], [0, 4], None)
    assert (one.difference.value, one.difference.low, one.difference.high) == (0.75, 0.0, 0.75)


def test_score_has_one_flat_form_in_json():
    result = score(["a b c", "d"], ["a x c", "d"])
    figures = json.loads(json.dumps(result.to_json()))
    rate = result.rates["wer"]
    assert (figures["wer"], figures["wer_low"], figures["wer_high"]) == (rate.value, rate.low, rate.high)
    assert {"cer_low", "ser", "substitution_rate_high", "insertions", "wrong", "unit", "drawn"} <= figures.keys()
    assert Score.from_json(figures) == result
