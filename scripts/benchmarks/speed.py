"""Speed of focusasr and other packages on the same work: tables, ratios and a picture.

    .venv/bin/python scripts/benchmarks/speed.py [DATA] [--rounds 3] [--quick] [--output scripts/benchmarks/speed.png]

Three parts: one set of random weights of Whisper-tiny's shape on half a minute of noise, 100 tokens each; AN4's test
clips in DATA, ours with the default checkpoint, the others of Whisper-tiny's shape with as many tokens as the
reference; the start of a process for one clip, with its peak memory. Contenders take turns, so that other load affects
all of them. The other packages are the extra `peers`; missing ones are skipped and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for everybody: spinning threads of one would slow the next
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "checks")]

import numpy as np  # noqa: E402
from contenders import SHARED, Contender, write_shared_weights  # noqa: E402

THREADS = 2
TOKENS = 100
BATCHES = (1, 8)
CLIP = ROOT / "tests" / "data" / "sample.flac"
OURS = "focusasr"  # what our names begin with
STARTER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Cell(NamedTuple):
    """A median of one contender in one column, in the column's unit."""

    contender: str
    column: str
    value: float


def interleaved(rounds: int, tasks: dict[str, Callable[[], dict[str, float]]]) -> list[Cell]:
    """Run every task once to warm up, then all of them in turn, `rounds` times; return the medians."""
    seen: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            for column, value in task().items():
                if number or not rounds:
                    seen.setdefault((name, column), []).append(value)
    return [Cell(name, column, statistics.median(values)) for (name, column), values in seen.items()]


# The same weights


def shared_weights(contenders: dict[str, Contender], rounds: int, tokens: int) -> list[Cell]:
    """Time encoder, decoder and whole call on half a minute of noise, alone and eight at once."""
    draw = np.random.default_rng(0)
    noises = [(0.1 * draw.standard_normal(480_000)).astype(np.float32) for _ in range(max(BATCHES))]

    def task(contender: Contender) -> dict[str, float]:
        columns = {}
        for batch in BATCHES:
            times = contender(noises[:batch], tokens)
            if times.tokens < 0.9 * tokens:
                raise SystemExit(f"{type(contender).__name__} wrote {times.tokens} of {tokens} tokens: not comparable")
            step = times.decoder / times.tokens
            columns[f"features + encoder, ms ({batch})"] = 1000 * (times.features + times.encoder)
            columns[f"decoder, ms/step ({batch})"] = 1000 * step
            columns[f"whole call, s ({batch})"] = times.features + times.encoder + tokens * step
        return columns

    return interleaved(rounds, {name: partial(task, one) for name, one in contenders.items()})


# Real clips


class Clip(NamedTuple):
    """A recording, its audio, and the number of Whisper tokens of its text."""

    path: Path
    sound: np.ndarray
    tokens: int


