"""The window equals its slow twin, forward and gradient, whatever path, block or precision computes it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from focusasr.config import ModelConfig
from focusasr.model import local_attention
from focusasr.model.attention import AdaptiveSpanAttention, HybridAttention
from focusasr.model.local_attention import Window, _blocked, _dense, _stretched, windowed_attention
from focusasr.model.transformer import Model
from tests.helpers import reference_attention as slow

PATHS = ("chosen", "blocked", "stretched", "dense")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


class Case(NamedTuple):
    """One attention: sizes, window, what is masked, and the seed of its numbers."""

    steps: int
    past: int  # keys before the first query, causal only
    ramp: int
    extra: int  # max_span - ramp
    block: int
    causal: bool
    padding: str
    dtype: torch.dtype
    seed: int


CASES = st.builds(
    lambda steps, past, causal, **rest: Case(steps, past if causal else 0, causal=causal, **rest),
    steps=st.integers(1, 19),
    past=st.sampled_from([0, 0, 1, 6]),
    ramp=st.integers(1, 6),
    extra=st.integers(0, 9),
    block=st.integers(1, 8),
    causal=st.booleans(),
    padding=st.sampled_from(["none", "end", "anywhere", "everything"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 10_000),
)


def mask_of(case: Case, batch: int) -> Tensor | None:
    """Return what is visible, (B, S): the last utterance is the one with padding."""
    keys = case.steps + case.past
    mask = torch.ones(batch, keys, dtype=torch.bool)
    if case.padding == "end":
        mask[-1, (keys + 1) // 2 :] = False
    elif case.padding == "anywhere":
        mask = torch.rand(batch, keys) < 0.6
    elif case.padding == "everything":
        mask[-1] = False
    return None if case.padding == "none" else mask


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def doubled(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_()


def off_the_edge(radius: Tensor) -> Tensor:
    """Move float32 radii a little off whole steps.

    The gradient of log m is 1/m: where padding leaves a query nothing but a key with m = 1e-6, float32's rounding
    of the softmax comes back a million times larger. Such queries are padding themselves, so nobody reads them.
    """
    fraction = radius.frac()
    return (
        torch.where((fraction > 0) & (fraction < 0.1), radius + 0.1, radius)
        if radius.dtype != torch.float64
        else radius
    )


def assert_close(fast: Tensor, twin: Tensor, dtype: torch.dtype, what: str) -> None:
    """Compare to the precision's tolerance, relative to the largest value where that is above 1."""
    error = (fast.double() - twin).abs().max().item()
    assert error <= TOLERANCE[dtype] * max(1.0, twin.abs().max().item()), f"{what} differs by {error}"


def by_path(
    path: str, q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None, temperature: Tensor | None = None
) -> Tensor:
    if path == "chosen" or (path != "dense" and q.shape[2] != k.shape[2]):  # blocks are for whole passes
        return windowed_attention(q, k, v, window, mask, temperature)
    temperature = torch.ones(1, 1) if temperature is None else temperature
    if path == "stretched":
        return _stretched(q, k, v, window, mask, temperature)
    q = q / temperature[..., None, None].to(q.dtype)
    if path == "dense":
        return _dense(q, k, v, window, mask)
    reach = min(window.reach, k.shape[2] - 1)
    return _blocked(q, k, v, window, mask, (reach, 0 if window.causal else reach))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=CASES)
