"""The slow twin: focused attention as plain loops in float64, straight from its formulas, for tests to compare with.

Letters as in focusasr.model.attention. Everything is written for one query at a time and with the weight m as a factor
of exp(score), where the fast path adds log m to the score.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def soft_weight(radius: Tensor, distance: int, ramp: int) -> Tensor:
    """Return m(δ) = clip((r - δ) / ramp, 0, 1)."""
    weight = (radius - distance) / ramp
    return weight.new_ones(()) if weight > 1 else weight if weight > 0 else weight.new_zeros(())


def look(query: Tensor, keys: Tensor, values: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    """Return Σ_j m_j exp(q·k_j / (√E τ)) v_j / Σ_j m_j exp(q·k_j / (√E τ)) for one query."""
    scores = (keys @ query) / query.shape[0] ** 0.5 / temperature
    shares = weights * (scores - scores.max().detach()).exp()
    return (shares / shares.sum()) @ values


def windowed(
    qkv: tuple[Tensor, Tensor, Tensor],
    radius: Tensor,
    ramp: int,
    temperature: Tensor,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Attend from q (B, H, T, E) to k, v (B, H, S, E) inside radii (B, H), softened by temperatures (B, H)."""
    q, k, v = qkv
    batch, heads, steps, _ = q.shape
    everything = k.shape[2]
    outs = []
    for b in range(batch):
        for h in range(heads):
            weights = [soft_weight(radius[b, h], distance, ramp) for distance in range(everything)]
            for i in range(everything - steps, everything):
                seen = [
                    j
                    for j in range(everything)
                    if weights[abs(i - j)] > 0 and (mask is None or mask[b, j]) and not (causal and j > i)
                ]
                if not seen:
                    outs.append(torch.zeros_like(q[b, h, 0]))
                    continue
                chosen = torch.stack([weights[abs(i - j)] for j in seen])
                query = q[b, h, i - (everything - steps)]
                outs.append(look(query, k[b, h, seen], v[b, h, seen], chosen, temperature[b, h]))
    return torch.stack(outs).reshape(q.shape)


def radius_of(span_scale: Tensor, ramp: int, max_span: int) -> Tensor:
    """Return r = ramp + (max_span - ramp) · s."""
    return ramp + (max_span - ramp) * span_scale


def temperature_of(span_scale: Tensor, temp_scale: float, sharpen_longer: bool, learned: Tensor | None) -> Tensor:
    """Return τ by its formula; learned, it is multiplied by 4^tanh(a) for a number a of each head."""
    formula = 1 + temp_scale * (1 - span_scale) if sharpen_longer else 0.5 + temp_scale * span_scale
    return formula if learned is None else formula * 4 ** torch.tanh(learned)


def turn(x: Tensor, base: float) -> Tensor:
    """Turn each pair (c, c + E/2) of x (B, H, T, E) at step t by the angle t · base^(-2c / E)."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for t in range(x.shape[2]):
        for c in range(half):
            angle = torch.tensor(t * base ** (-2 * c / x.shape[-1]), dtype=x.dtype)
            one, other = x[:, :, t, c], x[:, :, t, c + half]
            out[:, :, t, c] = one * angle.cos() - other * angle.sin()
            out[:, :, t, c + half] = one * angle.sin() + other * angle.cos()
    return out


def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return (x - mean) / √(variance + ε), scaled and shifted."""
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def projected(x: Tensor, linear: nn.Linear, heads: int | None = None) -> Tensor:
    """Return W x + b; with `heads` as (B, H, T, E)."""
    out = x @ linear.weight.T
    if linear.bias is not None:
        out = out + linear.bias
    if heads is None:
        return out
    width = out.shape[-1] // heads
    return torch.stack([out[:, :, h * width : (h + 1) * width] for h in range(heads)], dim=1)


def merged(x: Tensor) -> Tensor:
    """Put the heads of x (B, H, T, E) side by side, (B, T, D)."""
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


def branch(attention: nn.Module, x: Tensor, base: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the branch's projected and turned queries and keys, and its values."""
    q, k, v = (projected(x, getattr(attention, name), attention.heads) for name in ("query", "key", "value"))
    return (q, k, v) if base is None else (turn(q, base), turn(k, base), v)


def focused(
    local: nn.Module, x: Tensor, span_scale: Tensor, causal: bool, mask: Tensor | None, base: float | None = None
) -> Tensor:
    """Return what AdaptiveSpanAttention makes of x (B, T, D)."""
    config = local.config
    radius = radius_of(span_scale, config.ramp, config.max_span)
    temperature = temperature_of(span_scale, config.temp_scale, config.sharpen_longer, local.sharpness)
    return merged(windowed(branch(local, x, base), radius, config.ramp, temperature, causal, mask))


def everywhere(attention: nn.Module, x: Tensor, causal: bool, mask: Tensor | None, base: float | None = None) -> Tensor:
    """Return what the global branch makes of x (B, T, D): every key up to max_dist, temperature 1."""
    qkv = branch(attention, x, base)
    furthest = x.shape[1] if attention.max_dist is None else attention.max_dist
    ones = x.new_ones(x.shape[0], attention.heads)
    mixed = windowed(qkv, ones * (furthest + 1), 1, ones, causal, mask)
    return projected(merged(mixed), attention.out)


def hybrid(
    module: nn.Module, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None, base: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return what HybridAttention makes of x (B, T, D), and the span of each utterance and head (B, H)."""
    globe = everywhere(module.attn_global, normalized(x, module.ln_global), module.causal, mask, base)
    means = []
    for b in range(x.shape[0]):
        heard = globe[b] if xa is None else xa[b]
        frames = [heard[t] for t in range(len(heard)) if xa is not None or mask is None or mask[b, t]]
        means.append(sum(frames) / len(frames))
    span_scale = torch.sigmoid(projected(torch.stack(means), module.span_pred.linear))
    local = focused(module.attn_local, normalized(x, module.ln_local), span_scale, module.causal, mask, base)
    return projected(torch.cat((local, globe), dim=-1), module.projection), span_scale
