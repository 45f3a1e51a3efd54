"""What a training run shows: progress, lines, metrics.jsonl, TensorBoard and curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from focusasr.config import TrainConfig
from focusasr.files import written_aside
from focusasr.model import Losses
from focusasr.score import Score
from focusasr.settings import InputError

STEPS_PER_ROW = 20  # of metrics.jsonl
MOST_BROKEN_SHOWN = 10


class TrainingLog:
    """Shows a run on stderr and keeps its figures in the output folder."""

    def __init__(self, output: Path, config: TrainConfig, console: Console, main: bool = True) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{output}: cannot be a folder ({error.strerror}); give another --output-dir") from None
        self.output = output
        self.console = console
        self.main = main  # of several processes, one shows and keeps
        self.board = SummaryWriter(str(output / "tensorboard")) if main else None
        self.broken_seen: set[str] = set()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        quiet = not (main and console.is_terminal)
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet, redirect_stdout=False)
        self.task = self.progress.add_task("training", total=config.steps)
        self.dev_wer = ""

    def __enter__(self) -> TrainingLog:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.board:
            self.board.close()

    def say(self, line: str) -> None:
        """Print one line on stderr."""
        if self.main:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def broken(self, lines: Sequence[str]) -> None:
        """Name audio that could not be read, each once, the first ten in full."""
        for line in lines:
            if line not in self.broken_seen:
                self.broken_seen.add(line)
                if len(self.broken_seen) <= MOST_BROKEN_SHOWN:
                    self.say(f"left out: {line}")

    def step(self, position: Any, losses: Losses, rate: float) -> None:
        """Show one optimizer step."""
        speed = position.audio_seconds / max(position.seconds, 1e-9)
        if not self.progress.disable:
            parts = f"loss {losses.total:.2f} (ctc {losses.ctc:.2f}, attention {losses.attention:.2f})"
            description = f"epoch {position.epoch} {parts} {self.dev_wer} {speed:.0f}x real time"
            self.progress.update(self.task, completed=position.step, description=description)
        if position.step % STEPS_PER_ROW == 0:
            row = {name: float(value.detach()) for name, value in losses._asdict().items()}
            row |= {"learning_rate": rate, "audio_seconds_per_second": speed, "epoch": position.epoch}
            self._keep(position.step, "train", row)

    def evaluation(self, position: Any, scores: dict[str, Score], overall: float | None, better: bool) -> None:
        """Show and keep one evaluation, and draw the curves anew; `overall` is None where there is no dev set."""
        if overall is not None:
            row = {"wer": overall}
            for name, score in scores.items():
                row |= {f"{name} wer": score.wer, f"{name} cer": score.cer}
            self._keep(position.step, "dev", row)
            self.dev_wer = f"dev WER {100 * overall:.1f} %"
        parts = [
            f"{name} {100 * s.wer:.1f} ({100 * s.wer_low:.1f}-{100 * s.wer_high:.1f})" for name, s in scores.items()
        ]
        heard = f"{position.seconds / 60:.1f} min, {position.audio_seconds / 3600:.1f} h heard"
        if position.skipped_steps:
            heard += f", {position.skipped_steps} steps skipped for want of a finite gradient"
        wer = ", ".join(parts) or "no dev set"
        self.say(f"step {position.step}, epoch {position.epoch}, {heard}: WER % {wer}{' *' if better else ''}")
        if self.main and (self.output / "metrics.jsonl").exists():
            draw_curves(self.output / "metrics.jsonl", self.output / "curves.png")

    def _keep(self, step: int, kind: str, row: dict[str, float]) -> None:
        if self.board is None:
            return
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as rows:
            rows.write(json.dumps({"step": step, "kind": kind, **row}) + "\n")
        for name, value in row.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw losses and dev WER against steps from metrics.jsonl; a resumed run's repeated steps count once."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, dict[int, float]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        step, kind = row.pop("step"), row.pop("kind")
        names = ("total", "ctc", "attention") if kind == "train" else [name for name in row if name.endswith("wer")]
        for name in names:
            series.setdefault(f"{kind} {name}", {})[step] = row[name]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for name, points in sorted(series.items()):
        axes, scale = (left, 1) if name.startswith("train") else (right, 100)
        axes.plot(list(points), [scale * value for value in points.values()], label=name.split(" ", 1)[1])
    left.set(xlabel="optimizer step", ylabel="training loss")
    right.set(xlabel="optimizer step", ylabel="dev WER, %", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.tight_layout()
    with written_aside(picture) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)
