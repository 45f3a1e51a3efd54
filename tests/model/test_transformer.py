"""The recognizer: padding is invisible, the cache changes nothing, the losses are what they say they are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.config import ModelConfig
from focusasr.model.losses import IGNORED, LossWeights, ctc_losses, joint_loss
from focusasr.model.transformer import EncoderOutput, ForwardOutput, Model, Stem, sinusoids
from focusasr.runtime.errors import InputError

BANDS, VOCABULARY, BLANK, END = 8, 11, 0, 2
WHISPER = {"strides": (1, 2), "positions": "absolute", "attention": "global", "ctc": False, "audio_context": 30}
KINDS = {
    "hybrid": {},
    "convolution": {"conv_kernel": 5},
    "global": {"attention": "global"},
    "hybrid decoder, near": {"decoder_attention": "hybrid", "max_dist": 5},
    "whisper": WHISPER,
}


def config(**changes) -> ModelConfig:
    settings = {
        "vocabulary": VOCABULARY, "mel_bands": BANDS, "width": 16, "heads": 2, "encoder_layers": 2,
        "decoder_layers": 2, "max_span": 6, "ramp": 2, "win_size": 4, "dropout": 0.0, "text_context": 24,
    }  # fmt: skip
    return ModelConfig(**{**settings, **changes})


def model(**changes) -> Model:
    return Model(config(**changes)).eval()


def sound(*frames: int) -> tuple[Tensor, Tensor]:
    """Return mel (B, F, M) with noise where padding is, and lengths (B,)."""
    return 3 * torch.randn(len(frames), max(frames), BANDS), torch.tensor(frames)


def padded(*rows: list[int]) -> Tensor:
    return torch.tensor([row + [IGNORED] * (max(map(len, rows)) - len(row)) for row in rows])


# Encoder


@pytest.mark.parametrize("strides", [(1, 1), (1, 2), (2, 2), (3, 2)])
def test_stem_sees_zeros_beyond_the_end_whatever_is_there(strides: tuple[int, int]) -> None:
    stem = Stem(config(strides=strides))
    frames = [1, 2, 3, 4, 5, 6, 7, 8, 20]
    mel, lengths = sound(*frames)
    out, mask = stem(mel, lengths)
    for row, n in enumerate(frames):
        alone = mel[row : row + 1, :n].mT
        for conv in (stem.conv1, stem.conv2):
            alone = F.gelu(F.conv1d(alone, conv.weight, conv.bias, conv.stride, padding=1))
        steps = alone.shape[2]
        assert mask[row].tolist() == [True] * steps + [False] * (mask.shape[1] - steps)
        torch.testing.assert_close(out[row, :steps], alone[0].mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_mates_are_invisible_to_the_whole_model(kind: str) -> None:
    network, frames = model(**KINDS[kind]), [37, 4, 23, 1]
    mel, lengths = sound(*frames)
    tokens = torch.randint(3, VOCABULARY, (4, 6))
    for order in ([3, 0, 1, 2], [1, 2]):
        together = network(mel[order], lengths[order], tokens[order])
        for place, row in enumerate(order):
            mine = slice(row, row + 1)
            alone = network(mel[mine, : frames[row]], lengths[mine], tokens[mine])
            steps = alone.memory.states.shape[1]
            assert together.memory.lengths()[place] == alone.memory.lengths()[0] == steps
            pairs = [(together.memory.states[place, :steps], alone.memory.states[0])]
            pairs += [
                (together.logits[place], alone.logits[0]),
                (together.memory.mean()[place], alone.memory.mean()[0]),
            ]
            pairs += [(a[place], b[0]) for a, b in zip(together.memory.spans, alone.memory.spans, strict=True)]
            if together.ctc is not None and alone.ctc is not None:
                pairs.append((together.ctc[place, :steps], alone.ctc[0]))
            for ours, wanted in pairs:
                torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_encoder_steps_follow_the_strides() -> None:
    for strides, steps in (((1, 2), 50), ((2, 2), 25)):
        memory = model(strides=strides).encode(*sound(99))
        assert memory.states.shape == (1, steps, 16) and memory.mask is None
        assert config(strides=strides).step_seconds == pytest.approx(1 / steps)


def test_wrong_sound_is_refused_with_numbers() -> None:
    network = model()
    with pytest.raises(ValueError, match=r"\(1, 5, 80\).*8"):
        network.encode(torch.zeros(1, 5, 80), torch.tensor([5]))
    with pytest.raises(ValueError, match=r"\(1, 0, 8\)"):
        network.encode(torch.zeros(1, 0, BANDS), torch.tensor([0]))
    for lengths in ([0, 5], [5, 6]):
        with pytest.raises(ValueError, match=r"1 to 5 frames"):
            network.encode(torch.zeros(2, 5, BANDS), torch.tensor(lengths))


# Decoder


@pytest.mark.parametrize("kind", KINDS)
def test_logits_depend_on_the_tokens_so_far_and_on_the_sound(kind: str) -> None:
    network, (mel, lengths) = model(**KINDS[kind]), sound(30)
    tokens = torch.randint(3, VOCABULARY, (1, 8))
    heard = network(mel, lengths, tokens).logits
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] - 3 + 1) % (VOCABULARY - 3) + 3
    other = network(mel, lengths, changed).logits
    torch.testing.assert_close(other[:, :5], heard[:, :5], rtol=0, atol=1e-6)
    assert (other[:, 5:] - heard[:, 5:]).abs().amax(dim=-1).min() > 1e-4
    assert (network(*sound(30), tokens).logits - heard).abs().max() > 1e-4


# Whisper's shape


def test_whispers_shape_runs_and_its_limits_name_the_numbers() -> None:
    network = model(**WHISPER)
    heard = network(*sound(60), torch.ones(1, 24, dtype=torch.long))
    assert heard.memory.states.shape == (1, 30, 16) and heard.logits.shape == (1, 24, VOCABULARY)
    assert heard.ctc is None and heard.memory.spans == []
    with pytest.raises(ValueError, match=r"31 .*30"):
        network.encode(*sound(61))
    with pytest.raises(ValueError, match=r"25 .*24"):
        network(*sound(60), torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="CTC"):
        network.ctc_log_probs(heard.memory)


def test_absolute_positions_are_whispers_sinusoids() -> None:
    table = sinusoids(50, 16)
    for position, channel in ((0, 0), (7, 0), (49, 3), (31, 7)):
        angle = position * math.exp(-channel * math.log(10_000) / 7)
        assert table[position, channel].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, channel + 8].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("changes", [WHISPER, {"attention": "global"}], ids=["whisper", "native"])
def test_hybrid_model_started_from_global_weights_equals_it_exactly(changes: dict) -> None:
    plain = model(**changes)
    hybrid = model(**{**changes, "attention": "hybrid", "decoder_attention": "hybrid"})
    fit = hybrid.load_state_dict(plain.state_dict(), strict=False)
    assert not fit.unexpected_keys
    with torch.no_grad():
        for block in [*hybrid.encoder.blocks, *hybrid.decoder.blocks]:
            block.attention.projection.weight.copy_(torch.cat((torch.zeros(16, 16), torch.eye(16)), dim=1))
            block.attention.projection.bias.zero_()
    (mel, lengths), tokens = sound(50, 33), torch.randint(3, VOCABULARY, (2, 9))
    ours, wanted = hybrid(mel, lengths, tokens), plain(mel, lengths, tokens)
    assert torch.equal(ours.memory.states, wanted.memory.states)
    assert torch.equal(ours.logits, wanted.logits)


# Losses


def heard_by(network: Model, *frames: int, tokens: int) -> ForwardOutput:
    return network(*sound(*frames), torch.randint(3, VOCABULARY, (len(frames), tokens)))


def ctc_alone(log_probs: Tensor, steps: int, text: list[int]) -> Tensor:
    """Return torch's loss of one utterance, cut to its own length."""
    sizes = torch.tensor([steps]), torch.tensor([len(text)])
    return F.ctc_loss(log_probs[:steps, None], torch.tensor([text], dtype=torch.long), *sizes, BLANK, "sum")


