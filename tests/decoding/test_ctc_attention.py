"""Decoding: fast paths against slow twins, and the answer for one utterance whatever is decoded beside it."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from focusasr.audio.features import log_mel, stack
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.data.manifest import read_manifest
from focusasr.decoding.ctc_attention import Hypothesis, ctc_greedy, ctc_score, decode
from focusasr.decoding.speculative import DecoderResult, greedy
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.engine import Engine
from focusasr.model.transformer import EncoderOutput, Model
from focusasr.text.tokenizer import Tokenizer
from tests.helpers.reference_decoder import decoder_score
from tests.helpers.toy_speech import letters_tokenizer, mels, tiny_model

REAL_UTTERANCES = int(os.environ.get("FOCUSASR_REAL_UTTERANCES", 6))  # of each test set; all of them take minutes
TOKENIZER = letters_tokenizer()
assert TOKENIZER.blank == 0
TEXTS = ["abcabcab", "h", "fed cab", "gg gg gg gg gg", "ab"]
LETTERS = TOKENIZER.encode("abcdefgh ")


def lively_model(seed: int, **settings: object) -> Model:
    """Return a model whose heads say different things at different times, since an untrained one hardly does."""
    model = tiny_model(TOKENIZER, seed, decoder_layers=2, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        model.decoder.ln.weight.neg_()  # else each token calls for itself again, the embeddings being tied
        if model.ctc_head is not None:
            model.ctc_head.weight.mul_(6.0)
    return model


def heard(model: Model, sounds: Sequence[Tensor], ctc_weight: float, beam_size: int = 1) -> list[Hypothesis]:
    return decode(Engine(model), sounds, TOKENIZER, DecodingConfig(ctc_weight=ctc_weight, joint_beam_size=beam_size))


def alone(model: Model, ctc_weight: float, beam_size: int = 1) -> list[Hypothesis]:
    return [heard(model, [mel], ctc_weight, beam_size)[0] for mel in mels(TEXTS)]


@pytest.mark.parametrize(
    "settings", [{}, {"decoder_attention": "hybrid"}, {"ctc": False}, {"attention": "global"}], ids=str
)
@pytest.mark.parametrize(("ctc_weight", "beam_size"), [(0.0, 1), (0.5, 1), (1.0, 1), (0.5, 3)])
def test_the_answer_is_the_same_alone_and_in_any_batch(settings: dict, ctc_weight: float, beam_size: int) -> None:
    model = lively_model(4, text_context=24, **settings)
    wanted = alone(model, ctc_weight, beam_size)
    assert len({tuple(answer.tokens) for answer in wanted}) > 2, "a test of equal answers would prove nothing"
    sounds = mels(TEXTS)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 1], [1, 0, 1]):
        found = heard(model, [sounds[row] for row in order], ctc_weight, beam_size)
        for row, answer in zip(order, found, strict=True):
            assert answer.tokens == wanted[row].tokens
            assert answer.avg_logprob == pytest.approx(wanted[row].avg_logprob, abs=1e-4)
            assert answer.no_speech_prob == pytest.approx(wanted[row].no_speech_prob, abs=1e-4)


def test_very_short_sound_beside_long_sound() -> None:
    model = lively_model(2)
    short, long = torch.zeros(2, 20), mels(["abcabcabc"])[0]
    assert heard(model, [short, long], 0.5)[0].tokens == heard(model, [short], 0.5)[0].tokens


# Greedy decoding


def slow_greedy(model: Model, memory: EncoderOutput, limit: int, end: int) -> tuple[list[int], float]:
    """Decode one utterance without a cache: the whole text is read anew for each token."""
    text: list[int] = []
    score = 0.0
    while True:
        logits = model.decoder(torch.tensor([[TOKENIZER.start, *text]]), memory)
        log_probs = logits[0, -1].log_softmax(dim=-1)
        choice = int(log_probs.argmax()) if len(text) < limit else end
        score += float(log_probs[choice])
        if choice == end:
            return text, score
        text.append(choice)


def limits(model: Model, memory: EncoderOutput) -> list[int]:
    return [min(steps, model.config.text_context - 2) for steps in memory.lengths().tolist()]


def liveliest_end(model: Model, memory: EncoderOutput) -> Tokenizer:
    """Return a tokenizer whose end is the token that ends most texts of an untrained model halfway."""

    def halfway(tokenizer: Tokenizer) -> int:
        reads = greedy(Engine(model), memory, tokenizer, [[] for _ in TEXTS])
        return sum(0 < len(read.tokens) < limit for read, limit in zip(reads, limits(model, memory), strict=True))

    tokenizers = [copy.copy(TOKENIZER) for _ in range(TOKENIZER.size)]
    for token, tokenizer in enumerate(tokenizers):
        tokenizer.end = token
    return max(tokenizers, key=halfway)


def drafts_of(kind: str, wanted: list[list[int]]) -> list[list[int]]:
    """Return drafts of texts: none, the truth, the truth with errors of every kind, or other texts altogether."""
    draw = random.Random(kind)
    if kind in ("none", "right"):
        return [list(text) if kind == "right" else [] for text in wanted]
    if kind == "wrong":
        return [[draw.choice(LETTERS) for _ in range(draw.randrange(30))] for _ in wanted]
    drafts = []
    for text in wanted:
        draft = []
        for token in text:
            error = draw.random()
            if error > 0.2:
                draft.append(token)
            if error < 0.13:  # another token, instead of it or before it
                draft.append(draw.choice(LETTERS))
        drafts.append(draft)
    return drafts


@cache
@torch.inference_mode()
def slow_texts(seed: int, **settings: str) -> tuple[Model, EncoderOutput, Tokenizer, list[tuple[list[int], float]]]:
    """Return a model, what it hears in all sounds, its tokenizer, and the slow twin's texts with their scores."""
    model = lively_model(seed, **settings)
    memory = model.encode(*stack(mels(TEXTS)))
    tokenizer = liveliest_end(model, memory)
    sounds = [model.encode(*stack([mel])) for mel in mels(TEXTS)]
    pairs = zip(sounds, limits(model, memory), strict=True)
    return model, memory, tokenizer, [slow_greedy(model, sound, limit, tokenizer.end) for sound, limit in pairs]


