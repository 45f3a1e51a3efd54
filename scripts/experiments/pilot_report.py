"""The pilot's results as a table, a figure and JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from focusasr.evaluation.bootstrap import resample_totals
from focusasr.runtime.files import written_aside

Result = dict[str, Any]
COLORS = ("black", "tab:gray", "tab:red", "tab:orange", "tab:blue", "tab:green")
SETS = {"an4": "AN4 test", "strings-test": "digit strings"}


def report(results: list[Result], times: dict[str, Any], output: Path) -> None:
    """Write results.json, table.md and pilot.png to `output`, and print the table."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result["name"], []).append(result)
    text = "\n".join([*main_table(by_name, times), "", *differences(by_name), "", *looks_table(by_name), ""])
    print(text)
    with written_aside(output / "table.md") as aside:
        aside.write_text(text, encoding="utf-8")
    with written_aside(output / "results.json") as aside:
        aside.write_text(json.dumps({"results": results, "times": times}) + "\n", encoding="utf-8")
    draw(by_name, times, output / "pilot.png")


def counts(runs: list[Result], test: str, unit: str = "words") -> np.ndarray:
    """Return errors and lengths of each utterance, (U, 2), added up over the seeds."""
    return np.sum([run["tests"][test][unit] for run in runs], axis=0)


def rate(runs: list[Result], test: str, unit: str = "words") -> float:
    """Return the error rate over all seeds, in percent."""
    errors, length = counts(runs, test, unit).sum(axis=0)
    return float(100 * errors / length)


def with_interval(runs: list[Result], test: str) -> str:
    """Return WER over all seeds with its 95 % bootstrap interval over utterances, and the range over seeds."""
    drawn = resample_totals(counts(runs, test), seed=0)
    low, high = np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    seeds = sorted(rate([run], test) for run in runs)
    return f"{rate(runs, test):.1f} ({low:.1f}–{high:.1f}), {seeds[0]:.1f}–{seeds[-1]:.1f}"


def final_loss(run: Result) -> float:
    """Return the mean training loss of the last tenth of the run."""
    losses = list(run["curves"]["loss"].values())
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


def times_slower(times: dict[str, Any], by_name: dict[str, list[Result]]) -> dict[str, dict[str, float]]:
    """Return the time of each task by model, as a multiple of the first model's time."""
    seconds = times["seconds"]
    first = seconds[next(iter(by_name))]
    return {name: {task: seconds[name][task] / first[task] for task in first} for name in by_name}


def main_table(by_name: dict[str, list[Result]], times: dict[str, Any]) -> list[str]:
    """Return rows of results and costs of each model."""
    rows = [
        "| model | weights | seeds | train loss | "
        + " | ".join(f"{shown}: WER % (95 %), seeds; CER %" for shown in SETS.values())
        + " | training step | encode | transcribe |",
        "|---" * (7 + len(SETS)) + "|",
    ]
    ratios = times_slower(times, by_name)
    for name, runs in by_name.items():
        cells = [f"{runs[0]['parameters'] / 1e6:.3f} M", str(len(runs))]
        cells.append(f"{statistics.mean(map(final_loss, runs)):.2f}")
        cells += [f"{with_interval(runs, test)}; {rate(runs, test, 'characters'):.1f}" for test in SETS]
        cells += [f"{ratios[name][task]:.2f} ×" for task in ("train", "encode", "transcribe")]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    steps, rounds = results_steps(by_name), times["rounds"]
    return [
        *rows,
        "",
        f"{steps} steps each. Times: one thread, medians of {rounds} interleaved rounds, load {times['load']:.1f}.",
    ]


def results_steps(by_name: dict[str, list[Result]]) -> int:
    """Return the steps of the runs, which are the same for all."""
    (steps,) = {run["steps"] for runs in by_name.values() for run in runs}
    return int(steps)