def test_joint_loss_is_the_sum_of_its_pieces() -> None:
    heard = heard_by(model(), 60, 33, 48, tokens=5)
    texts = [[5, 5, 7, END], [4, END], [9, 3, 3, 8, END]]
    losses = joint_loss(heard, padded(*texts), BLANK, LossWeights(0.3, 0.1, 0.7))
    pieces = []
    for row, text in enumerate(texts):
        for place, token in enumerate(text):
            log_probs = heard.logits[row, place].log_softmax(dim=-1)
            pieces.append(-0.9 * log_probs[token] - 0.1 * log_probs.mean())
    attention = sum(pieces) / len(pieces)
    steps = heard.memory.lengths().tolist()
    ctc = sum(ctc_alone(heard.ctc[row], steps[row], text[:-1]) / len(text[:-1]) for row, text in enumerate(texts)) / 3
    span = sum(scale.sum() for scale in heard.memory.spans) / (2 * 3 * 2)  # layers, utterances, heads
    torch.testing.assert_close(losses.attention, attention.detach())
    torch.testing.assert_close(losses.ctc, ctc.detach())
    torch.testing.assert_close(losses.span, span.detach())
    torch.testing.assert_close(losses.total, 0.7 * attention + 0.3 * ctc + 0.7 * span)


