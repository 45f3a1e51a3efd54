"""Time and memory of the local branch, a loop over windows and global attention.

    scripts/benchmarks/attention.py --picture scripts/benchmarks/attention.png

All contestants get the same projected queries, keys and values, one utterance of T steps:

- loop: a naive Python loop over windows of 32 queries, each with the keys in its span, the same soft mask and
  temperature as ours; its result is checked against ours before anything is timed;
- ours: `windowed_attention` with a soft span and a temperature for each head;
- ours, short: the same with a quarter of the radii, like a model with shorter spans;
- global: `scaled_dot_product_attention` over everything.

Rounds are interleaved and medians compared, so that other load on the machine affects all of them. Peak memory is that
of a separate process beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.config import ModelConfig
from focusasr.model.local_attention import Window, windowed_attention
from focusasr.runtime.devices import choose_device
from focusasr.runtime.files import written_aside

HEADS, HEAD_WIDTH, MAX_SPAN, LOOP_WINDOW = 6, 64, 64, 32
LENGTHS = (500, 1500, 3000, 6000, 12_000)
MODES = ("forward", "forward + backward")
LOOP_BACKWARD_STEPS = 3000  # beyond them the loop's backward pass, quadratic by its slices, takes minutes
MEBIBYTE = 2**20


class Inputs(NamedTuple):
    """Queries, keys, values (1, H, T, E), radii and temperatures (1, H)."""

    q: Tensor
    k: Tensor
    v: Tensor
    radius: Tensor
    temperature: Tensor


def inputs(steps: int, grad: bool, device: torch.device) -> Inputs:
    """Sample one utterance's inputs in the layout of the model's projections; the widest span is ±63 steps."""
    draw = torch.Generator().manual_seed(0)
    qkv = (torch.randn(1, steps, HEADS, HEAD_WIDTH, generator=draw).to(device).transpose(1, 2) for _ in range(3))
    radius = torch.linspace(MAX_SPAN / 2, MAX_SPAN, HEADS, device=device)[None]
    temperature = torch.linspace(0.7, 1.5, HEADS, device=device)[None]
    return Inputs(*(x.requires_grad_(grad) for x in (*qkv, radius, temperature)))


def ours(given: Inputs, share: float = 1.0) -> Tensor:
    """Return the local branch's result (1, H, T, E), the radii multiplied by `share`."""
    config = ModelConfig()
    window = Window(share * given.radius, config.ramp, False, config.win_size)
    return windowed_attention(given.q, given.k, given.v, window, None, given.temperature)


def loop(given: Inputs) -> Tensor:
    """Return the result of `ours`, computed window by window."""
    q, k, v, radius, temperature = given
    steps, outs = q.shape[2], []
    for start in range(0, steps, LOOP_WINDOW):
        end = min(start + LOOP_WINDOW, steps)
        first, last = max(0, start - MAX_SPAN + 1), min(steps, end + MAX_SPAN - 1)
        at, near = torch.arange(start, end, device=q.device), torch.arange(first, last, device=q.device)
        scores = q[:, :, start:end] @ k[:, :, first:last].mT / HEAD_WIDTH**0.5 / temperature[..., None, None]
        scores = scores + Window(radius, ModelConfig().ramp, False, LOOP_WINDOW).bias(at, near)
        outs.append(scores.softmax(dim=-1) @ v[:, :, first:last])
    return torch.cat(outs, dim=2)


CONTESTANTS: dict[str, Callable[[Inputs], Tensor]] = {
    "loop": loop,
    "ours": ours,
    "ours, short": lambda given: ours(given, 0.25),
    "global": lambda given: F.scaled_dot_product_attention(given.q, given.k, given.v),
}


def enters(name: str, steps: int, grad: bool) -> bool:
    """Return whether a contestant is timed at this length."""
    return name != "loop" or not grad or steps <= LOOP_BACKWARD_STEPS


def attend(name: str, given: Inputs, grad: bool) -> None:
    """Run one contestant once, with or without its backward pass."""
    with torch.set_grad_enabled(grad):
        out = CONTESTANTS[name](given)
        if grad:
            out.sum().backward()
    if out.is_cuda:
        torch.cuda.synchronize()


