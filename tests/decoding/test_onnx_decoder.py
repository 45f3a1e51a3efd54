"""Decoding in numpy gives what decoding in PyTorch gives, from the same logits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from focusasr.config import ModelConfig
from focusasr.decoding import whisper_prompts
from focusasr.decoding.beams import BeamStep, in_place
from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder, _best, _log_sums
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.decoding.whisper_prompts import DecodingResult
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine
from focusasr.model.onnx_memory import Memory, State
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.tiny_whisper import as_whisper
from tests.helpers.whisper_pairs import chirps, ours, peer_model

GREEDY = {"beam_size": None, "temperature_increment_on_fallback": None}


class TorchEngine:
    """PyTorch's engine with the interface of an OnnxEngine; a state holds all tokens, which are read again."""

    def __init__(self, engine: Engine, memory: Any) -> None:
        self.engine, self.config, self.memory = engine, engine.config, memory

    def start(self, memory: Memory) -> State:
        return State(memory, [np.zeros((1, 1, 0, 1))], 1)

    def advance(self, tokens: np.ndarray, state: State, keep: int = 1) -> tuple[np.ndarray, State]:
        past = np.concatenate([state.past[0], tokens[:, None, :, None]], axis=2)
        rows = torch.from_numpy(past[:, 0, :, 0]).long()
        fresh: DecodingState = self.engine.start(self.memory, len(rows))
        return self.engine.advance(rows, fresh).float().numpy()[:, -keep:], State(state.memory, [past], 1)

    def select(self, state: State, rows: list[int], windows: int = 1) -> State:
        return State(state.memory, [state.past[0][rows]], windows)

    def cut(self, state: State, length: int) -> State:
        return State(state.memory, [state.past[0][:, :, :length]], 1)


@cache
def parts(seed: int) -> tuple[WhisperTokenizer, Engine, Any]:
    checkpoint = ours(peer_model(seed, 51864))
    engine = Engine(checkpoint.model)
    from focusasr.audio.features import input_mel

    memory = engine.encode([input_mel(chirps(9.0, seed), engine.config)])
    return as_whisper(checkpoint.tokenizer).speaking("en"), engine, memory


def both(seed: int, previous: list[int], draft: list[int], **options: Any) -> list[DecodingResult]:
    """Return the results of both decoders."""
    tokenizer, engine, memory = parts(seed)
    names = SearchConfig.__dataclass_fields__
    search = SearchConfig(**{**GREEDY, **{key: value for key, value in options.items() if key in names}})
    longform = LongformConfig(**{key: value for key, value in options.items() if key not in names})
    found = []
    for decoder in (
        WhisperDecoder(engine, tokenizer, search, longform),
        OnnxWhisperDecoder(TorchEngine(engine, memory), tokenizer, search, longform),  # type: ignore[arg-type]
    ):
        decoder.draft, decoder.most_tokens = draft, 40
        opening = decoder.opening()
        prompt = decoder.prompt(previous, opening=opening)
        nothing = Memory({}, [0])
        here: Any = memory if isinstance(decoder, WhisperDecoder) else nothing
        found += decoder.answers(here, [prompt], opening=opening)
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [{}, {"suppress_tokens": ""}, {"suppress_tokens": "-1,400"}, {"prefix": "the cat"}, {"hotwords": "Hat Cat"}],
    ids=str,
)
@pytest.mark.parametrize("previous", [[], [400, 500, 600]], ids=["first", "later"])
def test_greedy_texts_are_those_of_pytorch(seed: int, options: dict[str, Any], previous: list[int]) -> None:
    expected, found = both(seed, previous, [], **options)
    assert found.tokens == expected.tokens and found.text == expected.text
    assert found.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)
    assert found.no_speech_prob == pytest.approx(expected.no_speech_prob, rel=1e-3)
    assert found.compression_ratio == expected.compression_ratio