def test_ctc_loss_sums_over_every_path() -> None:
    log_probs = torch.randn(2, 5, 3).log_softmax(dim=-1)
    targets, lengths = padded([1, 1], [2]), torch.tensor([5, 3])
    for row, text in enumerate(([1, 1], [2])):
        total = 0.0
        for path in itertools.product(range(3), repeat=int(lengths[row])):
            if [token for token, _ in itertools.groupby(path) if token != BLANK] == text:
                total += math.exp(sum(log_probs[row, t, token].item() for t, token in enumerate(path)))
        found = ctc_losses(log_probs, lengths, targets, BLANK)[row].item()
        assert found == pytest.approx(-math.log(total), rel=1e-5)


def test_padding_of_targets_changes_no_loss() -> None:
    heard = heard_by(model(), 60, 33, tokens=4)
    targets = padded([5, 7, 8, END], [4, END])
    wider = ForwardOutput(heard.memory, F.pad(heard.logits, (0, 0, 0, 3), value=9.0), heard.ctc)
    one = joint_loss(heard, targets, BLANK, LossWeights())
    other = joint_loss(wider, F.pad(targets, (0, 3), value=IGNORED), BLANK, LossWeights())
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_end_token_is_no_target_of_ctc() -> None:
    heard = heard_by(model(), 60, 33, tokens=3)
    one = joint_loss(heard, padded([5, 7, END], [4, END]), BLANK, LossWeights(ctc=1.0))
    other = joint_loss(heard, padded([5, 7, 9], [4, 8]), BLANK, LossWeights(ctc=1.0))
    assert torch.equal(one.ctc, other.ctc) and not torch.equal(one.attention, other.attention)
    same_as_end = joint_loss(heard, padded([5, END, END], [4, END]), BLANK, LossWeights(ctc=1.0))  # only the last goes
    steps = heard.memory.lengths().tolist()
    wanted = (ctc_alone(heard.ctc[0], steps[0], [5, END]) / 2 + ctc_alone(heard.ctc[1], steps[1], [4])) / 2
    torch.testing.assert_close(same_as_end.ctc, wanted.detach())


def test_empty_text_is_a_path_of_blanks() -> None:
    heard = heard_by(model(), 41, 12, tokens=1)
    losses = joint_loss(heard, padded([END], [END]), BLANK, LossWeights())
    blanks = [-heard.ctc[row, :steps, BLANK].sum() for row, steps in enumerate(heard.memory.lengths().tolist())]
    torch.testing.assert_close(losses.ctc, (sum(blanks) / 2).detach())
    losses.total.backward()
    assert losses.total.isfinite()