@pytest.mark.parametrize("kind", ["none", "right", "faulty", "wrong"])
@pytest.mark.parametrize("settings", [{}, {"decoder_attention": "hybrid"}, {"positions": "absolute"}], ids=str)
@torch.inference_mode()
def test_greedy_with_any_draft_equals_the_slow_twin(settings: dict, kind: str) -> None:
    shares = set()
    for seed in range(2):
        model, memory, tokenizer, wanted = slow_texts(seed, **settings)
        reads = greedy(Engine(model), memory, tokenizer, drafts_of(kind, [text for text, _ in wanted]))
        for read, (text, score), limit in zip(reads, wanted, limits(model, memory), strict=True):
            assert read.tokens == text
            assert read.score == pytest.approx(score, abs=1e-3)
            shares.add(len(text) / limit)
    assert len([share for share in shares if 0 < share < 1]) > 1, "some texts should end by themselves"


@torch.inference_mode()
def test_a_right_draft_takes_one_pass_and_a_wrong_one_hardly_more_than_none() -> None:
    model = lively_model(0)
    memory = model.encode(*stack(mels(TEXTS)))
    tokenizer = liveliest_end(model, memory)
    plain = greedy(Engine(model), memory, tokenizer, [[] for _ in TEXTS])
    assert [read.passes for read in plain] == [len(read.tokens) + 1 for read in plain]
    right = greedy(Engine(model), memory, tokenizer, [read.tokens for read in plain])
    assert [read.passes for read in right] == [1] * len(TEXTS)
    assert [read.draft_score for read in right] == pytest.approx([read.score for read in plain], abs=1e-3)
    wrong = greedy(Engine(model), memory, tokenizer, drafts_of("wrong", [read.tokens for read in plain]))
    assert sum(read.passes for read in wrong) <= sum(read.passes for read in plain)


