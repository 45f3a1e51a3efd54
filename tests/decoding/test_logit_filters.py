"""Rules on logits against openai/whisper's filters and transformers' processors, on scripted tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from whisper.decoding import ApplyTimestampRules, SuppressBlank, SuppressTokens
from whisper.tokenizer import get_tokenizer

from focusasr.decoding.logit_filters import NoRepeatNgram, RepetitionPenalty, Suppress, Timestamps, apply_rules

TOKENIZER = get_tokenizer(True, language="en", task="transcribe")
PROMPT = [*TOKENIZER.sot_sequence]
VOCABULARY = TOKENIZER.encoding.n_vocab
FIRST = TOKENIZER.timestamp_begin
SCRIPTS = {  # tokens said since the prompt
    "nothing": [],
    "one timestamp": [FIRST + 3],
    "text": [FIRST + 3, 400],
    "text without a timestamp": [400, 401],
    "an open pair": [FIRST, 400, FIRST + 70],
    "a whole pair": [FIRST, 400, FIRST + 70, FIRST + 70],
    "text after a pair": [FIRST, 400, FIRST + 70, FIRST + 90, 12, 400],
    "the last timestamp": [FIRST, 400, FIRST + 1500],
    "time that went back": [FIRST + 90, 400, FIRST + 20, FIRST + 20, 7],
    "a loop": [FIRST, 5, 6, 7, 5, 6, 7, 5, 6],
}


def scripted(seed: int, timed: float = 0.0) -> Tensor:
    """Return logits (1, V) in which timestamps get an extra."""
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, FIRST:] += timed
    return logits


def theirs(filter: object, logits: Tensor, said: list[int]) -> Tensor:
    logits = logits.clone()
    filter.apply(logits, torch.tensor([PROMPT + said]))  # type: ignore[attr-defined]
    return logits


def row(said: list[int]) -> Tensor:
    return torch.tensor([said], dtype=torch.long)


@pytest.mark.parametrize("said", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("timed", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("max_initial", [None, 50])
def test_timestamps_are_those_of_both_packages(said: list[int], timed: float, max_initial: int | None) -> None:
    rule = Timestamps(FIRST, TOKENIZER.eot, TOKENIZER.no_timestamps, max_initial)
    logits = scripted(len(said), timed)
    ours = apply_rules([rule], logits, row(said))
    assert torch.equal(ours, theirs(ApplyTimestampRules(TOKENIZER, len(PROMPT), max_initial), logits, said))
    assert not torch.equal(ours, logits)

    class Generation:
        no_timestamps_token_id, eos_token_id = TOKENIZER.no_timestamps, TOKENIZER.eot
        forced_decoder_ids, bos_token_id, max_initial_timestamp_index = None, TOKENIZER.eot, max_initial

    processor = WhisperTimeStampLogitsProcessor(Generation(), begin_index=len(PROMPT))
    assert torch.equal(ours, processor(row(PROMPT + said), logits.clone()))


def test_rows_are_judged_apart() -> None:
    rule = Timestamps(FIRST, TOKENIZER.eot, TOKENIZER.no_timestamps)
    pairs = [(said, scripted(index)) for index, said in enumerate(SCRIPTS.values()) if len(said) == 6 or len(said) == 3]
    pairs += [([FIRST, 400, FIRST + 70, FIRST + 70, 8, 9], scripted(9))]
    for length in (3, 6):
        scripts = [said for said, _ in pairs if len(said) == length]
        logits = torch.cat([scripted(index) for index in range(len(scripts))])
        together = apply_rules([rule], logits, torch.tensor(scripts))
        for index, said in enumerate(scripts):
            assert torch.equal(together[index : index + 1], apply_rules([rule], logits[index : index + 1], row(said)))


@pytest.mark.parametrize("said", SCRIPTS.values(), ids=SCRIPTS)
def test_suppressed_tokens_are_those_of_whisper(said: list[int]) -> None:
    logits = scripted(1)
    tokens = (0, 7, TOKENIZER.sot, *TOKENIZER.non_speech_tokens)
    assert torch.equal(apply_rules([Suppress(tokens)], logits, row(said)), theirs(SuppressTokens(tokens), logits, said))
    blank = Suppress((*TOKENIZER.encode(" "), TOKENIZER.eot), at_start=True)
    assert torch.equal(
        apply_rules([blank], logits, row(said)), theirs(SuppressBlank(TOKENIZER, len(PROMPT)), logits, said)
    )


@pytest.mark.parametrize("said", SCRIPTS.values(), ids=SCRIPTS)
def test_repetition_is_punished_as_in_transformers(said: list[int]) -> None:
    logits = scripted(2)
    for penalty in (1.3, 0.8):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(row(said), logits.clone()) if said else logits
        assert torch.equal(apply_rules([RepetitionPenalty(penalty)], logits, row(said)), expected)
    for size in (1, 2, 3):
        expected = NoRepeatNGramLogitsProcessor(size)(row(said), logits.clone()) if said else logits
        assert torch.equal(apply_rules([NoRepeatNgram(size)], logits, row(said)), expected)


def test_a_loop_is_forbidden_to_go_on() -> None:
    hidden = apply_rules([NoRepeatNgram(3)], scripted(0), row(SCRIPTS["a loop"]))
    assert torch.isinf(hidden).nonzero()[:, 1].tolist() == [7]


def test_rules_leave_their_input_alone_and_keep_their_order() -> None:
    logits, said = scripted(4), row([FIRST, 400, 400])
    before = logits.clone()
    rules = [Suppress((1, 2)), RepetitionPenalty(1.5), NoRepeatNgram(1), Timestamps(FIRST, 50257, 50363)]
    after = apply_rules(rules, logits, said)
    assert torch.equal(logits, before)
    for rule in rules:
        before = apply_rules([rule], before, said)
    assert torch.equal(after, before)
