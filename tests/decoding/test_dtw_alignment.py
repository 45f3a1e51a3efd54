"""Word times against openai/whisper's find_alignment with the same random weights, and its parts against slow twins."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import whisper
from whisper.timing import find_alignment, median_filter
from whisper.tokenizer import get_tokenizer

from focusasr.decoding.dtw_alignment import align_words, smoothed, split_words, warp
from focusasr.model.checkpoint import Checkpoint
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from tests.helpers.whisper_pairs import ENGLISH, MULTILINGUAL, chirps, ours, peer_model

TEXTS = {
    "en": " Well, I don't know - 3.5% of them (or so) said: 'no'!",
    "de": " Grüße aus Österreich, schöne Straße.",
    "ja": "こんにちは、世界。🦜はい",
    "ru": " Здравствуй, мир",
}


@cache
def pair(vocabulary: int) -> tuple[whisper.model.Whisper, Checkpoint]:
    peer = peer_model(3, vocabulary)
    return peer, ours(peer)


def tokenizer_of(checkpoint: Checkpoint, language: str) -> WhisperTokenizer:
    assert isinstance(checkpoint.tokenizer, WhisperTokenizer)
    return checkpoint.tokenizer.speaking(language)


@pytest.mark.parametrize("vocabulary", [MULTILINGUAL, ENGLISH])
@pytest.mark.parametrize(("language", "frames"), [("en", 3000), ("de", 1234), ("ja", 640), ("ru", 90)])
def test_words_are_those_of_find_alignment(vocabulary: int, language: str, frames: int) -> None:
    peer, checkpoint = pair(vocabulary)
    theirs = get_tokenizer(vocabulary == MULTILINGUAL, language=language, task="transcribe")
    mel = whisper.pad_or_trim(whisper.log_mel_spectrogram(chirps(frames / 100)), 3000)
    text = theirs.encode(TEXTS[language])
    expected = find_alignment(peer, theirs, text, mel, frames)
    memory = checkpoint.model.encode(mel.T[None], torch.tensor([3000]))
    tokenizer = tokenizer_of(checkpoint, language if vocabulary == MULTILINGUAL else "en")

    def attend(tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return checkpoint.model.decoder.attention(memory, tokens, tokenizer.whisper.alignment_heads)

    words = align_words(attend, text, frames // 2, tokenizer)
    assert [(word.word, word.tokens) for word in words] == [(word.word, word.tokens) for word in expected]
    assert [(word.start, word.end) for word in words] == [(word.start, word.end) for word in expected]
    assert [word.probability for word in words] == pytest.approx([word.probability for word in expected], rel=1e-3)
    assert frames < 3000 or len({word.end for word in words}) > 3  # the path does move


def test_no_text_has_no_words() -> None:
    _, checkpoint = pair(MULTILINGUAL)
    assert align_words(lambda _: pytest.fail("nothing to attend to"), [], 1500, tokenizer_of(checkpoint, "en")) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 5), (40, 150), (30, 7)])
def test_the_path_is_that_of_the_loop(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    for costs in (draw.standard_normal(shape), draw.integers(0, 3, shape).astype(float)):  # the second has ties
        rows, columns = warp(costs)
        expected = whisper.timing.dtw_cpu(costs)
        assert rows.tolist() == expected[0].tolist() and columns.tolist() == expected[1].tolist()


@pytest.mark.parametrize("steps", [2, 3, 4, 50])
def test_weights_are_smoothed_as_in_whisper(steps: int) -> None:
    scores = torch.randn(3, 8, steps)
    weights = scores.softmax(dim=-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    expected = median_filter((weights - mean) / std, 7).mean(dim=0)
    assert np.allclose(smoothed(scores.numpy()), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("language", TEXTS)
def test_words_are_split_as_in_whisper(language: str) -> None:
    theirs = get_tokenizer(True, language=language, task="transcribe")
    _, checkpoint = pair(MULTILINGUAL)
    for text in TEXTS.values():
        tokens = [*theirs.encode(text), theirs.eot]
        for cut in (tokens, tokens[1:], tokens[:5]):  # also in the middle of a character
            assert split_words(cut, tokenizer_of(checkpoint, language)) == theirs.split_to_word_tokens(cut)
