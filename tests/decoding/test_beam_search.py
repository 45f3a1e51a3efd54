"""Search against openai/whisper's decode and transformers' generate: token ids of the same random weights are equal."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import whisper
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from whisper.decoding import DecodingOptions, DecodingTask

from focusasr.decoding import beam_search
from focusasr.decoding.beam_search import StopCriteria, search
from focusasr.decoding.beams import Hypothesis
from focusasr.decoding.logit_filters import LogitFilter, Suppress, Timestamps
from focusasr.model.engine import Engine
from focusasr.model.transformer import EncoderOutput, Model
from focusasr.whisper_config import SearchConfig
from tests.helpers.whisper_pairs import PlainEngine, chirps, hugging_face_model, ours, peer_model

SEEDS = (0, 1)


@cache
def pair(seed: int) -> tuple[whisper.model.Whisper, Model]:
    peer = peer_model(seed)
    return peer, ours(peer).model


@cache
def heard(sound: int, seconds: float = 25.0) -> Tensor:
    """Return the spectrogram (80, 3000) of made sound."""
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(chirps(seconds, sound)))


def encode(model: Model, sounds: list[int]) -> EncoderOutput:
    mels = torch.stack([heard(sound).T for sound in sounds])
    return model.encode(mels, torch.full((len(sounds),), 3000))


def options_of(**given: object) -> SearchConfig:
    """Return search options, greedy or with one sample unless others are given."""
    return SearchConfig(**{"beam_size": None, "best_of": None, **given})  # type: ignore[arg-type]


def rules_of(task: DecodingTask) -> list[LogitFilter]:
    """Return our rules for those that a task of openai/whisper has."""
    tokenizer = task.tokenizer
    rules: list[LogitFilter] = [
        Suppress((*tokenizer.encode(" "), tokenizer.eot), at_start=True),
        Suppress(task._get_suppress_tokens()),
    ]
    if not task.options.without_timestamps:
        rules.append(Timestamps(tokenizer.timestamp_begin, tokenizer.eot, tokenizer.no_timestamps, 50))
    return rules


@torch.inference_mode()
def both(seed: int, sounds: list[int], **options: object) -> tuple[list[Hypothesis], list[whisper.DecodingResult]]:
    """Return our texts of a batch, and openai/whisper's, which it finds one by one."""
    peer, model = pair(seed)
    wanted = DecodingOptions(language="en", fp16=False, **options)  # type: ignore[arg-type]
    task = DecodingTask(peer, wanted)
    memory = encode(model, sounds)
    prompt = torch.tensor([task.initial_tokens]).repeat(len(sounds), 1)
    engine = PlainEngine(model.decoder)
    state = engine.start(memory)
    logits = engine.advance(prompt, state)[:, -1]
    names = ("temperature", "beam_size", "best_of", "patience", "length_penalty")
    searching = SearchConfig(**{name: getattr(wanted, name) for name in names})
    room = min(task.sample_len, task.n_ctx - len(task.initial_tokens) + 1)
    texts = search(
        engine, state, logits, StopCriteria(rules_of(task), task.tokenizer.eot, [room] * len(sounds)), searching
    )
    return texts, [whisper.decode(peer, heard(sound), wanted) for sound in sounds]


def check(texts: list[Hypothesis], theirs: list[whisper.DecodingResult]) -> None:
    assert [text.tokens for text in texts] == [result.tokens for result in theirs]
    for text, result in zip(texts, theirs, strict=True):
        assert text.avg_logprob == pytest.approx(result.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_greedy_tokens_are_those_of_whisper(seed: int) -> None:
    texts, theirs = both(seed, [0, 1, 2])
    check(texts, theirs)
    assert len({tuple(text.tokens) for text in texts}) == 3  # the sounds make a difference
    assert all(max(text.tokens) >= 50364 for text in texts)
    check(*both(seed, [0, 1], without_timestamps=True, sample_len=40))


@pytest.mark.parametrize("seed", [*SEEDS, 2])
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
        {"beam_size": 5, "without_timestamps": True, "length_penalty": 1.0},
        {"beam_size": 3, "prompt": list(range(300, 350)), "prefix": " ja"},
    ],
    ids=str,
)
def test_beam_options_mean_what_they_mean_in_whisper(options: dict[str, object]) -> None:
    check(*both(1, [0, 1], **options))


def test_a_text_stops_where_the_context_ends() -> None:
    """223 prompt tokens leave room: openai/whisper lets the text fill all 448 places and say one more token."""
    check(*both(2, [0], prompt=list(range(400, 700)), sample_len=224))


