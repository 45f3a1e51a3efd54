"""When a window's text is believed, tried again, or taken for silence; and what the decoder reads first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.decoding.whisper_prompts import (
    DecodingResult,
    best_of_tries,
    compression_ratio,
    has_failed,
    is_settled,
    is_silence,
)
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.engine import Engine
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.tiny_whisper import as_whisper, write_whisper


def answer(avg_logprob: float = -0.5, ratio: float = 1.5, no_speech: float = 0.1, text: str = "") -> DecodingResult:
    return DecodingResult([], text, 0.0, avg_logprob, ratio, no_speech)


@pytest.mark.parametrize(
    ("given", "settings", "failed", "silent"),
    [
        (answer(), {}, False, False),
        (answer(ratio=2.5), {}, True, False),
        (answer(avg_logprob=-1.1), {}, True, False),
        (answer(avg_logprob=-1.1, no_speech=0.7), {}, False, True),
        (answer(ratio=2.5, avg_logprob=-1.1, no_speech=0.7), {}, False, True),
        (answer(no_speech=0.7), {}, False, False),
        (answer(ratio=2.5), {"compression_ratio_threshold": None}, False, False),
        (answer(avg_logprob=-1.1, no_speech=0.7), {"no_speech_threshold": None}, True, False),
        (answer(avg_logprob=-1.1, no_speech=0.7), {"logprob_threshold": None}, False, True),
    ],
)
def test_texts_are_judged_as_in_whisper(
    given: DecodingResult, settings: dict[str, float | None], failed: bool, silent: bool
) -> None:
    config = SearchConfig(**settings)  # type: ignore[arg-type]
    assert (has_failed(given, config), is_silence(given, config)) == (failed, silent)


@pytest.mark.parametrize(
    ("tries", "chosen"),
    [
        ([answer(-1.2), answer(-0.9)], 1),  # the last one is good
        ([answer(-1.2), answer(-1.1), answer(-2.7)], 1),  # all are unlikely
        ([answer(-0.1, ratio=9.0), answer(-1.4), answer(-2.7)], 1),  # loops are likely and no text
        ([answer(-0.2, ratio=9.0), answer(-0.9, ratio=5.0), answer(-0.3, ratio=7.0)], 1),  # the shortest loop
        ([answer(-1.1, no_speech=0.9)], 0),
    ],
)
def test_of_tries_that_all_fail_the_likeliest_or_the_shortest_loop_is_taken(
    tries: list[DecodingResult], chosen: int
) -> None:
    assert best_of_tries(tries, SearchConfig(), guarded=False) is tries[chosen]


SHARKS, LOOP, OTHER_LOOP = "Human sharks.", "Sharks. To be used, to be used, to be used", "Oh, oh, oh, oh."


@pytest.mark.parametrize(
    ("tries", "settled", "chosen"),
    [
        ([(-0.3, SHARKS)], True, 0),
        ([(-0.3, LOOP)], False, 0),
        ([(-0.3, LOOP), (-0.9, SHARKS)], True, 1),
        ([(-0.3, LOOP), (-0.4, LOOP)], True, 1),  # it was said
        ([(-0.3, LOOP), (-0.4, OTHER_LOOP)], False, 0),
        ([(-0.3, LOOP), (-0.4, OTHER_LOOP), (-0.9, OTHER_LOOP)], True, 2),
        ([(-0.3, LOOP), (-1.6, SHARKS), (-1.3, SHARKS)], False, 2),
        ([(-0.3, LOOP), (-1.2, LOOP), (-1.3, SHARKS)], False, 0),
    ],
)
def test_short_loops_of_models_for_any_length_are_tried_again(
    tries: list[tuple[float, str]], settled: bool, chosen: int
) -> None:
    answers = [answer(likely, text=text) for likely, text in tries]
    assert is_settled(answers, SearchConfig(), guarded=True) == settled
    assert best_of_tries(answers, SearchConfig(), guarded=True) is answers[chosen]
    assert is_settled(answers, SearchConfig(), guarded=False) == (answers[-1].avg_logprob >= -1)  # as in Whisper


def test_a_loop_compresses_well() -> None:
    assert compression_ratio("la " * 60) > 2.4 > compression_ratio("Nobody says the same thing twice, or does one?")


def reader(folder: Path, search: SearchConfig | None = None, **longform: object) -> WhisperDecoder:
    checkpoint = load_checkpoint(write_whisper(folder / "tiny"))
    settings = LongformConfig(**longform)  # type: ignore[arg-type]
    tokenizer = as_whisper(checkpoint.tokenizer).speaking("en")
    return WhisperDecoder(Engine(checkpoint.model), tokenizer, search or SearchConfig(beam_size=2), settings)


def test_a_failed_window_is_tried_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three windows the second loops twice; each try is warmer, and the others are left alone."""
    windows = reader(tmp_path)
    memory = windows.engine.encode(list(torch.randn(3, 200, 20)))
    tried: list[tuple[float, list[float]]] = []

    def fake(memory, prompt, rules, temperature):
        sums = memory.states.sum(dim=(1, 2)).tolist()
        tried.append((temperature, sums))
        looping = len(sums) == 3 or len(tried) == 2
        return [answer(ratio=9.0 if looping and place == len(sums) // 2 else 1.0) for place in range(len(sums))]

    monkeypatch.setattr(windows, "_tried", fake)
    answers = windows.answers(memory, [windows.prompt()] * 3)
    assert [temperature for temperature, _ in tried] == pytest.approx([0.0, 0.2, 0.4])
    assert tried[1][1] == tried[2][1] == [tried[0][1][1]]
    assert [one.compression_ratio for one in answers] == [1.0, 1.0, 1.0]


def test_the_prompt_holds_expected_words_the_text_before_and_the_prefix(tmp_path: Path) -> None:
    plain = reader(tmp_path)
    tokenizer = plain.tokenizer
    start = tokenizer.sot_sequence
    assert plain.prompt() == start
    assert plain.prompt(timestamps=False) == [*start, tokenizer.no_timestamps]
    most = plain.context // 2 - 1
    assert plain.prompt(list(range(100))) == [tokenizer.sot_prev, *range(100 - most, 100), *start]
    cat = tokenizer.encode_exactly(" cat")
    expecting = reader(tmp_path, hotwords="cat")
    assert expecting.prompt([5, 6]) == [tokenizer.sot_prev, *cat, 5, 6, *start]
    both = reader(tmp_path, hotwords="cat", prefix="cat")
    assert both.opening() == [tokenizer.timestamp_begin, *cat] and both.opening(timestamps=False) == cat
    assert both.prompt([5], opening=cat) == [tokenizer.sot_prev, 5, *start, *cat]
    assert both.prompt([5]) == [tokenizer.sot_prev, *cat, 5, *start] and plain.opening() == []


def test_a_long_prefix_leaves_room_to_write(tmp_path: Path) -> None:
    plain = reader(tmp_path)
    windows = reader(tmp_path, prefix="cat " * plain.context)
    opening = windows.opening()
    prompt = windows.prompt(list(range(100)), opening=opening)
    assert prompt[0] == plain.tokenizer.sot_prev and prompt[1 : prompt.index(plain.tokenizer.start)][-1] == 99
    assert 0 < plain.context - len(prompt) >= plain.context // 4
    (text,) = windows.answers(windows.engine.encode([torch.randn(200, 20)]), [prompt], opening=opening)
    assert text.tokens[: len(opening)] == opening and text.text.startswith("cat cat")


def test_repetition_rules_are_heeded(tmp_path: Path) -> None:
    """Random weights love one token: without repeats of one token no text has it twice."""
    for size, most in ((0, 20), (1, 1)):
        search = SearchConfig(beam_size=None, no_repeat_ngram_size=size, temperature_increment_on_fallback=None)
        windows = reader(tmp_path, search)
        (text,) = windows.answers(windows.engine.encode([torch.randn(200, 20)]), [windows.prompt()], timestamps=False)
        counts = [text.tokens.count(token) for token in set(text.tokens)]
        assert max(counts) > 1 if size == 0 else max(counts) == most


@pytest.mark.parametrize("cut", [0, 1, 6, 20])
@pytest.mark.parametrize("wrong", [False, True])
def test_draft_changes_no_text(tmp_path: Path, cut: int, wrong: bool) -> None:
    """A draft is the beginning of the text, or of another one from some place on."""
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None, repetition_penalty=1.3)
    windows = reader(tmp_path, search)
    memory = windows.engine.encode([torch.randn(200, 20, generator=torch.Generator().manual_seed(1))])
    (plain,) = windows.answers(memory, [windows.prompt()])
    assert len(plain.tokens) > 20
    windows.draft = [*plain.tokens[:cut], *([3, 4, 5] if wrong else [])]
    (drafted,) = windows.answers(memory, [windows.prompt()])
    assert drafted.tokens == plain.tokens
    assert drafted.avg_logprob == pytest.approx(plain.avg_logprob, abs=1e-4)


def test_draft_saves_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    windows = reader(tmp_path, search)
    memory = windows.engine.encode([torch.randn(200, 20)])
    (plain,) = windows.answers(memory, [windows.prompt()])
    passes, advance = list[int](), windows.engine.advance
    monkeypatch.setattr(
        windows.engine, "advance", lambda *given, **options: passes.append(1) or advance(*given, **options)
    )
    windows.answers(memory, [windows.prompt()])
    before = len(passes)
    windows.draft = plain.tokens
    windows.answers(memory, [windows.prompt()])
    assert len(passes) - before <= 3 < before