@pytest.mark.parametrize(("own_length", "threshold"), [(False, 99.0), (True, 99.0), (True, None)])
def test_short_loops_of_models_for_any_length_are_tried_again(
    own_length: bool, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(1)
    if own_length:
        monkeypatch.setattr(ModelConfig, "window_samples", None)
    monkeypatch.setattr(whisper_prompts, "is_loop", lambda answer, answers: len(answers) < 3)
    options = {
        "temperature_increment_on_fallback": 0.2,
        "logprob_threshold": None,
        "compression_ratio_threshold": threshold,
    }
    for found in both(1, [], [], **options):
        assert found.temperature == (0.4 if own_length and threshold else 0.0)


@pytest.mark.parametrize("right", [0, 1, 7, 100])
@pytest.mark.parametrize("previous", [[], [400, 500, 600]], ids=["first", "later"])
def test_a_draft_changes_nothing(right: int, previous: list[int]) -> None:
    _, plain = both(1, previous, [])
    for draft in (plain.tokens[:right], [*plain.tokens[:right], 300, 301]):
        for found in both(1, previous, draft):
            assert found.tokens == plain.tokens
            assert found.avg_logprob == pytest.approx(plain.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"patience": 2.0}, {"length_penalty": 0.6}], ids=str)
def test_beams_find_what_they_find_in_pytorch(seed: int, options: dict[str, Any]) -> None:
    expected, found = both(seed, [400, 500], [], beam_size=5, **options)
    assert found.tokens == expected.tokens
    assert found.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-4)


def test_a_failed_text_is_sampled_at_higher_temperatures() -> None:
    never = {"logprob_threshold": 1.0, "no_speech_threshold": None, "temperature_increment_on_fallback": 0.5}
    expected, found = both(2, [], [], best_of=3, compression_ratio_threshold=None, **never)
    assert found.avg_logprob >= both(2, [], [], **GREEDY)[1].avg_logprob - 1e-4  # the likeliest of all tries
    assert found.temperature in (0.0, 0.5, 1.0) and expected.temperature in (0.0, 0.5, 1.0)
    assert both(2, [], [], best_of=3, compression_ratio_threshold=None, **never)[1] == found


def test_samples_follow_the_distribution() -> None:
    tokenizer, engine, memory = parts(0)
    decoder = OnnxWhisperDecoder(
        TorchEngine(engine, memory),  # type: ignore[arg-type]
        tokenizer, SearchConfig(), LongformConfig(),
    )  # fmt: skip
    logits = np.full(51864, -50.0, np.float32)
    logits[[tokenizer.timestamp_begin, tokenizer.timestamp_begin + 1]] = np.log([0.25, 0.75])
    chosen = decoder.choices(logits[None].repeat(400, axis=0), 1.0, np.random.default_rng(0))
    assert np.mean(chosen == tokenizer.timestamp_begin + 1) == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("size", [5, 300, 51864])
def test_the_best_tokens_are_found(count: int, size: int) -> None:
    logits = np.random.default_rng(size).normal(size=(4, size)).astype(np.float32)
    logits[1, : size // 2] = -np.inf
    count = min(count, size)
    found = np.take_along_axis(logits, _best(logits, count), axis=1)
    assert np.array_equal(np.sort(found, axis=1), np.sort(logits, axis=1)[:, size - count :])


def test_log_sums_are_exact_for_any_size_of_logits_and_do_not_depend_on_other_rows() -> None:
    centres = np.array([0, 5, 39, 41, 90, 3000, -41, -90, -3000, -np.inf])
    logits = (np.random.default_rng(0).normal(size=(len(centres), 51864)) + centres[:, None]).astype(np.float32)
    logits[:, ::600] = -np.inf
    found = _log_sums(logits)
    exact = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    assert found == pytest.approx(exact, rel=1e-6, abs=1e-5)
    for row in range(len(centres)):
        assert np.array_equal(_log_sums(logits[row : row + 1]), found[row : row + 1])


@pytest.mark.parametrize("rows", [[], [0], [0, 0, 0], [2, 1, 0], [1, 1, 2], [3, 3, 0, 3]], ids=str)
def test_rows_that_continue_keep_their_places(rows: list[int]) -> None:
    steps = [BeamStep(row, token, -float(token)) for token, row in enumerate(rows)]
    placed = in_place(steps)
    assert sorted(placed) == sorted(steps)
    assert all(placed[row].row == row for row in set(rows) if row < len(rows))