def test_equals_the_slow_twin(path: str, case: Case) -> None:
    torch.manual_seed(case.seed)
    batch, heads, width, keys = 2, 2, 4, case.steps + case.past
    fast = [drawn(batch, heads, n, width, dtype=case.dtype) for n in (case.steps, keys, keys)]
    fast.append(off_the_edge(case.ramp + case.extra * torch.rand(batch, heads, dtype=case.dtype)).requires_grad_())
    fast.append((0.4 + 2 * torch.rand(batch, heads, dtype=case.dtype)).requires_grad_())
    mask, weights = mask_of(case, batch), torch.randn(batch, heads, case.steps, width, dtype=torch.float64)
    q, k, v, radius, temperature = fast
    window = Window(radius, case.ramp, case.causal, case.block)
    few = case.seed % 2 * local_attention.FEW_SCORES  # all heads together, or one by one in one stretch or many
    with mock.patch.multiple(local_attention, FEW_SCORES=few, STRETCH_STEPS=1 + case.seed % 12):
        out = by_path(path, q, k, v, window, mask, temperature)
    twins = [doubled(x) for x in fast]
    expected = slow.windowed((twins[0], twins[1], twins[2]), twins[3], case.ramp, twins[4], case.causal, mask)
    assert_close(out, expected, case.dtype, "result")
    (out * weights.to(case.dtype)).sum().backward()
    if expected.requires_grad:
        (expected * weights).sum().backward()
    for name, x, twin in zip(("q", "k", "v", "radius", "temperature"), fast, twins, strict=True):
        wanted = torch.zeros_like(twin) if twin.grad is None else twin.grad
        assert_close(x.grad, wanted, case.dtype, f"gradient of {name}")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    case=CASES,
    temperature=st.sampled_from(["formula", "learned"]),
    sharpen_longer=st.booleans(),
    temp_scale=st.floats(0, 2),
)
def test_local_branch_equals_the_slow_twin(
    case: Case, temperature: str, sharpen_longer: bool, temp_scale: float
) -> None:
    torch.manual_seed(case.seed)
    config = ModelConfig(
        width=8, heads=2, max_span=case.ramp + case.extra, ramp=case.ramp, win_size=case.block,
        temperature=temperature, sharpen_longer=sharpen_longer, temp_scale=temp_scale,
    )  # fmt: skip
    local = AdaptiveSpanAttention(config, case.causal).to(case.dtype)
    twin = AdaptiveSpanAttention(config, case.causal).double()
    if local.sharpness is not None:
        torch.nn.init.normal_(local.sharpness)
    twin.load_state_dict(local.state_dict())
    case = case._replace(past=0)
    x = drawn(2, case.steps, 8, dtype=case.dtype)
    radius = off_the_edge(local.radius(torch.rand(2, 2, dtype=case.dtype)))
    span_scale = ((radius - case.ramp) / max(case.extra, 1)).requires_grad_()
    mask, weights = mask_of(case, 2), torch.randn(2, case.steps, 8, dtype=torch.float64)
    out = local(x, span_scale, mask)
    slow_x, slow_span = doubled(x), doubled(span_scale)
    expected = slow.focused(twin, slow_x, slow_span, case.causal, mask)
    assert_close(out, expected, case.dtype, "result")
    (out * weights.to(case.dtype)).sum().backward()
    if expected.requires_grad:
        (expected * weights).sum().backward()
    pairs = [("x", x, slow_x), ("span_scale", span_scale, slow_span)]
    pairs += [(name, p, twin.get_parameter(name)) for name, p in local.named_parameters()]
    for name, ours, theirs in pairs:
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert_close(ours.grad, wanted, case.dtype, f"gradient of {name}")


def qkv(steps: int, dtype: torch.dtype = torch.float32, batch: int = 2, width: int = 4) -> list[Tensor]:
    return [torch.randn(batch, 2, steps, width, dtype=dtype) for _ in range(3)]


def radii(*values: float, batch: int = 2) -> Tensor:
    return torch.tensor(values).expand(batch, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_reach_is_what_the_gradient_says(causal: bool, path: str) -> None:
    q, k, v = qkv(23, torch.float64, batch=1)
    v.requires_grad_()
    window = Window(radii(3.5, 6.0, batch=1), 2, causal, 4)  # sees δ < 3.5 and δ < 6
    out = by_path(path, q, k, v, window, None)
    for head, furthest in enumerate((3, 5)):
        for i in range(23):
            (gradient,) = torch.autograd.grad(out[0, head, i].sum(), v, retain_graph=True)
            seen = set(gradient[0, head].abs().sum(dim=-1).nonzero().flatten().tolist())
            assert seen == {j for j in range(23) if abs(i - j) <= furthest and not (causal and j > i)}
            assert not gradient[0, 1 - head].any()


@pytest.mark.parametrize("causal", [False, True])
def test_window_as_wide_as_the_utterance_is_plain_attention(causal: bool) -> None:
    q, k, v = qkv(37, torch.float64)
    window = Window(radii(36.0 + 5, 90.0), 5, causal, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    for path in PATHS:
        torch.testing.assert_close(by_path(path, q, k, v, window, None), expected, rtol=0, atol=1e-12)


def test_win_size_never_changes_a_result() -> None:
    q, k, v = qkv(61)
    mask = torch.arange(61) < torch.tensor([[61], [40]])
    for causal in (False, True):
        results = [
            windowed_attention(q, k, v, Window(radii(2.25, 9.75), 3, causal, block), mask)
            for block in (1, 2, 3, 7, 16, 60, 61, 62, 500)
        ]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_computed_reach_shrinks_to_the_largest_radius_with_the_same_result(causal: bool) -> None:
    q, k, v = qkv(200)
    window = Window(radii(2.5, 5.25), 2, causal, 8)
    assert window.reach == 5
    wide = _blocked(q, k, v, window, None, (64, 0 if causal else 64))
    torch.testing.assert_close(windowed_attention(q, k, v, window, None), wide, rtol=0, atol=1e-6)
    near = largest(lambda: windowed_attention(q, k, v, window, None))
    far = largest(lambda: windowed_attention(q, k, v, window._replace(radius=radii(2.5, 64.0)), None))
    assert near < 0.6 * far, f"{near} numbers for a reach of 5, {far} for a reach of 63"


@pytest.mark.parametrize(("radius", "reach"), [(1.0, 0), (1.01, 1), (2.0, 1), (7.5, 7), (8.0, 7)])
def test_reach_is_the_last_distance_with_weight(radius: float, reach: int) -> None:
    window = Window(torch.tensor([[0.5, radius]]), 1, False, 4)
    assert window.reach == reach
    assert slow.soft_weight(torch.tensor(radius), reach, 1) > 0
    assert slow.soft_weight(torch.tensor(radius), reach + 1, 1) == 0


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("causal", [False, True])
def test_query_with_nothing_to_see_gives_zeros_never_nan(grad: bool, path: str, causal: bool) -> None:
    inputs = [x.requires_grad_(grad) for x in qkv(20)]
    radius = radii(2.5, 3.5).clone().requires_grad_(grad)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 6:14], mask[1] = False, False
    out = by_path(path, *inputs, Window(radius, 2, causal, 4), mask)
    assert not out[1].any() and not out[0, :, 9 if causal else 10].any()
    assert out[0, :, :6].abs().amin() > 0 and out.isfinite().all()
    if grad:
        out.square().sum().backward()
        assert all(x.grad.isfinite().all() for x in (*inputs, radius))
        assert not any(x.grad[1].any() for x in (*inputs, radius))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_half_precision_stays_finite_on_scores_of_a_hundred(dtype: torch.dtype, grad: bool) -> None:
    signs = [torch.randint(0, 2, (2, 2, 50, 4)).to(dtype) * 2 - 1 for _ in range(2)]
    q, k = (sign * 50**0.5 for sign in signs)  # 4 · 50 / √4 = 100
    assert math.isclose((q @ k.mT / 2).abs().max().item(), 100, rel_tol=0.02)
    inputs = [x.requires_grad_(grad) for x in (q, k, torch.randn(2, 2, 50, 4).to(dtype))]
    radius = radii(2.001, 7.5).clone().requires_grad_(grad)
    for path in ("chosen", "dense"):
        out = by_path(path, *inputs, Window(radius, 2, False, 8), torch.arange(50) < torch.tensor([[50], [9]]))
        assert out.dtype == dtype and out.isfinite().all()
        if grad:
            out.float().square().sum().backward()
            assert all(x.grad.isfinite().all() for x in (*inputs, radius))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="0 query steps"):
        windowed_attention(*qkv(0), Window(radii(2.0, 2.0), 1, False, 4), None)


