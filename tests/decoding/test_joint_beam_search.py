"""The joint beam search: CTC's prefix probabilities against all alignments, and a wide beam against all texts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from focusasr.audio.features import stack
from focusasr.config import DecodingConfig
from focusasr.decoding.ctc_attention import ctc_score
from focusasr.decoding.joint_beam_search import PrefixScorer, joint, joint_search
from focusasr.evaluation.attention_stats import entropy
from focusasr.model.engine import Engine
from tests.helpers.reference_decoder import decoder_score
from tests.helpers.toy_speech import letters_tokenizer, mels, tiny_model

BLANK, STEPS, SIZE = 0, 5, 3


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def alignments(log_probs: Tensor) -> list[tuple[list[int], float]]:
    """Return the text and the probability of every path through log_probs (T, V)."""
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(log_probs))
    return [(collapse(path), math.exp(float(log_probs[range(len(path)), path].sum()))) for path in paths]


@pytest.mark.parametrize("length", [1, 3, STEPS])
def test_prefix_probabilities_are_sums_over_alignments(length: int) -> None:
    draw = torch.Generator().manual_seed(length)
    log_probs = torch.randn(2, STEPS, SIZE, generator=draw, dtype=torch.float64).mul(2).log_softmax(-1)
    scorer = PrefixScorer(log_probs, torch.tensor([STEPS, length]), BLANK)
    everything = [alignments(log_probs[0]), alignments(log_probs[1, :length])]
    for text in ([], [1], [2, 1], [1, 1], [1, 2, 2], [2, 2, 2]):
        prefix = scorer.start(1)
        for depth in range(len(text) + 1):
            head = text[:depth]
            whole = [sum(p for heard, p in paths if heard == head) for paths in everything]
            assert scorer.whole(prefix).exp()[:, 0].tolist() == pytest.approx(whole, abs=1e-9)
            tokens = torch.tensor([[[1, 2]], [[1, 2]]])
            begins = [
                sum(p for heard, p in paths if heard[: depth + 1] == [*head, token])
                for paths in everything
                for token in (1, 2)
            ]
            assert scorer.extensions(prefix, tokens).exp().flatten().tolist() == pytest.approx(begins, abs=1e-9)
            if depth < len(text):
                prefix = scorer.extend(prefix, torch.full((2, 1), text[depth]))


def test_a_long_recording_does_not_wear_the_sums_out() -> None:
    log_probs = torch.randn(1, 4000, 6, generator=torch.Generator().manual_seed(0)).mul(4).log_softmax(-1)
    scorer = PrefixScorer(log_probs, torch.tensor([4000]), BLANK)
    prefix, text = scorer.start(1), [1, 2, 2, 3, 5, 5, 1] * 20
    for token in text:
        prefix = scorer.extend(prefix, torch.tensor([[token]]))
    wanted = -torch.nn.functional.ctc_loss(
        log_probs.double().transpose(0, 1), torch.tensor([text]), [4000], [len(text)], BLANK, "none"
    )
    assert scorer.whole(prefix).item() == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
@torch.inference_mode()
def test_a_wide_beam_finds_the_best_of_all_texts(ctc_weight: float) -> None:
    tokenizer = letters_tokenizer("ab")
    found = []
    for seed in range(4):
        model = tiny_model(tokenizer, seed, decoder_layers=1)
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
        model.decoder.ln.weight.neg_()  # else each token calls for itself again, the embeddings being tied
        model.decoder.token_embedding.weight[tokenizer.end] *= 0.1  # else empty texts win
        assert model.ctc_head is not None
        model.ctc_head.weight.mul_(4.0)
        memory = model.encode(*stack([mel[:16] for mel in mels(["ab", "b a"])]))  # 4 steps each
        log_probs = model.ctc_log_probs(memory)
        others = {tokenizer.blank, tokenizer.start, tokenizer.end}
        letters = [token for token in range(tokenizer.size) if token not in others]
        texts = [list(text) for length in range(5) for text in itertools.product(letters, repeat=length)]
        engine = Engine(model)
        reads = joint_search(
            engine, memory, log_probs, tokenizer, DecodingConfig(ctc_weight=ctc_weight, joint_beam_size=len(texts))
        )
        for row in range(2):
            one = memory._replace(states=memory.states[row : row + 1].expand(len(texts), -1, -1), mask=None)
            by_decoder = torch.tensor(decoder_score(engine, one, texts, tokenizer))
            by_ctc = ctc_score(log_probs[row : row + 1].expand(len(texts), -1, -1), one, texts, tokenizer.blank)
            winner = int(joint(by_ctc, by_decoder, ctc_weight).argmax())
            assert reads[row].tokens == texts[winner]
            assert reads[row].score == pytest.approx(float(by_decoder[winner]), abs=1e-3)
            found.append(tuple(reads[row].tokens))
    assert len(set(found)) > 2, "a test of equal answers would prove nothing"


class OnMps(Tensor):
    """A tensor as on MPS, which has no float64; `cpu` brings it home."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("mps")
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def test_a_device_without_float64_searches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = letters_tokenizer("ab")
    engine = Engine(tiny_model(tokenizer, 1, decoder_layers=1))
    memory = engine.encode(mels(["ab", "b a"]))
    log_probs, config = engine.ctc_log_probs(memory), DecodingConfig(joint_beam_size=3)
    expected = joint_search(engine, memory, log_probs, tokenizer, config)
    advance = engine.advance
    monkeypatch.setattr(engine, "advance", lambda *given: advance(*given).as_subclass(OnMps))
    with pytest.raises(TypeError, match="float64"):
        log_probs.as_subclass(OnMps).double()
    assert joint_search(engine, memory, log_probs.as_subclass(OnMps), tokenizer, config) == expected
    weights = torch.rand(2, 3, 3)
    assert [x.tolist() for x in entropy(weights.as_subclass(OnMps), torch.ones(3, 3).bool().as_subclass(OnMps))] == [
        x.tolist() for x in entropy(weights, torch.ones(3, 3).bool())
    ]
