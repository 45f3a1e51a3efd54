"""The text policy: what stays of a transcript, and what becomes of it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.config import TextConfig
from focusasr.text.normalize import apply_policy

PLAIN = TextConfig()
AS_WRITTEN = TextConfig(case="keep", punctuation="keep")
POLICIES = [TextConfig(case=c, punctuation=p) for c in ("lower", "upper", "keep") for p in ("remove", "keep")]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("", ""),
        (" \t\n ", ""),
        ("...!?", ""),
        ("Hello, World!", "hello world"),
        ("  two\n spaces\u00a0and\ttabs ", "two spaces and tabs"),
        ("don't", "don't"),
        ("don\u2019t", "don't"),
        ("don\u02bct stop", "don't stop"),
        ("'quoted' \u2018words\u2019", "quoted words"),
        ("rock 'n' roll", "rock n roll"),
        ("the dogs' bones", "the dogs bones"),
        ("'", ""),
        ("twenty-one", "twenty one"),
        ("well\u2014known \u2013 dashes", "well known dashes"),
        ("3.5 or 42", "3 5 or 42"),
        ("٣ und ½", "٣ und ½"),
        ("snake_case", "snake case"),
        ("naïve café", "naïve café"),
        ("cafe\u0301", "café"),
        ("Straße", "straße"),
        ("Привет, мир!", "привет мир"),
        ("你好，世界。", "你好 世界"),
        ("हिन्दी's", "हिन्दी's"),
        ("q\u0303's", "q\u0303's"),
        ("co\u00adop\u200derate \ufeffnow", "cooperate now"),
        ("two\u200bwords", "two words"),
        ("I \u2764\ufe0f you \U0001f468\u200d\U0001f469\u200d\U0001f467", "i you"),
        ("press 1\ufe0f\u20e3", "press 1"),
        ("\U0001f44d\U0001f3fd ok", "ok"),
        ("\u0301accent on nothing", "accent on nothing"),
    ],
)
def test_plain_policy(written: str, wanted: str) -> None:
    assert apply_policy(written, PLAIN) == wanted


def test_cases() -> None:
    assert apply_policy("Straße, ÉTÉ", TextConfig(case="upper")) == "STRASSE ÉTÉ"
    assert apply_policy("Straße, ÉTÉ", TextConfig(case="keep")) == "Straße ÉTÉ"


def test_kept_punctuation_is_as_written() -> None:
    assert apply_policy(" \u201cYes,\u201d he said \u2014 it\u2019s ok \u2764\ufe0f! ", AS_WRITTEN) == (
        "\u201cYes,\u201d he said \u2014 it\u2019s ok \u2764\ufe0f!"
    )


def test_capitals_that_have_no_composed_form_are_composed_again() -> None:
    assert apply_policy("\u0390", TextConfig(case="upper")) == "\u03aa\u0301"


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.case}-{policy.punctuation}")
@settings(deadline=None)
@given(text=st.text())
def test_any_text_becomes_composed_and_stays_so(policy: TextConfig, text: str) -> None:
    result = apply_policy(text, policy)
    assert unicodedata.is_normalized("NFC", result)
    assert " ".join(result.split()) == result
    assert apply_policy(result, policy) == result
    assert apply_policy(unicodedata.normalize("NFD", text), policy) == result


@settings(deadline=None)
@given(text=st.text())
def test_without_punctuation_only_words_are_left(text: str) -> None:
    for word in apply_policy(text, PLAIN).split():
        kinds = {unicodedata.category(char)[0] for char in word if char != "'"}
        assert kinds <= {"L", "M", "N"}
        assert unicodedata.category(word[0])[0] in "LN"
        assert word[-1] != "'"


@settings(deadline=None)
@given(words=st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1), max_size=5))
def test_plain_words_pass_unchanged(words: list[str]) -> None:
    assert apply_policy(" ".join(words), PLAIN) == " ".join(words)
