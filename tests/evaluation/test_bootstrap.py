"""The bootstrap's units, and the paired comparison against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from focusasr.evaluation.bootstrap import Interval, compare, group_totals, resampling_unit
from focusasr.evaluation.wer import Errors, summarize


def test_speakers_are_drawn_where_all_are_known_and_there_are_enough():
    many = [f"s{index % 20}" for index in range(40)]
    unit, groups = resampling_unit("auto", many)
    assert unit == "speaker" and groups is not None and len(set(groups)) == 20
    assert resampling_unit("auto", many[:19]) == ("utterance", None)
    assert resampling_unit("auto", [*many, None]) == ("utterance", None)
    assert resampling_unit("utterance", many) == ("utterance", None)
    assert resampling_unit("speaker", [None, ""]) == ("utterance", None)
    assert resampling_unit("speaker", ["ann", "ann", None, ""])[1] == [
        *("speaker ann", "speaker ann", "utterance 2", "utterance 3")
    ]


def test_rows_of_one_group_are_added_up():
    counts = np.array([[1, 10], [2, 20], [4, 40]])
    assert group_totals(counts, ["b", "a", "b"]).tolist() == [[2, 20], [5, 50]]
    assert group_totals(counts, None) is counts


def test_speakers_that_err_alike_widen_the_interval():
    """Ten utterances of a speaker that are all right or all wrong are worth one."""
    words = [Errors(index // 10 % 2, 0, 0, 1 - index // 10 % 2) for index in range(400)]
    speakers = [f"s{index // 10}" for index in range(400)]
    plain, grouped = summarize(words, words), summarize(words, words, groups=speakers)
    assert (plain.wer, grouped.wer) == (0.5, 0.5)
    assert (plain.unit, plain.drawn, grouped.unit, grouped.drawn) == ("utterance", 400, "speaker", 40)
    for result, spread in ((plain, 1.96 * 0.5 / 20), (grouped, 1.96 * 0.5 / 40**0.5)):
        assert result.rates["wer"].high - 0.5 == pytest.approx(spread, rel=0.12)


def test_a_small_steady_gain_is_sure_when_paired():
    """Both systems vary by far more than they differ; drawn apart they could not be told from one another."""
    draw = np.random.default_rng(0)
    hard = draw.integers(0, 15, size=300)
    result = compare((hard + (np.arange(300) % 3 > 0)).tolist(), (hard + 1).tolist(), [20] * 300, None)
    assert result.difference.value == pytest.approx(-1 / 60)
    assert result.difference.low < result.difference.value < result.difference.high < 0
    assert (result.better, result.worse, result.equal) == (100, 0, 200)
    assert result.probability == 1.0
    words = 20 * 300
    assert (result.first, result.second) == ((hard.sum() + 200) / words, (hard.sum() + 300) / words)


def test_equal_systems_are_a_coin_toss_and_chance_looks_like_chance():
    same = compare([1, 0, 2], [1, 0, 2], [5, 5, 5], None)
    assert (same.probability, same.difference.low, same.difference.high) == (0.5, 0.0, 0.0)
    first = [1, 0] * 100
    result = compare(first, first[::-1], [4] * 200, None)
    assert 0.35 < result.probability < 0.65 and result.difference.low < 0 < result.difference.high


def test_one_utterance_cannot_tell_which_system_is_better():
    result = compare([1], [2], [4], None)
    assert result.difference == Interval(-0.25, None, None) and result.probability is None
    assert (result.better, result.difference.bounds(str)) == (1, "")


def test_swapping_the_systems_mirrors_the_answer():
    a, b, words = [3, 0, 1, 2], [1, 0, 2, 2], [6, 4, 5, 5]
    one, other = compare(a, b, words, None), compare(b, a, words, None)
    assert one.difference.value == -other.difference.value
    assert one.probability == pytest.approx(1 - other.probability, abs=0.05)
    with pytest.raises(ValueError, match="at least 1"):
        compare([], [], [], None)
