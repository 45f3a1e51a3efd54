"""Whisper's tokenizer: what is built from ranks or read from files, and what becomes of broken ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focusasr.config import TextConfig, WhisperConfig
from focusasr.runtime.errors import InputError
from focusasr.text.whisper_tokenizer import (
    LANGUAGES,
    TIMESTAMPS,
    WhisperTokenizer,
    build_engine,
    document_from_parts,
    engine_from_ranks,
    read_merges,
    special_tokens,
    split_by_rank,
)
from tests.helpers.tiny_whisper import SPECIALS, TEXTS, small_vocabulary
from tests.helpers.whisper_formats import ranks_text

KEEP = TextConfig("keep", "keep", "bpe")
PIECES, MERGES = small_vocabulary()
ADDED = {name: len(PIECES) + place for place, name in enumerate(SPECIALS)}


def small_tokenizer(policy: TextConfig = KEEP, **settings: object) -> WhisperTokenizer:
    document = document_from_parts(PIECES, MERGES, ADDED)
    return WhisperTokenizer.from_document(document, policy, WhisperConfig(**settings))  # type: ignore[arg-type]


TOKENIZER = small_tokenizer()


# Text


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode_exactly(TOKENIZER.encode_exactly(text)) == text


def test_transcripts_begin_with_a_space_and_come_back_without() -> None:
    tokens = TOKENIZER.encode("the cat")
    assert tokens == TOKENIZER.encode_exactly(" the cat") != TOKENIZER.encode_exactly("the cat")
    assert TOKENIZER.decode(tokens) == "the cat"
    assert TOKENIZER.encode(" ") == []
    lower = small_tokenizer(TextConfig("lower", "remove", "bpe"))
    assert lower.encode("The  CAT!") == tokens


def test_joined_texts_are_one_text() -> None:
    assert TOKENIZER.encode("the") + TOKENIZER.separator + TOKENIZER.encode("cat") == TOKENIZER.encode("the cat")


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokens = TOKENIZER.encode_exactly("<|endoftext|> <|0.00|> <|en|>")
    assert max(tokens) < len(PIECES)
    assert TOKENIZER.decode(tokens) == "<|endoftext|> <|0.00|> <|en|>"


def test_specials_vanish_or_are_written_out() -> None:
    tokens = [*TOKENIZER.prompt, TOKENIZER.timestamp_begin + 54, *TOKENIZER.encode("the cat"), TOKENIZER.end]
    assert TOKENIZER.decode_exactly(tokens) == " the cat"
    written = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|><|1.08|> the cat<|endoftext|>"
    assert TOKENIZER.decode_with_specials(tokens) == written


# Language and task


def test_prompts() -> None:
    assert TOKENIZER.decode_with_specials(TOKENIZER.prompt) == (
        "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    )
    german = TOKENIZER.speaking("de", "translate")
    assert TOKENIZER.decode_with_specials(german.sot_sequence) == "<|startoftranscript|><|de|><|translate|>"
    assert german.speaking().sot_sequence == german.sot_sequence
    english = small_tokenizer(multilingual=False)
    assert english.prompt == [english.start, english.no_timestamps]


def test_unknown_language_and_task() -> None:
    with pytest.raises(InputError, match=r"language is 'fr'; .* en de es"):
        TOKENIZER.speaking("fr")
    with pytest.raises(InputError, match="task is 'sing'"):
        TOKENIZER.speaking(task="sing")  # type: ignore[arg-type]


# Files


def test_written_and_read_again() -> None:
    again = WhisperTokenizer.from_document(TOKENIZER.to_json(), KEEP, TOKENIZER.whisper, len(PIECES) + len(SPECIALS))
    assert again.to_json() == TOKENIZER.to_json()
    assert again.prompt == TOKENIZER.prompt and again.size == TOKENIZER.size == len(PIECES) + len(SPECIALS)


def test_first_conversions_lack_timestamps_and_say_nocaptions() -> None:
    named = {name: id for name, id in ADDED.items() if name not in TIMESTAMPS and name != "<|nospeech|>"}
    named["<|nocaptions|>"] = ADDED["<|nospeech|>"]
    old = WhisperTokenizer.from_document(document_from_parts(PIECES, MERGES, named), KEEP, WhisperConfig())
    assert old.no_speech == TOKENIZER.no_speech
    assert old.timestamp_begin == TOKENIZER.timestamp_begin and old.size == TOKENIZER.size


def test_first_conversions_call_hebrew_iw() -> None:
    named = {"<|iw|>" if name == "<|es|>" else name: id for name, id in ADDED.items()}
    old = WhisperTokenizer.from_document(document_from_parts(PIECES, MERGES, named), KEEP, WhisperConfig())
    assert old.languages["he"] == ADDED["<|es|>"] and old.speaking("he").policy.language == "he"


def test_ranks_and_merges_make_the_same_tokens() -> None:
    """Merges recovered from ranks are those that learned the vocabulary."""
    engine = engine_from_ranks(ranks_text(PIECES), len(PIECES) + len(special_tokens(3)))
    assert json.loads(engine.to_str())["model"]["merges"] == [list(pair) for pair in MERGES]
    for text in (*TEXTS, "Zażółć the cat's hat ♪", "  "):
        assert engine.encode(text).ids == TOKENIZER.encode_exactly(text)
    assert engine.token_to_id("<|ru|>") is None and engine.token_to_id("<|zh|>") == ADDED["<|en|>"] + 1


def test_a_merge_of_low_rank_comes_first() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert split_by_rank(b"abc", ranks) == (b"a", b"bc")
    with pytest.raises(InputError, match="no way to the token b'abc'"):
        split_by_rank(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"abc": 3})
    with pytest.raises(InputError, match="no way to the token b'ab'"):
        split_by_rank(b"ab", {b"a": 0, b"ab": 1})  # as the fuzzer found


@pytest.mark.parametrize("text", ["YQ==\n", "YQ== x\n", "Y 1\n"])
def test_broken_ranks(text: str) -> None:
    with pytest.raises(InputError, match="not a file of ranks"):
        engine_from_ranks(text, 2000)


def test_ranks_of_another_vocabulary() -> None:
    with pytest.raises(InputError, match="the weights have 90 tokens"):
        engine_from_ranks(ranks_text(PIECES), 90)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": {}}', '{"model": {"vocab": 3, "merges": []}}'])
def test_broken_documents(text: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        WhisperTokenizer.from_document(text, KEEP, WhisperConfig())


def test_documents_of_other_models() -> None:
    with pytest.raises(InputError, match=r"lacks the special token '<\|startoftranscript\|>'"):
        document = document_from_parts(PIECES, MERGES, {"<|endoftext|>": len(PIECES)})
        WhisperTokenizer.from_document(document, KEEP, WhisperConfig())
    with pytest.raises(InputError, match=f"has {TOKENIZER.size} tokens, the weights {TOKENIZER.size + 1}"):
        WhisperTokenizer.from_document(TOKENIZER.to_json(), KEEP, WhisperConfig(), TOKENIZER.size + 1)
    with pytest.raises(InputError, match="should have id"):
        build_engine(PIECES, MERGES, {"<|endoftext|>": 5})
    with pytest.raises(InputError, match="lines that are not two tokens"):
        read_merges("#version: 0.2\na b\na b c\n")


def test_layout_of_specials() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 100
    assert [TIMESTAMPS[0], TIMESTAMPS[54], TIMESTAMPS[-1]] == ["<|0.00|>", "<|1.08|>", "<|30.00|>"]
    assert len(TIMESTAMPS) == 1501
    assert len(special_tokens(99)) == 1608