@pytest.mark.real
@torch.inference_mode()
def test_drafts_change_no_text_of_the_default_model_on_real_speech(real_data: Path) -> None:
    checkpoint = load_checkpoint(find_checkpoint(None))
    engine, tokenizer = Engine(checkpoint.model), checkpoint.tokenizer
    for manifest in sorted(real_data.glob("*/test.jsonl")):
        for utterance in read_manifest(manifest)[:REAL_UTTERANCES]:
            sound = load(Source(str(utterance.audio), utterance.offset, min(utterance.duration or 20, 20)))
            memory = engine.encode([log_mel(torch.from_numpy(sound))])
            drafts = ctc_greedy(engine.ctc_log_probs(memory), memory.lengths(), tokenizer.blank)
            (drafted,), (plain,) = (greedy(engine, memory, tokenizer, each) for each in (drafts, [[]]))
            assert drafted.tokens == plain.tokens, f"{manifest}: {utterance.audio}"
            assert drafted.passes <= plain.passes * 1.1 + 1


@torch.inference_mode()
def test_drafts_are_scored_as_the_decoder_scores_texts() -> None:
    model = lively_model(1)
    memory = model.encode(*stack(mels(TEXTS)))
    drafts = [LETTERS[:4], [], LETTERS[2:3], LETTERS, LETTERS[:2]]
    reads = greedy(Engine(model), memory, TOKENIZER, drafts)
    scores = decoder_score(Engine(model), memory, drafts, TOKENIZER)
    for read, draft, score in zip(reads, drafts, scores, strict=True):
        assert read.draft_score == pytest.approx(score, abs=1e-3) if draft else math.isnan(read.draft_score)


@pytest.mark.parametrize("text_context", [4, 10, 40])
@torch.inference_mode()
def test_a_decoder_that_never_ends_is_cut(text_context: int) -> None:
    model = tiny_model(TOKENIZER, text_context=text_context)
    with torch.no_grad():  # logits are ln(x) @ embedding: whatever x is, "a" has the largest
        model.decoder.ln.weight.zero_()
        model.decoder.ln.bias.copy_(torch.ones(16))
        model.decoder.token_embedding.weight.fill_(-0.1)
        model.decoder.token_embedding.weight[LETTERS[0]] = 1.0
    memory = model.encode(*stack(mels(["a", "abcd"])))
    assert memory.lengths().tolist() == [10, 16]
    for drafts in ([[], []], [LETTERS[:1] * 99, LETTERS * 9]):
        reads = greedy(Engine(model), memory, TOKENIZER, drafts)
        texts = [read.tokens for read in reads]
        assert texts == [[LETTERS[0]] * limit for limit in limits(model, memory)]
        assert len(texts[0]) < len(texts[1]) or text_context < 40
        scores = decoder_score(Engine(model), memory, texts, TOKENIZER)
        assert [read.score for read in reads] == pytest.approx(scores, abs=1e-3)


@torch.inference_mode()
def test_decoder_score_is_the_sum_of_its_steps() -> None:
    model = lively_model(0)
    texts = [LETTERS[:4], [], LETTERS[2:3], LETTERS * 3, LETTERS[:2]]
    memory = model.encode(*stack(mels(TEXTS)))
    scores = decoder_score(Engine(model), memory, texts, TOKENIZER)
    for row, mel in enumerate(mels(TEXTS)):
        alone, total = model.encode(*stack([mel])), 0.0
        for place, token in enumerate([*texts[row], TOKENIZER.end]):
            logits = model.decoder(torch.tensor([[TOKENIZER.start, *texts[row][:place]]]), alone)
            total += float(logits[0, -1].log_softmax(dim=-1)[token])
        assert scores[row] == pytest.approx(total, abs=1e-3)


