"""The metrics, curves and sample transcripts of a training run."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from focusasr.evaluation.bootstrap import Interval
from focusasr.evaluation.wer import Score, align
from focusasr.runtime.console import percent
from focusasr.runtime.devices import memory_gigabytes
from focusasr.runtime.files import ensure_writable, read_lines, write_errors, write_lines, written_aside
from focusasr.runtime.libraries import explain
from focusasr.training_config import TrainConfig

LINE_SECONDS = 600.0  # seconds between progress lines without a terminal
STEPS_PER_ROW = 20  # of metrics.jsonl
ROWS_OF_SHORT_RUNS = 20  # at least, so that curves have enough points
MOST_BROKEN_SHOWN = 10
SAMPLES = 8  # dev utterances with texts in samples.txt, the same in each evaluation
SAMPLES_SHOWN = 2

Series = dict[str, dict[int, float]]  # name → step → value


class TrainingLog:
    """Prints the progress of a run to stderr and writes its figures to the output folder."""

    def __init__(self, output: Path, config: TrainConfig, console: Console, main: bool = True) -> None:
        self.output = output
        self.console = console
        self.main = main  # one of several processes prints and writes
        with self._writing():
            output.mkdir(parents=True, exist_ok=True)
            self.board = _board(output / "tensorboard") if main else None
        self.broken_seen: set[str] = set()
        self.steps, self.told = config.steps, 0.0
        self.begun: tuple[int, float] | None = None  # the step before the clock started, and its time
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(None), TaskProgressColumn())
        left = TextColumn("time left")
        self.progress = Progress(*columns, left, TimeRemainingColumn(), console=console, expand=True)
        self.task = self.progress.add_task("training", total=config.steps)
        self.lines = Text()
        self.live: Live | None = None
        if main and console.is_terminal:
            picture = Group(self.progress, self.lines)
            self.live = Live(picture, console=console, transient=True, redirect_stdout=False, refresh_per_second=2)
        self.dev_wer = "no dev WER yet"

    def __enter__(self) -> TrainingLog:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        if self.board:
            with contextlib.suppress(OSError):
                self.board.close()

    def _writing(self) -> AbstractContextManager[None]:
        return write_errors(self.output, "give another --output-dir (the last checkpoint there is whole)")

    def go_on(self, step: int) -> None:
        """Remove the rows and samples after `step`, from which a run resumes: they will be repeated."""
        path = self.output / "metrics.jsonl"
        if self.main and path.exists():
            with self._writing():
                write_lines(path, [row for row in read_rows(path) if row["step"] <= step])
        path = self.output / "samples.txt"
        if self.main and path.exists():
            texts = re.split(r"^(?=step \d+, )", path.read_text(encoding="utf-8", errors="replace"), flags=re.M)
            numbers = [re.match(r"step (\d+), ", text) for text in texts]
            kept = [text for text, told in zip(texts, numbers, strict=True) if not told or int(told[1]) <= step]
            with self._writing(), written_aside(path) as aside:
                aside.write_text("".join(kept), encoding="utf-8")
        if self.board and step:
            self.board.close()
            self.board = _board(self.output / "tensorboard", step + 1)

    def say(self, line: str) -> None:
        """Print one line to stderr."""
        if self.main:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def broken(self, lines: Sequence[str]) -> None:
        """Print unreadable audio, each once, the first ten in full."""
        for line in lines:
            if line not in self.broken_seen:
                self.broken_seen.add(line)
                if len(self.broken_seen) <= MOST_BROKEN_SHOWN:
                    self.say(f"left out: {line}")

    def step(self, position: Any, figures: dict[str, float], rate: float) -> None:
        """Print one optimizer step."""
        if self.live:
            self.progress.update(self.task, completed=position.step)
            self.lines.plain = "\n".join(self.dashboard(position, figures, rate))
        else:
            self._say_pace(position.step)
        if position.step % min(STEPS_PER_ROW, max(1, self.steps // ROWS_OF_SHORT_RUNS)) == 0:
            row = {name: figures[name] for name in ("total", "ctc", "attention", "span")}
            row |= {"learning_rate": rate, "audio_seconds_per_second": position.speed, "epoch": position.epoch}
            row |= {"padding_share": position.padding, "waiting_share": position.waiting}
            self._keep(position.step, "train", row)

    def _say_pace(self, step: int) -> None:
        """Print the progress after the first steps, and then at intervals, if there is no progress bar."""
        now = time.monotonic()
        first, began = self.begun = self.begun or (step - 1, now)
        made = step - 1 - first  # since the clock started
        if made in (1, STEPS_PER_ROW) or (made > STEPS_PER_ROW and now - self.told > LINE_SECONDS):
            self.told, pace = now, (now - began) / made
            hours = pace * (self.steps - step) / 3600
            left = f"{hours:.1f} h" if hours >= 1.5 else f"{60 * hours:.0f} min"
            self.say(f"step {step} of {self.steps}: {pace:.2g} s a step, {left} left")

    def dashboard(self, position: Any, figures: dict[str, float], rate: float) -> list[str]:
        """Return the lines below the progress bar, of at most 80 columns."""
        parts = f"loss {figures['total']:.4g} (ctc {figures['ctc']:.4g}, attention {figures['attention']:.4g})"
        skipped = f"  {position.skipped_steps} skipped" if position.skipped_steps else ""
        return [
            f"epoch {position.epoch}  {parts}  rate {rate:.1e}{skipped}",
            f"{self.dev_wer}  {position.speed:.0f} h/h  {percent(position.padding, 0)} padding  "
            f"{percent(position.waiting, 0)} waiting  {memory_gigabytes():.1f} GB",
        ]

    def evaluation(self, position: Any, scores: dict[str, Score], overall: float | None, better: bool) -> None:
        """Print and write one evaluation; `overall` is None if there is no dev set."""
        if overall is not None:
            row = {"wer": overall}
            for name, score in scores.items():
                row |= {f"{name} wer": score.wer, f"{name} cer": score.cer}
            self._keep(position.step, "dev", row)
            self.dev_wer = f"dev WER {100 * overall:.1f} %{_interval(list(scores.values()), overall)}"
        parts = [f"{name} {100 * s.wer:.1f}{s.rates['wer'].bounds(_hundredfold, '-')}" for name, s in scores.items()]
        heard = f"{position.seconds / 60:.1f} min, {position.audio_seconds / 3600:.1f} h heard"
        if position.skipped_steps:
            heard += f", {position.skipped_steps} steps skipped"
        wer = ", ".join(parts) or "no dev set"
        self.say(f"step {position.step}, epoch {position.epoch}, {heard}: WER % {wer}{' *' if better else ''}")
        self.say(
            f"  {position.speed:.0f} h/h, {percent(position.padding, 0)} padding, "
            f"{percent(position.waiting, 0)} waiting for data, {memory_gigabytes():.1f} GB"
        )

    def focus(self, step: int, layers: Sequence[dict[str, float]]) -> None:
        """Write the mean span and temperature of each hybrid layer."""
        if layers:
            row = {f"layer {n} {name}": value for n, layer in enumerate(layers, 1) for name, value in layer.items()}
            self._keep(step, "focus", row)

    def samples(self, step: int, name: str, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Print and write a few texts of a dev set, each reference above its hypothesis."""
        if not self.main or not references:
            return
        chosen = sorted({index * len(references) // SAMPLES for index in range(SAMPLES)})
        texts = [align(references[index], hypotheses[index]) for index in chosen]
        with self._writing(), (self.output / "samples.txt").open("a", encoding="utf-8") as out:
            out.write(f"step {step}, {name}\n\n" + "\n\n".join(texts) + "\n\n")
        if self.board:
            self.board.add_text(name, "\n".join(f"    {line}" for text in texts for line in text.split("\n")), step)
        for text in texts[:SAMPLES_SHOWN]:
            for line in text.split("\n")[:2]:
                self.say(f"  {line[:74]}…" if len(line) > 75 else f"  {line}")

    def draw(self) -> None:
        """Redraw the curves."""
        if self.main and (self.output / "metrics.jsonl").exists():
            with self._writing():
                if self.board:
                    self.board.flush()
                try:
                    draw_curves(self.output / "metrics.jsonl", self.output / "curves.png")
                except (ImportError, OSError) as error:
                    if (failure := explain(error)) is None:
                        raise
                    self.say(f"no curves.png: {failure}")

    def _keep(self, step: int, kind: str, row: dict[str, float]) -> None:
        if self.board is None:
            return
        known = {name: value if math.isfinite(value) else None for name, value in row.items()}  # JSON has no NaN
        with self._writing():
            with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as rows:
                rows.write(json.dumps({"step": step, "kind": kind, **known}) + "\n")
            for name, value in row.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)


def _board(folder: Path, first: int | None = None) -> Any:
    """Return TensorBoard's writer; InputError if it cannot write, which its thread would only print.

    Its records from the step `first` on are purged.
    """
    from torch.utils.tensorboard import SummaryWriter

    ensure_writable(folder, "allow writing there, or give another --output-dir")
    return SummaryWriter(str(folder), purge_step=first)


def _interval(scores: list[Score], overall: float) -> str:
    """Return the interval of the mean of several WERs, from those of each; the sets are independent."""
    rates = [score.rates["wer"] for score in scores]
    below = [rate.value - rate.low for rate in rates if rate.low is not None]
    above = [rate.high - rate.value for rate in rates if rate.high is not None]
    if len(below) < len(scores):  # a set of one recording has no interval, so the spread is unknown
        return ""
    low, high = overall - math.hypot(*below) / len(scores), overall + math.hypot(*above) / len(scores)
    return Interval(overall, low, high).bounds(_hundredfold, "-")


def _hundredfold(ratio: float) -> str:
    return f"{100 * ratio:.1f}"


def read_rows(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics.jsonl; a line truncated by a killed run is skipped."""
    yield from (row for row in read_lines(metrics) if isinstance(row, dict) and "step" in row)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw the contents of metrics.jsonl: losses, dev WER, and the mean span and temperature per hybrid layer."""
    from matplotlib.figure import Figure

    panels: list[Series] = [{}, {}, {}, {}]
    for row in read_rows(metrics):
        step, kind = row.pop("step"), row.pop("kind")
        for name, value in row.items():
            place = _panel(kind, name)
            if place is not None and value is not None:
                panels[place].setdefault(name.removesuffix(" span_ms").removesuffix(" temperature"), {})[step] = value
    if len(panels[1]) == 2:  # one dev set is its own mean
        del panels[1]["wer"]
    figure = Figure(figsize=(11, 7), layout="tight")
    axes = figure.subplots(2, 2, sharex=True)
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
    if kind == "train":
        return 0 if name in ("total", "ctc", "attention") else None
    if kind == "dev":
        return 1 if name.endswith("wer") else None
    return 2 if name.endswith("span_ms") else 3


def draw_rates(rates: Sequence[float], losses: Sequence[float], suggested: float, picture: Path) -> None:
    """Draw smoothed losses against learning rates, and the suggested rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="tight")
    plot = figure.subplots()
    plot.plot(rates, losses)
    plot.axvline(suggested, color="tab:red", linestyle="--", label=f"suggested: {suggested:.1e}")
    plot.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    plot.grid(alpha=0.3, which="both")
    plot.legend()
    _save(figure, picture)


def _save(figure: Any, picture: Path) -> None:
    with written_aside(picture) as aside:
        figure.savefig(aside, format="png", dpi=110)