@pytest.mark.parametrize(("beams", "timestamps"), [(1, True), (5, True), (5, False)])
def test_tokens_are_those_of_transformers(beams: int, timestamps: bool) -> None:
    """Its beam search is Whisper's with early_stopping=True, which stops when enough texts are complete, and
    renormalize_logits=True, which makes probabilities of what the rules leave. One difference stays: an end that ranks
    behind as many others as there are beams, ends among them, makes a text in openai/whisper and not there (seed 2).
    """
    options = {"beam_size": beams, "without_timestamps": not timestamps}
    peer, _ = pair(0)
    task = DecodingTask(peer, DecodingOptions(language="en", fp16=False, **options))  # type: ignore[arg-type]
    tokenizer, prompt = task.tokenizer, list(task.initial_tokens)
    generation = GenerationConfig(
        decoder_start_token_id=tokenizer.sot, **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 50257),
        suppress_tokens=list(task._get_suppress_tokens()), begin_suppress_tokens=[220, tokenizer.eot],
        no_timestamps_token_id=tokenizer.no_timestamps, max_initial_timestamp_index=50,
        max_length=len(prompt) + 224, num_beams=beams, length_penalty=1.0, early_stopping=beams > 1,
        renormalize_logits=True,
    )  # fmt: skip
    processors = [WhisperTimeStampLogitsProcessor(generation, begin_index=len(prompt))] if timestamps else []
    with torch.inference_mode():
        sequences = GenerationMixin.generate(
            hugging_face_model(peer), torch.stack([heard(0), heard(1)]), generation,
            logits_processor=processors, decoder_input_ids=torch.tensor([prompt, prompt]),
        )  # fmt: skip
    expected = [[token for token in row[len(prompt) :] if token != tokenizer.eot] for row in sequences.tolist()]
    texts, _ = both(0, [0, 1], **options)
    assert [text.tokens for text in texts] == expected
    assert all(len(text.tokens) > 20 for text in texts)


def rules() -> list[LogitFilter]:
    peer, _ = pair(1)
    return rules_of(DecodingTask(peer, DecodingOptions(language="en", fp16=False)))


@torch.inference_mode()
def found(
    sounds: list[int], options: SearchConfig, most: int | list[int] = 12, begun: Hypothesis | None = None
) -> list[Hypothesis]:
    """Return what search finds with the engine."""
    engine = engine_of(1)
    memory = engine.encode([heard(sound).T for sound in sounds])
    prompt = torch.tensor([[50258, 50259, 50359]]).repeat(len(sounds), 1)
    state = engine.start(memory)
    logits = engine.advance(prompt, state)[:, -1]
    if begun:
        logits = engine.advance(torch.tensor([begun.tokens]), state)[:, -1]
    return search(
        engine,
        state,
        logits,
        StopCriteria(rules(), 50257, most if isinstance(most, list) else [most] * len(sounds)),
        options,
        begun,
    )


@cache
def engine_of(seed: int) -> Engine:
    return Engine(pair(seed)[1])


def test_samples_do_not_depend_on_the_batch_and_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    one = options_of(temperature=0.6, best_of=1)
    single = [found([sound], one)[0] for sound in (0, 1, 2)]
    together = found([0, 1, 2], one)
    with monkeypatch.context() as patch:
        patch.setattr(beam_search, "SEED", 1)
        assert found([0, 1, 2], one) != together
    five = options_of(temperature=0.6, best_of=5)
    best = [found([sound], five)[0] for sound in (0, 1, 2)]
    together = found([0, 1, 2], five)
    assert [text.tokens for text in together] == [text.tokens for text in best]
    assert [text.tokens for text in found([2, 0, 1], one)] == [single[index].tokens for index in (2, 0, 1)]

    def score(text: Hypothesis) -> float:
        return text.log_prob / len(text.tokens)

    assert sum(map(score, best)) > sum(map(score, single))


@pytest.mark.parametrize(
    "options", [options_of(), options_of(beam_size=3), options_of(temperature=0.6, best_of=3)], ids=str
)
def test_each_utterance_has_its_own_limit(options: SearchConfig) -> None:
    limits = [4, 12, 7]
    alone = [found([sound], options, limits[sound])[0] for sound in (0, 1, 2)]
    assert [text.tokens for text in found([0, 1, 2], options, limits)] == [text.tokens for text in alone]
    assert {len(text.tokens) for text in alone} == set(limits)


def test_greedy_text_continues_from_its_beginning() -> None:
    (whole,) = found([0], options_of(), 12)
    for count in (1, 5, 11):
        (text,) = found([0], options_of(), 12, Hypothesis(whole.tokens[:count], 0.0))
        assert text.tokens == whole.tokens


def test_the_engine_finds_what_the_plain_decoder_finds() -> None:
    for options in (options_of(), options_of(beam_size=4), options_of(beam_size=3, patience=0.5)):
        texts = found([0, 1, 2], options, 30)
        engine = PlainEngine(pair(1)[1].decoder)
        with torch.inference_mode():
            memory = encode(pair(1)[1], [0, 1, 2])
            state = engine.start(memory)
            logits = engine.advance(torch.tensor([[50258, 50259, 50359]] * 3), state)[:, -1]
            plain = search(engine, state, logits, StopCriteria(rules(), 50257, [30] * 3), options)
        assert [text.tokens for text in texts] == [text.tokens for text in plain]