def differences(by_name: dict[str, list[Result]]) -> list[str]:
    """Return the paired difference of each model's WER from the second's (same heads as the hybrids), in points."""
    names = list(by_name)
    rows = [f"| WER minus that of '{names[1]}', points (95 %) | " + " | ".join(SETS.values()) + " |", "|---" * 3 + "|"]
    for name in [names[0], *names[2:]]:
        cells = [difference(by_name[names[1]], by_name[name], test) for test in SETS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def difference(base: list[Result], other: list[Result], test: str) -> str:
    """Return other's WER minus base's over the seeds that both have, with a paired bootstrap interval."""
    shared = {run["seed"] for run in base} & {run["seed"] for run in other}
    pair = [counts([run for run in runs if run["seed"] in shared], test) for runs in (base, other)]
    drawn = resample_totals(np.concatenate(pair, axis=1), seed=0)
    low, high = np.percentile(100 * (drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1]), [2.5, 97.5])
    middle = [100 * one[:, 0].sum() / one[:, 1].sum() for one in pair]
    return f"{middle[1] - middle[0]:+.1f} ({low:+.1f} to {high:+.1f})"


def looks_table(by_name: dict[str, list[Result]]) -> list[str]:
    """Return attention statistics over seeds, layers and heads."""
    rows = [
        "| model | span, ± ms: least, mean, most | temperature: least, mean, most "
        "| entropy relative to uniform: local, global | local / global in the projection |",
        "|---" * 5 + "|",
    ]
    for name, runs in by_name.items():
        looks = [run["looks"] for run in runs]
        globe = f"{np.mean([one['global_entropy'] for one in looks]):.2f}"
        if "span_ms" not in looks[0]:
            rows.append(f"| {name} | – | – | –, {globe} | – |")
            continue
        span, heat, local, part = (
            np.array([one[key] for one in looks])
            for key in ("span_ms", "temperature", "local_entropy", "local_over_global")
        )
        spans = f"{span.min():.0f}, {span.mean():.0f}, {span.max():.0f}"
        heats = f"{heat.min():.2f}, {heat.mean():.2f}, {heat.max():.2f}"
        rows.append(f"| {name} | {spans} | {heats} | {local.mean():.2f}, {globe} | {np.median(part):.1f} |")
    return rows


def draw(by_name: dict[str, list[Result]], times: dict[str, Any], path: Path) -> None:
    """Draw train loss and dev WER by step and WER by length: a line per model, its range over seeds as a shade."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.6))
    ratios = times_slower(times, by_name)
    lengths = sorted(int(test[7:-1]) for test in next(iter(by_name.values()))[0]["tests"] if test[:7] == "digits-")
    for (name, runs), color in zip(by_name.items(), COLORS, strict=True):
        label = f"{name}: {ratios[name]['train']:.2f} × training, {ratios[name]['encode']:.2f} × encoding"
        for axis, key, scale in ((axes[0], "loss", 1.0), (axes[1], "wer", 100.0)):
            curve(axis, [{int(s): scale * y for s, y in run["curves"][key].items()} for run in runs], color, label)
        points = [{n: rate([run], f"digits-{n}s") for n in lengths} for run in runs]
        curve(axes[2], points, color, label)
    axes[0].set(title="train", xlabel="optimizer step", ylabel="joint loss", ylim=(0, None))
    axes[1].set(title="eval", xlabel="optimizer step", ylabel="dev WER, % (AN4, digit strings)", ylim=(0, 105))
    axes[2].set(
        title="longer than in training", xlabel="speech in the string, s (training: up to 6)", ylabel="test WER, %"
    )
    axes[2].set_xticks(lengths)
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=85)
    pyplot.close(figure)


def curve(axis: Any, runs: list[dict[int, float]], color: str, label: str) -> None:
    """Draw the mean of several runs, each x → y, smoothed if there are many points, and their range."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[step] for step in steps] for run in runs])
    if len(steps) > 20:
        kernel = np.ones(5) / 5
        values = np.array([np.convolve(np.pad(row, 2, "edge"), kernel, "valid") for row in values])
    axis.plot(steps, values.mean(axis=0), color=color, label=label, linewidth=1.5)
    axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, linewidth=0)
