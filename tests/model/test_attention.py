"""Focused hybrid attention does what the published sketch of it could only promise: each of its defects is a test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from focusasr.config import ModelConfig
from focusasr.model import local_attention
from focusasr.model.attention import (
    AdaptiveSpanAttention,
    GlobalAttention,
    HybridAttention,
    SpanPredictor,
    rotary,
    rotate,
)
from tests.helpers import reference_attention as slow

BASE = 100.0
WINDOW = 6  # the largest radius here


def config(**changes) -> ModelConfig:
    settings = {"width": 8, "heads": 2, "max_span": WINDOW, "ramp": 2, "win_size": 4, "base": BASE}
    return ModelConfig(**{**settings, **changes})


def built(kind: type[nn.Module], causal: bool = False, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """Return a module whose spans and temperatures are spread out."""
    module = kind(config(**changes), causal).to(dtype)
    if isinstance(module, HybridAttention):
        nn.init.normal_(module.span_pred.linear.weight, std=3.0)
        nn.init.zeros_(module.span_pred.linear.bias)
        if module.attn_local.sharpness is not None:
            nn.init.normal_(module.attn_local.sharpness)
    return module


def noise(batch: int, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, steps, 8, dtype=dtype)


def turned(steps: int, start: int = 0) -> tuple[Tensor, Tensor]:
    return rotary(torch.arange(start, start + steps), 4, BASE)


def gradient(out: Tensor, x: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(out.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if result is None else result


# What fails in the sketch


def test_span_predictor_gets_a_real_gradient() -> None:
    module, x = built(HybridAttention, dtype=torch.float64), noise(2, 15, torch.float64)
    weight = module.span_pred.linear.weight
    module(x).out.square().sum().backward()
    assert weight.grad.abs().min() > 0
    step = 1e-6
    for place in ((0, 3), (1, 5)):
        losses = []
        for change in (step, -2 * step):
            with torch.no_grad():
                weight[place] += change
                losses.append(module(x).out.square().sum().item())
        with torch.no_grad():
            weight[place] += step
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(weight.grad[place].item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("max_dist", [None, 3])
def test_result_does_not_depend_on_batch_mates_padding_or_order(max_dist: int | None) -> None:
    module, lengths = built(HybridAttention, max_dist=max_dist), [30, 1, 17, 5, 9]
    utterances = [3 * noise(1, n) for n in lengths]
    alone = [module(x, rotation=turned(x.shape[1])) for x in utterances]
    assert torch.cat([result.span_scale for result in alone]).std() > 0.1
    for order, width in (([0, 1, 2, 3, 4], 30), ([4, 2, 0, 3, 1], 51), ([3, 1], 5)):
        batch = 100 * noise(len(order), width)
        mask = torch.zeros(len(order), width, dtype=torch.bool)
        for row, which in enumerate(order):
            batch[row, : lengths[which]] = utterances[which][0]
            mask[row, : lengths[which]] = True
        together = module(batch, mask=mask, rotation=turned(width))
        for row, which in enumerate(order):
            out = together.out[row, : lengths[which]]
            torch.testing.assert_close(out, alone[which].out[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.span_scale[row], alone[which].span_scale[0], rtol=0, atol=1e-5)


def test_one_span_for_each_utterance_and_head() -> None:
    spans = built(HybridAttention)(3 * noise(4, 12)).span_scale
    assert spans.shape == (4, 2) and len(spans.unique()) == 8
    assert ((spans > 0) & (spans < 1)).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, WINDOW - 1, WINDOW, WINDOW + 1, 13, 31])
@pytest.mark.parametrize("kind", [HybridAttention, AdaptiveSpanAttention])
def test_every_frame_is_a_query_and_any_length_works(kind: type[nn.Module], steps: int) -> None:
    module, x = built(kind, dtype=torch.float64), noise(1, steps, torch.float64).requires_grad_()
    spans = torch.full((1, 2), 0.5, dtype=torch.float64)
    out = module(x).out if kind is HybridAttention else module(x, spans)
    assert out.shape == x.shape
    for i in range(steps):
        assert gradient(out[0, i], x)[0, i].any(), f"frame {i} of {steps} asks for nothing"


def test_local_scores_are_projected_and_divided_by_root_of_head_width() -> None:
    local = built(AdaptiveSpanAttention, max_span=50, ramp=1, temperature="formula", temp_scale=0.0)
    x = noise(1, 9)
    out = local(x, torch.ones(1, 2))
    for h in range(2):
        rows = slice(4 * h, 4 * h + 4)
        q = x[0] @ local.query.weight[rows].T + local.query.bias[rows]
        k = x[0] @ local.key.weight[rows].T
        v = x[0] @ local.value.weight[rows].T + local.value.bias[rows]
        torch.testing.assert_close(out[0, :, rows], (q @ k.T / 2.0).softmax(dim=-1) @ v)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": "learned"},
        {"temperature": "formula", "sharpen_longer": True, "max_dist": 2},
        {"temperature": "formula", "sharpen_longer": False, "win_size": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_whole_hybrid_equals_the_slow_twin(changes: dict, causal: bool, rotated: bool) -> None:
    module = built(HybridAttention, causal, torch.float64, **changes)
    x, xa = noise(2, 17, torch.float64).requires_grad_(), noise(2, 1, torch.float64) if causal else None
    mask = torch.arange(17) < torch.tensor([[17], [11]])
    angles = torch.arange(17)[:, None] * BASE ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    weights = noise(2, 17, torch.float64)
    gradients = []
    for twin in (False, True):
        if twin:
            out, span_scale = slow.hybrid(module, x, xa, mask, BASE if rotated else None)
        else:
            fast = module(x, xa=xa, mask=mask, rotation=(angles.cos(), angles.sin()) if rotated else None)
            out, span_scale = fast.out, fast.span_scale
        gradients.append((out, span_scale, *torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [GlobalAttention, HybridAttention])
def test_padded_frames_are_invisible(kind: type[nn.Module]) -> None:
    module, x = built(kind, dtype=torch.float64), noise(1, 20, torch.float64).requires_grad_()
    mask = torch.arange(20)[None] < 13
    out = module(x, mask=mask).out
    assert not gradient(out[:, :13], x)[0, 13:].any()
    assert gradient(module(x).out[:, :13], x)[0, 13:].any(dim=-1).all()


@pytest.mark.parametrize("max_dist", [None, 3])
@pytest.mark.parametrize("kind", [GlobalAttention, HybridAttention])
def test_causal_form_never_looks_ahead(kind: type[nn.Module], max_dist: int | None) -> None:
    module, x = built(kind, causal=True, dtype=torch.float64, max_dist=max_dist), noise(1, 23, torch.float64)
    x.requires_grad_()
    out = module(x, xa=noise(1, 1, torch.float64)).out
    furthest = 23 if max_dist is None else max(max_dist, WINDOW) if kind is HybridAttention else max_dist
    for i in range(23):
        seen = gradient(out[0, i], x)[0].any(dim=-1).nonzero().flatten().tolist()
        assert seen and max(seen) == i and min(seen) >= i - furthest


@pytest.mark.parametrize("kind", [GlobalAttention, HybridAttention])
def test_padding_before_the_text_is_invisible(kind: type[nn.Module]) -> None:
    module, x, xa = built(kind, causal=True), noise(2, 10), noise(2, 1)
    mask = torch.arange(10) >= torch.tensor([[0], [4]])
    whole = module(x, xa=xa, mask=mask).out
    alone = module(x[1:, 4:], xa=xa[1:]).out
    torch.testing.assert_close(whole[1:, 4:], alone, rtol=0, atol=1e-5)


def test_in_a_decoder_the_span_comes_from_the_audio() -> None:
    module, xa = built(HybridAttention, causal=True), noise(1, 1).requires_grad_()
    one, other = module(noise(1, 5), xa=xa), module(noise(1, 9), xa=xa)
    assert torch.equal(one.span_scale, other.span_scale)
    assert gradient(one.out, xa).any()
    assert not torch.equal(module(noise(1, 5), xa=noise(1, 1)).span_scale, one.span_scale)
    with pytest.raises(ValueError, match="xa"):
        module(noise(1, 5))


def test_short_spans_cost_less_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = built(HybridAttention, max_span=40), noise(2, 150)
    nn.init.zeros_(module.span_pred.linear.weight)
    nn.init.constant_(module.span_pred.linear.bias, -4.0)  # radius 2.7 of 40
    monkeypatch.setattr(local_attention, "FEW_THREADS", torch.get_num_threads())
    monkeypatch.setattr(local_attention, "FEW_SCORES", 0)  # else all heads go together
    widths: list[int] = []
    kernel = local_attention._weights
    monkeypatch.setattr(
        local_attention, "_weights", lambda tile, *parts: (widths.append(tile.width), kernel(tile, *parts))[1]
    )
    with torch.no_grad():
        shrunk = module(x).out
        assert set(widths) == {2 + 4 + 2}  # the keys of a block
        widths.clear()
        monkeypatch.setattr(local_attention.Window, "reaches", lambda window: [[39, 39], [39, 5]])
        torch.testing.assert_close(module(x).out, shrunk, rtol=0, atol=1e-6)
        assert set(widths) == {39 + 4 + 39, 5 + 4 + 5}  # each head its own


# What the parts promise


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_dist", [0, 1, 3, 40, 500])
@pytest.mark.parametrize("steps", [1, 5, 41, 97])
def test_max_dist_equals_dense_attention_with_a_band_mask(max_dist: int, steps: int, causal: bool) -> None:
    module = built(GlobalAttention, causal, torch.float64, max_dist=max_dist)
    everywhere = built(GlobalAttention, causal, torch.float64)
    everywhere.load_state_dict(module.state_dict())
    x = noise(2, steps, torch.float64)
    padding = torch.arange(steps) < torch.tensor([[steps], [(steps + 1) // 2]])
    ahead = torch.arange(steps) - torch.arange(steps)[:, None]
    band = (ahead.abs() <= max_dist) & ((ahead <= 0) | (not causal)) & padding[:, None, None, :]
    branch = module.attn_global
    q, k, v = slow.branch(branch, module.ln_global(x), None)
    shares = (q @ k.mT / 2).masked_fill(~band, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    expected = branch.out(slow.merged(shares @ v))
    torch.testing.assert_close(module(x, mask=padding).out, expected, rtol=0, atol=1e-12)
    if max_dist >= steps:
        torch.testing.assert_close(everywhere(x, mask=padding).out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_dist", [None, 2])
@pytest.mark.parametrize("kind", [GlobalAttention, HybridAttention])
def test_rows_with_nothing_to_see_are_never_nan(kind: type[nn.Module], max_dist: int, causal: bool, grad: bool) -> None:
    module, x = built(kind, causal, max_dist=max_dist), noise(3, 12).requires_grad_(grad)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, :7], mask[2] = False, False
    with torch.set_grad_enabled(grad):
        blind = module.attn_global(module.ln_global(x), mask)[2]
        out = module(x, xa=noise(3, 1) if causal else None, mask=mask).out
    torch.testing.assert_close(blind, module.attn_global.out.bias.expand(12, 8))  # it saw zeros
    assert out.isfinite().all()
    if grad:
        out.square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("max_dist", [None, 2])
@pytest.mark.parametrize("kind", [GlobalAttention, HybridAttention])
def test_no_steps_are_refused(kind: type[nn.Module], max_dist: int | None, causal: bool) -> None:
    with pytest.raises(ValueError, match="0 query steps"):
        built(kind, causal, max_dist=max_dist)(noise(2, 0), xa=noise(2, 1))


@pytest.mark.parametrize("span", [0.0, 0.25, 1.0])
def test_temperature_follows_its_formula(span: float) -> None:
    spans = torch.full((3, 2), span)
    longer = built(AdaptiveSpanAttention, temperature="formula", sharpen_longer=True, temp_scale=0.8)
    shorter = built(AdaptiveSpanAttention, temperature="formula", sharpen_longer=False, temp_scale=0.8)
    torch.testing.assert_close(longer.temperature(spans), torch.full((3, 2), 1 + 0.8 * (1 - span)))
    torch.testing.assert_close(shorter.temperature(spans), torch.full((3, 2), 0.5 + 0.8 * span))
    assert longer.sharpness is None and shorter.sharpness is None


@pytest.mark.parametrize("sharpen_longer", [True, False])
def test_learned_temperature_starts_at_the_formula_and_stays_bounded_per_head(sharpen_longer: bool) -> None:
    spans = torch.rand(3, 2)
    formula = built(AdaptiveSpanAttention, temperature="formula", sharpen_longer=sharpen_longer).temperature(spans)
    learned = built(AdaptiveSpanAttention, temperature="learned", sharpen_longer=sharpen_longer)
    assert torch.equal(learned.temperature(spans), formula)
    learned.temperature(spans)[:, 0].sum().backward()
    assert learned.sharpness.grad[0] > 0 and learned.sharpness.grad[1] == 0
    with torch.no_grad():
        learned.sharpness.copy_(torch.tensor([-1e6, 1e6]))
    torch.testing.assert_close(learned.temperature(spans) / formula, torch.tensor([0.25, 4.0]).expand(3, 2))


def test_radius_runs_from_the_ramp_to_the_largest_span() -> None:
    local = built(AdaptiveSpanAttention, ramp=3, max_span=11)
    assert local.radius(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[3.0, 7.0, 11.0]]


def test_span_predictor_takes_the_mean_of_what_is_no_padding() -> None:
    predictor, x = SpanPredictor(config()), noise(2, 10)
    mask = torch.arange(10) < torch.tensor([[10], [4]])
    expected = torch.sigmoid(predictor.linear(torch.stack((x[0].mean(dim=0), x[1, :4].mean(dim=0)))))
    torch.testing.assert_close(predictor(x, mask), expected)
    torch.testing.assert_close(predictor(x)[0], expected[0])


def test_spans_start_at_the_initial_span() -> None:
    predictor = SpanPredictor(config(initial_span=0.3))
    torch.testing.assert_close(predictor(torch.zeros(3, 5, 8)), torch.full((3, 2), 0.3))


def test_projection_of_zero_and_identity_computes_the_global_branch() -> None:
    hybrid, plain = built(HybridAttention), built(GlobalAttention)
    missing = hybrid.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        hybrid.projection.weight.copy_(torch.cat((torch.zeros(8, 8), torch.eye(8)), dim=1))
        hybrid.projection.bias.zero_()
    x, mask = noise(2, 30), torch.arange(30) < torch.tensor([[30], [12]])
    assert torch.equal(hybrid(x, mask=mask, rotation=turned(30)).out, plain(x, mask=mask, rotation=turned(30)).out)


def test_rotation_turns_pairs_by_their_step_and_scores_see_only_distances() -> None:
    x = torch.randn(1, 2, 7, 4)
    torch.testing.assert_close(rotate(x, turned(7)), slow.turn(x, BASE))
    assert rotate(x, None) is x
    q, k = torch.randn(2, 1, 1, 1, 4).expand(2, 1, 1, 9, 4).unbind()
    scores = (rotate(q, turned(9)) @ rotate(k, turned(9, start=40)).mT)[0, 0]
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0].std() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hybrid_stays_near_full_precision(dtype: torch.dtype) -> None:
    module, x = built(HybridAttention), noise(2, 40)
    full = module(x, rotation=turned(40)).out
    half = module.to(dtype)(x.to(dtype), rotation=turned(40)).out
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.05)