def test_text_too_long_for_its_sound_spoils_neither_loss_nor_gradient() -> None:
    network = model()
    heard = heard_by(network, 8, 40, tokens=7)  # 2 steps and 10
    texts = [[3, 4, 5, 6, 7, 8, END], [4, 4, END]]
    assert ctc_losses(heard.ctc, heard.memory.lengths(), padded(texts[0][:-1], texts[1][:-1]), BLANK)[0] == math.inf
    losses = joint_loss(heard, padded(*texts), BLANK, LossWeights(ctc=1.0))
    torch.testing.assert_close(losses.ctc, (ctc_alone(heard.ctc[1], 10, [4, 4]) / 2 / 2).detach())
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert network.ctc_head.weight.grad.any()


def test_without_a_ctc_head_or_spans_the_loss_is_attentions() -> None:
    heard = heard_by(model(**WHISPER), 60, tokens=3)
    losses = joint_loss(heard, padded([5, 7, END]), BLANK, LossWeights(0.3, 0.0, 0.7))
    torch.testing.assert_close(losses.total, F.cross_entropy(heard.logits[0], torch.tensor([5, 7, END])))
    assert losses.ctc == 0 and losses.span == 0


# The whole


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    network = Model(config(**KINDS[kind])).train()
    tokens = torch.tensor([[1, 5, 5, 7, 8, 9, 3, 4], [1, 4, 6, 3, 3, 3, 3, 3]])
    targets = padded([5, 5, 7, 8, 9, 3, 4, END], [4, 6, END])
    losses = joint_loss(network(*sound(60, 50), tokens), targets, BLANK, LossWeights())
    losses.total.backward()
    unread = {"decoder.positional_embedding"}  # rows beyond the text
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
        if parameter.dim() > 1 and name not in unread:
            assert parameter.grad.flatten(1).any(dim=1).all(), f"rows of {name} that learn nothing"


def test_output_embedding_is_the_input_embedding() -> None:
    network = model()
    assert network.parameter_count() == len(torch.cat([p.flatten() for p in network.parameters()]))
    assert [name for name, p in network.named_parameters() if VOCABULARY in p.shape] == [
        "decoder.token_embedding.weight",
        "ctc_head.weight",
        "ctc_head.bias",
    ]


def test_dropout_is_for_training_only() -> None:
    network, (mel, lengths) = Model(config(dropout=0.5)), sound(40)
    assert not torch.equal(network.encode(mel, lengths).states, network.encode(mel, lengths).states)
    network.eval()
    assert torch.equal(network.encode(mel, lengths).states, network.encode(mel, lengths).states)


def test_memory_without_mask_has_full_lengths() -> None:
    memory = EncoderOutput(torch.randn(2, 5, 4), None, [])
    assert memory.lengths().tolist() == [5, 5]
    torch.testing.assert_close(memory.mean()[1, 0], memory.states[1].sum(dim=0) / 5)


def test_model_needs_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocabulary is 0"):
        Model(config(vocabulary=0))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 15}, r"width is 15; .*heads \(2\)"),
        ({"width": 6}, r"width is 6; .*heads \(2\)"),
        ({"max_span": 1}, r"max_span is 1; .*ramp \(2\)"),
        ({"ramp": 0}, "ramp is 0"),
        ({"win_size": 0}, "win_size is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"max_dist": -1}, "max_dist is -1"),
        ({"temp_scale": -0.5}, "temp_scale is -0.5"),
        ({"initial_span": 0.0}, "initial_span is 0.0"),
        ({"conv_kernel": 4}, "conv_kernel is 4;"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"strides": (2,)}, r"strides is \(2,\)"),
        ({"strides": (0, 2)}, r"strides is \(0, 2\)"),
        ({"text_context": 3}, "text_context is 3"),
        ({"attention": "both"}, "attention is 'both';"),
        ({"positions": "none"}, "positions is 'none'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_one_line(changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)