@torch.inference_mode()
def test_decoder_score_of_a_text_that_does_not_fit() -> None:
    model = tiny_model(TOKENIZER, text_context=6)
    memory = model.encode(*stack(mels(["ab", "cd"])))
    scores = decoder_score(Engine(model), memory, [[4] * 5, [4] * 6], TOKENIZER)
    assert [math.isfinite(score) for score in scores] == [True, False]


# CTC


def log_probs_of(paths: list[list[int]], vocabulary: int = 6) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(paths), vocabulary).float().mul(9).log_softmax(dim=-1)


def slow_collapse(path: list[int], blank: int) -> list[int]:
    text, before = [], blank
    for token in path:
        if token not in (before, blank):
            text.append(token)
        before = token
    return text


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_greedy_equals_the_loop(blank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    paths = torch.randint(0, 5, (200, 9), generator=draw)
    lengths = torch.randint(1, 10, (200,), generator=draw)
    texts = ctc_greedy(log_probs_of(paths.tolist()), lengths, blank)
    for text, path, length in zip(texts, paths.tolist(), lengths.tolist(), strict=True):
        assert text == slow_collapse(path[:length], blank)


def test_ctc_greedy_on_known_paths() -> None:
    paths = [[0, 0, 0, 0], [4, 4, 0, 4], [4, 5, 5, 4], [0, 4, 0, 5]]
    assert ctc_greedy(log_probs_of(paths), torch.tensor([4, 4, 4, 3]), 0) == [[], [4, 4], [4, 5, 4], [4]]


def memory_of(lengths: list[int], steps: int) -> EncoderOutput:
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    return EncoderOutput(torch.zeros(len(lengths), steps, 16), mask, [])


@pytest.mark.parametrize("blank", [0, 1])
def test_ctc_score_is_the_sum_over_all_alignments(blank: int) -> None:
    steps, vocabulary = 4, 3
    a, b = [token for token in range(vocabulary) if token != blank]
    texts = [[], [a], [a, b], [a, a], [b, a, b], [a, b], [a]]
    lengths = [4, 4, 4, 4, 4, 3, 1]
    log_probs = torch.randn(len(texts), steps, vocabulary, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    scores = ctc_score(log_probs, memory_of(lengths, steps), texts, blank)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        total = 0.0
        for path in itertools.product(range(vocabulary), repeat=length):
            if slow_collapse(list(path), blank) == text:
                total += math.exp(sum(float(log_probs[row, step, token]) for step, token in enumerate(path)))
        assert float(scores[row]) == pytest.approx(math.log(total), abs=1e-4)


def test_ctc_score_of_what_cannot_be_aligned() -> None:
    log_probs = torch.zeros(2, 3, 4).log_softmax(-1)
    scores = ctc_score(log_probs, memory_of([3, 3], 3), [[1, 1], [1, 1, 1]], 0)
    assert scores.isfinite().tolist() == [True, False]
    assert float(scores[1]) == -math.inf


def test_ctc_score_of_nothing_but_empty_texts() -> None:
    scores = ctc_score(torch.zeros(2, 3, 4).log_softmax(-1), memory_of([3, 2], 3), [[], []], 0)
    assert scores.tolist() == pytest.approx([3 * math.log(0.25), 2 * math.log(0.25)])


# The guard and the choice


class Stub:
    """Stands in for an engine's CTC head: says the same log probabilities (B, T, V) whatever it hears."""

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, _engine: Engine, memory: EncoderOutput) -> Tensor:
        return self.log_probs[:, : memory.states.shape[1]]


def test_where_ctc_hears_nothing_the_text_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(0)
    sounds = mels(["ab", "cd"])
    log_probs = log_probs_of([[0] * 8, [0, 0, 4, 4, 0, 5, 0, 0]], TOKENIZER.size)
    monkeypatch.setattr(Engine, "ctc_log_probs", lambda *heard: Stub(log_probs)(*heard))
    silent, spoken = heard(model, sounds, 1.0)
    assert (silent.tokens, silent.avg_logprob) == ([], 0.0)
    assert silent.no_speech_prob == pytest.approx(math.exp(8 * float(log_probs[0, 0, 0])), rel=1e-3)
    assert spoken.tokens == [4, 5]
    assert spoken.no_speech_prob < 1e-6
    both = log_probs[:1].expand(2, -1, -1)
    monkeypatch.setattr(Engine, "ctc_log_probs", lambda *heard: Stub(both)(*heard))
    assert [answer.tokens for answer in heard(model, sounds, 0.5)] == [[], []]


@pytest.mark.parametrize(
    ("ctc", "decoder", "ctc_weight", "wanted"),
    [
        ((-1.0, -9.0), (-5.0, -2.0), 0.5, "draft"),
        ((-1.0, -3.0), (-9.0, -2.0), 0.5, "greedy"),
        ((-1.0, -9.0), (-5.0, -2.0), 0.1, "greedy"),
        ((-1.0, -9.0), (-5.0, -2.0), 0.0, "greedy"),
        ((-1.0, -math.inf), (-5.0, -2.0), 0.5, "draft"),
        ((-1.0, -math.inf), (-5.0, -2.0), 0.0, "greedy"),
        ((-math.inf, -1.0), (-5.0, -2.0), 0.0, "greedy"),
        ((-1.0, -9.0), (-math.inf, -2.0), 0.5, "greedy"),
    ],
)
def test_the_better_scored_text_is_chosen(
    monkeypatch: pytest.MonkeyPatch, ctc: tuple, decoder: tuple, ctc_weight: float, wanted: str
) -> None:
    texts = {"draft": [4, 5], "greedy": [6]}

    def place(given: list[list[int]]) -> int:
        return list(texts.values()).index(given[0])

    read = DecoderResult(texts["greedy"], score=decoder[1], draft_score=decoder[0], passes=3)
    monkeypatch.setattr("focusasr.decoding.ctc_attention.ctc_greedy", lambda *_: [texts["draft"]])
    monkeypatch.setattr("focusasr.decoding.ctc_attention.greedy", lambda *_, **__: [read])
    monkeypatch.setattr(
        "focusasr.decoding.ctc_attention.ctc_score", lambda _l, _m, given, _b: torch.tensor([ctc[place(given)]])
    )
    (answer,) = heard(lively_model(0), mels(["abc"]), ctc_weight)
    assert answer.passes == 3
    assert answer.tokens == texts[wanted]
    chosen = list(texts).index(wanted)
    assert answer.avg_logprob == pytest.approx(decoder[chosen] / (len(texts[wanted]) + 1))


@pytest.mark.parametrize(("ctc_weight", "beam_size"), [(0.3, 1), (0.3, 3), (1.0, 2)])
def test_a_draft_that_is_too_long_for_the_decoder_is_the_answer(ctc_weight: float, beam_size: int) -> None:
    """Of two texts one has room; the other one was cut off there, or ended the job as its score was infinite."""
    model = lively_model(0, text_context=8)
    sounds = mels(["abcdefghabcdefgh", "ab"])
    memory = model.encode(*stack(sounds))
    drafts = ctc_greedy(model.ctc_log_probs(memory), memory.lengths(), TOKENIZER.blank)
    assert len(drafts[0]) > 6 >= len(drafts[1]) > 0
    long, short = heard(model, sounds, ctc_weight, beam_size)
    assert long.tokens == drafts[0] and math.isfinite(long.avg_logprob)
    (expected,) = heard(model, sounds[1:], ctc_weight, beam_size)
    assert short.tokens == expected.tokens and short.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-3)


def test_ctc_alone_asks_the_decoder_once_for_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(*given: object, most_passes: int | None) -> list[DecoderResult]:
        assert most_passes == 1
        return greedy(*given, most_passes)  # type: ignore[arg-type]

    monkeypatch.setattr("focusasr.decoding.ctc_attention.greedy", once)
    model = lively_model(0)
    for text, answer in zip(TEXTS, alone(model, 1.0), strict=True):
        memory = model.encode(*stack(mels([text])))
        assert answer.tokens == ctc_greedy(model.ctc_log_probs(memory), memory.lengths(), TOKENIZER.blank)[0]