def seconds(steps: int, grad: bool, device: torch.device, budget: float) -> dict[str, float]:
    """Return median seconds by contestant; rounds continue until the budget is spent, at least 2 and at most 25."""
    print(f"{MODES[grad]}, T = {steps}", file=sys.stderr, flush=True)
    given = inputs(steps, grad, device)
    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS if enters(name, steps, grad)}
    began = time.perf_counter()
    for round_ in range(26):
        for name in taken:
            start = time.perf_counter()
            attend(name, given, grad)
            taken[name].append(time.perf_counter() - start)
        if round_ >= 2 and time.perf_counter() - began > budget:
            break
    return {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first round warms up


def memory(name: str, steps: int, grad: bool, device: torch.device) -> float:
    """Return the peak memory in MiB beyond the inputs; on a CPU measured in a forked process."""
    if device.type == "cuda":
        given = inputs(steps, grad, device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        attend(name, given, grad)
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_measure_memory, name, steps, grad).result()


def _measure_memory(name: str, steps: int, grad: bool) -> float:
    attend(name, inputs(256, grad, torch.device("cpu")), grad)  # what libraries load once is not counted
    given = inputs(steps, grad, torch.device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attend(name, given, grad)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(device: torch.device, budget: float) -> dict[str, Any]:
    """Return medians and peaks by mode, length and contestant, after checking that loop and ours agree."""
    peaks = {
        mode: {
            T: {name: memory(name, T, bool(grad), device) for name in CONTESTANTS if enters(name, T, bool(grad))}
            for T in LENGTHS
        }
        for grad, mode in enumerate(MODES)
    }
    given = inputs(1000, False, device)
    torch.testing.assert_close(ours(given), loop(given), rtol=0, atol=1e-5)
    times = {mode: {T: seconds(T, bool(grad), device, budget) for T in LENGTHS} for grad, mode in enumerate(MODES)}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "load": round(os.getloadavg()[0], 1), "seconds": times, "mebibytes": peaks,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return the medians, their ratios, the growth per doubling and the peaks as a Markdown table."""
    rows = [
        "| pass | T | loop, ms | ours, ms | ours, short, ms | global, ms | loop / ours | global / ours "
        "| ours, MiB | global, MiB |",
        "|---|" + "---|" * 9,
    ]
    for mode in MODES:
        for T, took in found["seconds"][mode].items():
            held = found["mebibytes"][mode][T]
            cells = [f"{1000 * took[name]:.1f}" if name in took else "–" for name in CONTESTANTS]
            cells += [f"{took[other] / took['ours']:.1f}" if other in took else "–" for other in ("loop", "global")]
            cells += [f"{held[name]:.0f}" for name in ("ours", "global")]
            rows.append(f"| {mode} | {T} | " + " | ".join(cells) + " |")
    for mode in MODES:
        took = found["seconds"][mode]
        grown = ", ".join(f"{name} {(took[12_000][name] / took[3000][name]) ** 0.5:.2f}" for name in took[12_000])
        rows.append(f"\nTime per doubling of T from 3000 to 12,000, {mode}: {grown}.")
    rows.append(f"\nOn {found['device']}, load {found['load']}.")
    return "\n".join(rows)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw time and peak memory against the length, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="tight")
    axes = figure.subplots(1, 3)
    panels = [(f"time, {mode}", "ms", found["seconds"][mode], 1000.0) for mode in MODES]
    panels.append((f"peak memory, {MODES[1]}", "MiB", found["mebibytes"][MODES[1]], 1.0))
    for axis, (title, unit, values, scale) in zip(axes, panels, strict=True):
        for name, color in zip(CONTESTANTS, ("tab:gray", "tab:blue", "tab:cyan", "tab:red"), strict=True):
            points = [(T, scale * values[T][name]) for T in LENGTHS if name in values[T]]
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            axis.plot(xs, ys, "o-", color=color, label=name, markersize=4)
        axis.set(xscale="log", yscale="log", title=title, xlabel="T, encoder steps", ylabel=unit)
        axis.set_xticks(LENGTHS, [str(T) for T in LENGTHS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=90)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of rounds per length and pass")
    parser.add_argument("--picture", type=Path, default=Path("bench_attention.png"), help="file for the picture")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found = measure(choose_device(given.device)[0], given.budget)
    print(table(found))
    draw(found, given.picture)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