class Largest(TorchDispatchMode):
    """Records the most numbers that any one tensor held, views by what they show."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return out


def largest(work) -> int:
    with Largest() as recorded:
        work()
    return recorded.numbers


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length(grad: bool, causal: bool) -> None:
    def work(steps: int) -> None:
        q, k, v = (x.requires_grad_(grad) for x in qkv(steps, batch=1))
        radius = radii(3.5, 20.0, batch=1).clone().requires_grad_(grad)
        out = windowed_attention(q, k, v, Window(radius, 4, causal, 16), torch.ones(1, steps, dtype=torch.bool))
        if grad:
            out.sum().backward()

    sizes = {steps: largest(lambda steps=steps: work(steps)) for steps in (1000, 2000, 4000)}
    assert sizes[2000] < 2000 * 2000 / 10
    assert sizes[4000] <= 2.02 * sizes[2000] <= 2.02**2 * sizes[1000]


def test_hybrid_attention_with_max_dist_is_linear_too() -> None:
    module = HybridAttention(ModelConfig(width=8, heads=2, max_span=8, ramp=2, win_size=8, max_dist=8))
    sizes = {steps: largest(lambda steps=steps: module(torch.randn(1, steps, 8))) for steps in (1000, 2000)}
    assert sizes[2000] < 2000 * 2000 / 10 and sizes[2000] <= 2.02 * sizes[1000]


def test_with_max_dist_the_whole_encoder_is_linear() -> None:
    config = ModelConfig(
        vocabulary=5, mel_bands=4, width=8, heads=2, encoder_layers=2, decoder_layers=1, max_span=8, ramp=2, win_size=8
    )

    def encode(steps: int, max_dist: int | None) -> int:
        model = Model(dataclasses.replace(config, max_dist=max_dist)).eval()
        mel = torch.randn(1, 4 * steps, 4)
        with torch.no_grad():
            return largest(lambda: model.encode(mel, torch.tensor([4 * steps])))

    sizes = {steps: encode(steps, 8) for steps in (1000, 2000, 4000)}
    assert sizes[4000] < 4000 * 4000 / 50
    assert sizes[4000] <= 2.02 * sizes[2000] <= 2.02**2 * sizes[1000]


def test_blocks_longer_than_the_reach_are_for_the_backward_pass_only(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(100, torch.bfloat16)
    blocks = []
    monkeypatch.setattr(
        "focusasr.model.local_attention._blocked", lambda *parts: (blocks.append(parts[3].block), _blocked(*parts))[1]
    )
    results = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            results.append(windowed_attention(q, k, v, Window(radii(5.5, 16.0), 2, False, 4), None))
    assert blocks == [4, 15]
    torch.testing.assert_close(*results, rtol=0, atol=0.02)
