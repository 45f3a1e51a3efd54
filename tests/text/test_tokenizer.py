"""Tokenizers: texts survive the round trip, what is unknown does no harm, and files are checked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.config import TextConfig
from focusasr.runtime.errors import InputError
from focusasr.text.normalize import apply_policy
from focusasr.text.tokenizer import SPECIALS, Tokenizer, train_tokenizer

TEXTS = [
    "the cat sat on the mat",
    "don't you, Jürgen?",
    "Привет мир",
    "你好 世界",
    "नमस्ते दुनिया",
    "1 2 3",
    "<end> of a_line",
]
CHARACTERS = TextConfig()
BPE = TextConfig(tokens="bpe", vocabulary_size=120)
POLICIES = [CHARACTERS, BPE, TextConfig(case="keep", punctuation="keep"), TextConfig("keep", "keep", "bpe", None, 120)]
KNOWN = sorted(set("".join(TEXTS)))


def named(policy: TextConfig) -> str:
    return f"{policy.tokens}-{policy.punctuation}"


@pytest.fixture(scope="module", params=POLICIES, ids=named)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, request.param)


@pytest.mark.parametrize("text", [*TEXTS, "", "   ", "cat", "tac ehs"])
def test_known_texts_survive(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == apply_policy(text, tokenizer.policy)


@pytest.mark.parametrize("policy", POLICIES, ids=named)
@settings(deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_survives_the_tokenizer_learned_from_it(policy: TextConfig, texts: list[str]) -> None:
    texts = [text.replace("\u2581", " ") for text in texts]  # BPE's own sign for a space
    cleaned = [apply_policy(text, policy) for text in texts]
    if not any(cleaned):
        with pytest.raises(InputError, match="nothing to learn"):
            train_tokenizer(texts, policy)
        return
    tokenizer = train_tokenizer(texts, policy)
    for text, clean in zip(texts, cleaned, strict=True):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == clean
        assert not set(tokens) & {tokenizer.blank, tokenizer.start, tokenizer.end, tokenizer.unknown}


@settings(deadline=None)
@given(text=st.text(KNOWN))
def test_any_order_of_known_characters_survives_bpe(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, BPE)
    assert tokenizer.decode(tokenizer.encode(text)) == apply_policy(text, BPE)


def test_a_character_is_a_token() -> None:
    tokenizer = train_tokenizer(["ab c"], CHARACTERS)
    assert tokenizer.size == len(SPECIALS) + 4
    assert len(tokenizer.encode("cab a")) == 5


def test_bpe_learns_what_is_frequent() -> None:
    tokenizer = train_tokenizer(["the cat", "the dog"] * 20, TextConfig(tokens="bpe", vocabulary_size=40))
    assert len(tokenizer.encode("the cat the")) == 3
    assert tokenizer.size <= 40


def test_unknown_characters_are_unknown_tokens_and_vanish(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("cat ж sat")
    assert tokens.count(tokenizer.unknown) == 1
    assert tokenizer.decode(tokens) == "cat sat"


def test_special_tokens_vanish_and_are_never_read_from_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("cat")
    assert tokenizer.decode([tokenizer.start, *tokens, tokenizer.blank, tokenizer.end]) == "cat"
    for name in SPECIALS:
        specials = {tokenizer.blank, tokenizer.start, tokenizer.end}
        assert not set(tokenizer.encode(f"a {name} b")) & specials, f"the text {name!r} became a special token"
    reread = Tokenizer.from_json(tokenizer.to_json(), tokenizer.policy)
    assert reread.end not in reread.encode("<end>")


@pytest.mark.parametrize("policy", [CHARACTERS, BPE], ids=named)
def test_separator_joins_texts(policy: TextConfig) -> None:
    tokenizer = train_tokenizer(["one", "two"], policy)  # no text holds a space
    joined = tokenizer.encode("one") + tokenizer.separator + tokenizer.encode("two")
    assert joined == tokenizer.encode("one two")
    assert tokenizer.decode(joined) == "one two"


def test_no_token_of_bpe_is_a_bare_space() -> None:
    assert train_tokenizer(TEXTS, BPE).engine.token_to_id(" ") is None


def test_saved_and_loaded_are_equal(tokenizer: Tokenizer) -> None:
    loaded = Tokenizer.from_json(tokenizer.to_json(), tokenizer.policy)
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.size == tokenizer.size
    for text in [*TEXTS, "unknown ж", ""]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_training_is_repeatable(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(TEXTS, tokenizer.policy).to_json() == tokenizer.to_json()


def test_vocabulary_too_small_says_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"vocabulary_size is 8; expected: at least (\d+)") as caught:
        train_tokenizer(TEXTS, TextConfig(tokens="bpe", vocabulary_size=8))
    needed = int(str(caught.value).removesuffix(" for these texts").rsplit(" ", 1)[1])
    tokenizer = train_tokenizer(TEXTS, TextConfig(tokens="bpe", vocabulary_size=needed))
    assert tokenizer.size == needed
    with pytest.raises(InputError):
        train_tokenizer(TEXTS, TextConfig(tokens="bpe", vocabulary_size=needed - 1))


@pytest.mark.parametrize("texts", [[], [""], ["...", " \u2764\ufe0f "]])
@pytest.mark.parametrize("policy", [CHARACTERS, BPE], ids=named)
def test_nothing_to_learn_from(texts: list[str], policy: TextConfig) -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        train_tokenizer(texts, policy)


def test_missing_special_token_is_named() -> None:
    content = json.loads(train_tokenizer(["ab"], CHARACTERS).to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<end>"]
    del content["model"]["vocab"]["<end>"]
    with pytest.raises(InputError, match="lacks the special token '<end>'"):
        Tokenizer.from_json(json.dumps(content), CHARACTERS)


@pytest.mark.parametrize("content", ["", "{}", "no JSON", "[1, 2]", '{"model": {"type": "Magic"}}'])
def test_broken_file_is_one_line(content: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read") as caught:
        Tokenizer.from_json(content, CHARACTERS)
    assert "\n" not in str(caught.value)
