"""Search against openai/whisper's decode and transformers' generate: token ids of the same random weights are equal."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask
from whisper_pairs import PlainDecoder, chirps, ours, peer_model

from focusasr.model import Memory, Model
from focusasr.rules import Rule, Suppress, Timestamps
from focusasr.search import Goal, Search, Text, read, search

SEEDS = (0, 1)


@cache
def pair(seed: int) -> tuple[whisper.model.Whisper, Model]:
    peer = peer_model(seed)
    return peer, ours(peer).model


@cache
def heard(sound: int, seconds: float = 25.0) -> Tensor:
    """Return the spectrogram (80, 3000) of made sound."""
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(chirps(seconds, sound)))


def encode(model: Model, sounds: list[int]) -> Memory:
    mels = torch.stack([heard(sound).T for sound in sounds])
    return model.encode(mels, torch.full((len(sounds),), 3000))


def rules_of(task: DecodingTask) -> list[Rule]:
    """Return our rules for those that a task of openai/whisper has."""
    tokenizer = task.tokenizer
    rules: list[Rule] = [
        Suppress((*tokenizer.encode(" "), tokenizer.eot), at_start=True),
        Suppress(task._get_suppress_tokens()),
    ]
    if not task.options.without_timestamps:
        rules.append(Timestamps(tokenizer.timestamp_begin, tokenizer.eot, tokenizer.no_timestamps, 50))
    return rules


@torch.inference_mode()
def both(seed: int, sounds: list[int], **options: object) -> tuple[list[Text], list[whisper.DecodingResult]]:
    """Return our texts of a batch, and openai/whisper's, which it finds one by one."""
    peer, model = pair(seed)
    wanted = DecodingOptions(language="en", fp16=False, **options)  # type: ignore[arg-type]
    task = DecodingTask(peer, wanted)
    memory = encode(model, sounds)
    prompt = torch.tensor([task.initial_tokens]).repeat(len(sounds), 1)
    decoder = PlainDecoder(model.decoder)
    opening = read(decoder, decoder.start(memory), prompt)
    searching = Search(wanted.temperature, wanted.beam_size, wanted.best_of, wanted.patience, wanted.length_penalty)
    room = min(task.sample_len, task.n_ctx - len(task.initial_tokens) + 1)
    texts = search(decoder, opening, Goal(rules_of(task), task.tokenizer.eot, room), searching)
    return texts, [whisper.decode(peer, heard(sound), wanted) for sound in sounds]


def check(texts: list[Text], theirs: list[whisper.DecodingResult]) -> None:
    assert [text.tokens for text in texts] == [result.tokens for result in theirs]
    for text, result in zip(texts, theirs, strict=True):
        assert text.avg_logprob == pytest.approx(result.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_tokens_are_those_of_whisper(seed: int) -> None:
    texts, theirs = both(seed, [0, 1, 2])
    check(texts, theirs)
    assert len({tuple(text.tokens) for text in texts}) == 3  # the sounds make a difference
    assert all(max(text.tokens) >= 50364 for text in texts)
    check(*both(seed, [0, 1], without_timestamps=True, sample_len=40))


@pytest.mark.parametrize("seed", SEEDS)
def test_beam_tokens_are_those_of_whisper(seed: int) -> None:
    texts, theirs = both(seed, [0, 1], beam_size=5)
    check(texts, theirs)
    greedy, _ = both(seed, [0, 1])
    assert [text.tokens for text in texts] != [text.tokens for text in greedy]


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 2, "patience": 2.0},
        {"beam_size": 4, "patience": 0.5},
        {"beam_size": 3, "length_penalty": 0.3},
        {"beam_size": 3, "sample_len": 12},
        {"beam_size": 5, "without_timestamps": True, "length_penalty": 1.0},
        {"beam_size": 1},
        {"beam_size": 3, "prompt": list(range(300, 350)), "prefix": " ja"},
    ],
    ids=str,
)
def test_beam_options_mean_what_they_mean_in_whisper(options: dict[str, object]) -> None:
    check(*both(1, [0, 1], **options))


def test_a_text_stops_where_the_context_ends() -> None:
    """223 prompt tokens leave room: openai/whisper lets the text fill all 448 places and say one more token."""
    check(*both(2, [0], prompt=list(range(400, 700)), sample_len=224))
