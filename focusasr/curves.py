"""Pictures of training: losses, error rates, spans and temperatures against steps; losses against learning rates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from focusasr.files import written_aside

Series = dict[str, dict[int, float]]  # name → step → value


def read_rows(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics.jsonl; a line that a killed run left half written is passed over."""
    if not metrics.exists():
        return
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw what metrics.jsonl holds: losses, dev WER, and per hybrid layer the mean span and temperature."""
    pyplot = _pyplot()
    panels: list[Series] = [{}, {}, {}, {}]
    for row in read_rows(metrics):
        step, kind = row.pop("step"), row.pop("kind")
        for name, value in row.items():
            place = _panel(kind, name)
            if place is not None and value is not None:
                panels[place].setdefault(name.removesuffix(" span_ms").removesuffix(" temperature"), {})[step] = value
    if len(panels[1]) == 2:  # one dev set is its own mean
        del panels[1]["wer"]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True)
    titles = ("training loss", "dev WER, %", "mean span, ± ms", "mean temperature")
    for place, (series, title, plot) in enumerate(zip(panels, titles, axes.flat, strict=True)):
        scale = 100 if place == 1 else 1
        for name, points in series.items():
            values = [scale * value for value in points.values()]
            plot.plot(list(points), values, marker="." if place else None, label=name.replace("$", r"\$"))
        plot.set(ylabel=title)
        plot.grid(alpha=0.3)
        if series:
            plot.legend(fontsize=8)
    axes[0, 1].set(ylim=(0, 100))
    for plot in axes[1]:
        plot.set(xlabel="optimizer step")
    _save(figure, picture)


def _panel(kind: str, name: str) -> int | None:
    """Return which of the four pictures a figure belongs to."""
    if kind == "train":
        return 0 if name in ("total", "ctc", "attention") else None
    if kind == "dev":
        return 1 if name.endswith("wer") else None
    return 2 if name.endswith("span_ms") else 3


def draw_rates(rates: Sequence[float], losses: Sequence[float], suggested: float, picture: Path) -> None:
    """Draw smoothed losses against learning rates, and the suggested one."""
    pyplot = _pyplot()
    figure, plot = pyplot.subplots(figsize=(7, 4))
    plot.plot(rates, losses)
    plot.axvline(suggested, color="tab:red", linestyle="--", label=f"suggested: {suggested:.1e}")
    plot.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    plot.grid(alpha=0.3, which="both")
    plot.legend()
    _save(figure, picture)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, picture: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    with written_aside(picture) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)