def read_clips(data: Path, most: int) -> list[Clip]:
    """Return clips of AN4's test set at even distances."""
    from parity import vocabularies

    from focusasr.audio.load import load
    from focusasr.data.manifest import read_manifest

    tokenizer = vocabularies()[51_865]
    utterances = read_manifest(data / "an4" / "test.jsonl")
    chosen = utterances[:: max(1, len(utterances) // most)][:most]
    return [
        Clip(one.audio, load(one.audio), len(tokenizer.encode_exactly(" " + one.text.lower())) + 1) for one in chosen
    ]


def real_clips(contenders: dict[str, Contender], clips: list[Clip], rounds: int) -> list[Cell]:
    """Time decoded clips one by one and in batches, with loaded models; seconds of audio per second."""
    seconds = sum(len(clip.sound) for clip in clips) / 16_000
    ordered = sorted(clips, key=lambda clip: clip.tokens)
    batches = [ordered[start : start + 8] for start in range(0, len(ordered), 8)]

    def task(contender: Contender) -> dict[str, float]:
        alone = sum(contender([clip.sound], clip.tokens).whole for clip in clips)
        together = sum(
            contender([clip.sound for clip in batch], max(clip.tokens for clip in batch)).whole for batch in batches
        )
        return {"one by one, s/s": seconds / alone, "in batches, s/s": seconds / together}

    own = our_default()

    def our_task() -> dict[str, float]:
        return {
            "one by one, s/s": seconds / sum(own([clip]) for clip in clips),
            "in batches, s/s": seconds / own(clips),
        }

    tasks = {name: partial(task, one) for name, one in contenders.items() if not name.startswith(OURS)}
    return interleaved(rounds, {f"{OURS}, default model": our_task, **tasks})


def our_default() -> Callable[[Sequence[Clip]], float]:
    """Return a function that transcribes clips with the default checkpoint and returns the seconds."""
    import torch

    from focusasr.audio.source import Source
    from focusasr.config import DecodingConfig
    from focusasr.model.checkpoint import load_checkpoint
    from focusasr.model.checkpoint_folder import find_checkpoint
    from focusasr.transcription.native import Recognizer

    recognizer = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())

    def transcribe(clips: Sequence[Clip]) -> float:
        start = time.perf_counter()
        outcomes = list(recognizer.transcribe(Source(str(clip.path)) for clip in clips))
        assert all(outcome.error is None for outcome in outcomes)
        return time.perf_counter() - start

    return transcribe


# Starting


def starting(names: Iterable[str], folder: Path, rounds: int) -> list[Cell]:
    """Time whole processes from start to the text of one clip, and `import torch` alone; with their peak memory."""
    commands = {
        "import torch": ["-c", "import torch"],
        "focusasr --help": ["-m", "focusasr", "--help"],
        f"{OURS}, default model": ["-m", "focusasr", "transcribe", str(CLIP)],
        **{name: [__file__, "--once", name, "--folder", str(folder)] for name in names},
    }
    return interleaved(rounds, {name: partial(process, line) for name, line in commands.items()})


def process(arguments: Sequence[str]) -> dict[str, float]:
    """Run Python with arguments; return wall seconds and peak memory in MB.

    A small process starts it: Linux counts the peak of the forking process as the child's own.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-c", STARTER, sys.executable, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with status {done.returncode}")
    seconds, peak = map(float, done.stdout.split())
    return {"start to text, s": seconds, "peak, MB": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def once(name: str, folder: Path) -> None:
    """Run as a process that loads one contender and transcribes one clip."""
    import soundfile

    sound, _ = soundfile.read(CLIP, dtype="float32")
    SHARED[name][1](folder, THREADS)([sound], 12)


# Output


def show(title: str, cells: list[Cell], base: str) -> None:
    """Print a table of one part: medians, and in brackets the ratio to `base`."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(cell.column for cell in cells))
    values = {(cell.contender, cell.column): cell.value for cell in cells}
    table = Table("", *columns, title=title, box=None, pad_edge=False, title_justify="left")
    for name in dict.fromkeys(cell.contender for cell in cells):
        row = []
        for column in columns:
            value, reference = values[name, column], values[base, column]
            row.append(f"{short(value)} ({value / reference:.2f})")
        table.add_row(name, *row)
    Console(width=200).print(table)


def short(value: float) -> str:
    """Return a number of three digits, without a power of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def draw(parts: dict[str, list[Cell]], path: Path) -> None:
    """Draw the main columns as bars, the shortest on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = ("whole call, s (1)", "whole call, s (8)", "one by one, s/s", "start to text, s", "peak, MB")
    cells = [cell for part in parts.values() for cell in part]
    shown = [column for column in wanted if any(cell.column == column for cell in cells)]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(8, 1.9 * len(shown)), layout="constrained", squeeze=False)
    for axis, column in zip(axes[:, 0], shown, strict=True):
        bars = sorted((cell.value, cell.contender) for cell in cells if cell.column == column)[::-1]
        colors = ["#c0392b" if name.startswith(OURS) else "#95a5a6" for _, name in bars]
        drawn = axis.barh([name for _, name in bars], [value for value, _ in bars], color=colors)
        axis.bar_label(drawn, [short(value) for value, _ in bars], padding=3, fontsize=8)
        axis.set_title(column, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data", help="has an4/test.jsonl"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times each is run after one to warm up")
    parser.add_argument("--clips", type=int, default=16, help="how many of AN4's test clips")
    parser.add_argument("--quick", action="store_true", help="one round, 20 tokens, 4 clips: to see that it runs")
    parser.add_argument("--output", type=Path, default=ROOT / "scripts" / "benchmarks" / "speed.png")
    parser.add_argument("--json", type=Path, help="write all medians here")
    parser.add_argument("--once", choices=list(SHARED), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.clips = 1, 4
    return given


def main() -> None:
    """Measure, print the tables, draw the picture."""
    given = arguments()
    if given.once:
        return once(given.once, given.folder)
    lacking = {name for name, (package, _) in SHARED.items() if importlib.util.find_spec(package) is None}
    if lacking:
        print(f"left out, not installed: {', '.join(sorted(lacking))}; pip install -e '.[peers]'", file=sys.stderr)
    if {package for name, (package, _) in SHARED.items() if name in lacking} & {"transformers", "whisper"}:
        raise SystemExit("the shared weights are written by transformers, their tokens are openai-whisper's")
    parts: dict[str, list[Cell]] = {}
    with tempfile.TemporaryDirectory() as place:
        write_shared_weights(Path(place))
        names = [name for name in SHARED if name not in lacking]
        parts["starting"] = starting(names, Path(place), given.rounds)
        show("One process for one clip (ratio to `import torch`)", parts["starting"], "import torch")
        contenders = {name: SHARED[name][1](Path(place), THREADS) for name in names}
        tokens = 20 if given.quick else TOKENS
        parts["shared"] = shared_weights(contenders, given.rounds, tokens)
        show(
            f"The same weights of Whisper-tiny's shape, 30 s of noise, {tokens} tokens (in brackets ratios)",
            parts["shared"],
            "faster-whisper int8" if "faster-whisper int8" in names else f"{OURS} int8",
        )
        if (given.data / "an4" / "test.jsonl").is_file():
            clips = read_clips(given.data, given.clips)
            parts["clips"] = real_clips(contenders, clips, given.rounds)
            show(
                f"{len(clips)} clips of AN4's test, seconds of sound per second (ratio to ours)",
                parts["clips"],
                f"{OURS}, default model",
            )
        else:
            print(f"{given.data}: no an4/test.jsonl there, so no real clips", file=sys.stderr)
    draw(parts, given.output)
    if given.json:
        given.json.write_text(json.dumps({name: [cell._asdict() for cell in cells] for name, cells in parts.items()}))


if __name__ == "__main__":
    main()
