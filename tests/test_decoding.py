"""Decoding: fast paths against slow twins, and the answer for one utterance whatever is decoded beside it."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from tones import letters_tokenizer, mels, tiny_model
from torch import Tensor

from focusasr.decoding import Hypothesis, ctc_greedy, ctc_score, decode, decoder_score, greedy
from focusasr.features import stack
from focusasr.model import Memory, Model
from focusasr.tokenizer import Tokenizer

TOKENIZER = letters_tokenizer()
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


def alone(model: Model, ctc_weight: float) -> list[Hypothesis]:
    return [decode(model, [mel], TOKENIZER, ctc_weight)[0] for mel in mels(TEXTS)]


@pytest.mark.parametrize(
    "settings", [{}, {"decoder_attention": "hybrid"}, {"ctc": False}, {"attention": "global"}], ids=str
)
@pytest.mark.parametrize("ctc_weight", [0.0, 0.5, 1.0])
def test_the_answer_is_the_same_alone_and_in_any_batch(settings: dict, ctc_weight: float) -> None:
    model = lively_model(4, text_context=24, **settings)
    wanted = alone(model, ctc_weight)
    assert len({tuple(answer.tokens) for answer in wanted}) > 2, "a test of equal answers would prove nothing"
    sounds = mels(TEXTS)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 1], [1, 0, 1]):
        found = decode(model, [sounds[row] for row in order], TOKENIZER, ctc_weight)
        for row, answer in zip(order, found, strict=True):
            assert answer.tokens == wanted[row].tokens
            assert answer.avg_logprob == pytest.approx(wanted[row].avg_logprob, abs=1e-4)
            assert answer.no_speech_prob == pytest.approx(wanted[row].no_speech_prob, abs=1e-4)


def test_very_short_sound_beside_long_sound() -> None:
    model = lively_model(2)
    short, long = torch.zeros(2, 20), mels(["abcabcabc"])[0]
    assert decode(model, [short, long], TOKENIZER, 0.5)[0].tokens == decode(model, [short], TOKENIZER, 0.5)[0].tokens


# Greedy decoding


def slow_greedy(model: Model, memory: Memory, limit: int, end: int) -> tuple[list[int], float]:
    """Decode one utterance without a cache: the whole text is read anew for each token."""
    text: list[int] = []
    score = 0.0
    while True:
        logits, _ = model.decoder(torch.tensor([[TOKENIZER.start, *text]]), model.decoder.start(memory))
        log_probs = logits[0, -1].log_softmax(dim=-1)
        choice = int(log_probs.argmax()) if len(text) < limit else end
        score += float(log_probs[choice])
        if choice == end:
            return text, score
        text.append(choice)


def limits(model: Model, memory: Memory) -> list[int]:
    return [min(steps, model.config.text_context - 2) for steps in memory.lengths().tolist()]


def liveliest_end(model: Model, memory: Memory) -> Tokenizer:
    """Return a tokenizer whose end is the token that ends most texts of an untrained model halfway."""

    def halfway(tokenizer: Tokenizer) -> int:
        texts, _ = greedy(model, memory, tokenizer)
        return sum(0 < len(text) < limit for text, limit in zip(texts, limits(model, memory), strict=True))

    tokenizers = [copy.copy(TOKENIZER) for _ in range(TOKENIZER.size)]
    for token, tokenizer in enumerate(tokenizers):
        tokenizer.end = token
    return max(tokenizers, key=halfway)


@pytest.mark.parametrize("settings", [{}, {"decoder_attention": "hybrid"}, {"positions": "absolute"}], ids=str)
@torch.inference_mode()
def test_greedy_with_cache_equals_the_slow_twin(settings: dict) -> None:
    shares = set()
    for seed in range(2):
        model = lively_model(seed, **settings)
        memory = model.encode(*stack(mels(TEXTS)))
        tokenizer = liveliest_end(model, memory)
        texts, scores = greedy(model, memory, tokenizer)
        for row, (mel, limit) in enumerate(zip(mels(TEXTS), limits(model, memory), strict=True)):
            text, score = slow_greedy(model, model.encode(*stack([mel])), limit, tokenizer.end)
            assert texts[row] == text
            assert float(scores[row]) == pytest.approx(score, abs=1e-3)
            shares.add(len(text) / limit)
    assert len([share for share in shares if 0 < share < 1]) > 1, "some texts should end by themselves"


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
    assert memory.lengths().tolist() == [4, 16]
    texts, scores = greedy(model, memory, TOKENIZER)
    assert texts == [[LETTERS[0]] * limit for limit in limits(model, memory)]
    assert len(texts[0]) < len(texts[1]) or text_context < 40
    torch.testing.assert_close(scores, decoder_score(model, memory, texts, TOKENIZER))


@torch.inference_mode()
def test_decoder_score_is_the_sum_of_its_steps() -> None:
    model = lively_model(0)
    texts = [LETTERS[:4], [], LETTERS[2:3], LETTERS * 3, LETTERS[:2]]
    memory = model.encode(*stack(mels(TEXTS)))
    scores = decoder_score(model, memory, texts, TOKENIZER)
    for row, mel in enumerate(mels(TEXTS)):
        state = model.decoder.start(model.encode(*stack([mel])))
        total, read = 0.0, TOKENIZER.start
        for token in [*texts[row], TOKENIZER.end]:
            logits, state = model.decoder(torch.tensor([[read]]), state)
            total += float(logits[0, -1].log_softmax(dim=-1)[token])
            read = token
        assert float(scores[row]) == pytest.approx(total, abs=1e-3)


@torch.inference_mode()
def test_decoder_score_of_a_text_that_does_not_fit() -> None:
    model = tiny_model(TOKENIZER, text_context=6)
    memory = model.encode(*stack(mels(["ab", "cd"])))
    scores = decoder_score(model, memory, [[4] * 5, [4] * 6], TOKENIZER)
    assert scores.isfinite().tolist() == [True, False]


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


def memory_of(lengths: list[int], steps: int) -> Memory:
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    return Memory(torch.zeros(len(lengths), steps, 16), mask, [])


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
    """Stands in for a model's CTC head: says the same log probabilities (B, T, V) whatever it hears."""

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def __call__(self, memory: Memory) -> Tensor:
        return self.log_probs[:, : memory.states.shape[1]]


def test_where_ctc_hears_nothing_the_text_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(0)
    sounds = mels(["ab", "cd"])
    log_probs = log_probs_of([[0] * 8, [0, 0, 4, 4, 0, 5, 0, 0]], TOKENIZER.size)
    monkeypatch.setattr(model, "ctc_log_probs", Stub(log_probs))
    silent, heard = decode(model, sounds, TOKENIZER, 1.0)
    assert (silent.tokens, silent.avg_logprob) == ([], 0.0)
    assert silent.no_speech_prob == pytest.approx(math.exp(8 * float(log_probs[0, 0, 0])), rel=1e-3)
    assert heard.tokens == [4, 5]
    assert heard.no_speech_prob < 1e-6
    both = log_probs[:1].expand(2, -1, -1)
    monkeypatch.setattr(model, "ctc_log_probs", Stub(both))
    assert [answer.tokens for answer in decode(model, sounds, TOKENIZER, 0.5)] == [[], []]


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

    model = lively_model(0)
    monkeypatch.setattr("focusasr.decoding.ctc_greedy", lambda *_: [texts["draft"]])
    monkeypatch.setattr("focusasr.decoding.greedy", lambda *_: ([texts["greedy"]], torch.zeros(1)))
    monkeypatch.setattr("focusasr.decoding.ctc_score", lambda _l, _m, given, _b: torch.tensor([ctc[place(given)]]))
    monkeypatch.setattr(
        "focusasr.decoding.decoder_score", lambda _o, _m, given, _t: torch.tensor([decoder[place(given)]])
    )
    (answer,) = decode(model, mels(["abc"]), TOKENIZER, ctc_weight)
    assert answer.tokens == texts[wanted]
    chosen = list(texts).index(wanted)
    assert answer.avg_logprob == pytest.approx(decoder[chosen] / (len(texts[wanted]) + 1))


def test_ctc_alone_never_runs_the_greedy_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr("focusasr.decoding.greedy", refuse)
    model = lively_model(0)
    for text, answer in zip(TEXTS, alone(model, 1.0), strict=True):
        memory = model.encode(*stack(mels([text])))
        assert answer.tokens == ctc_greedy(model.ctc_log_probs(memory), memory.lengths(), TOKENIZER.blank)[0]


def test_the_tokenizer_of_the_tests_has_its_blank_first() -> None:
    assert isinstance(TOKENIZER, Tokenizer)
    assert TOKENIZER.blank == 0
