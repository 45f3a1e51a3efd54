"""The pilot experiment: six models with the same data, steps, seeds and code path.

    scripts/experiments/pilot.py ../shared/data --output runs/pilot --jobs 2

DATA holds an4/ and fsdd/ with manifests train.jsonl, dev.jsonl and test.jsonl. Single digits of FSDD are joined to
strings, newly sampled in each training epoch, and fixed by a seed for dev and test. Finished runs are kept, so the same
command resumes after a stop. Written to --output: runs with their curves.png and metrics.jsonl, and table.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import numpy as np
import torch
from digit_strings import write_strings
from rich.console import Console

from focusasr.config import DecodingConfig, ModelConfig
from focusasr.data.manifest import read_manifest
from focusasr.evaluation.bootstrap import compare, resample_totals
from focusasr.evaluation.evaluate import evaluate
from focusasr.model.checkpoint import load_checkpoint
from focusasr.runtime.files import write_json, written_aside
from focusasr.training.logger import TrainingLog
from focusasr.training.run import TrainingRun
from focusasr.training.trainer import Trainer
from focusasr.training_config import TrainConfig
from focusasr.transcription.native import Recognizer

SHAPE = ModelConfig(encoder_layers=3, decoder_layers=1, heads=8)
GLOBAL = dataclasses.replace(SHAPE, attention="global", width=128)  # 0.948 M weights with 32 tokens
HYBRID = dataclasses.replace(SHAPE, attention="hybrid", width=112)  # 0.923 M
ENTRANTS = {  # architecture, and the weight of its span penalty in training
    "global, 8 heads": (GLOBAL, 0.0),
    "global, 16 heads": (dataclasses.replace(GLOBAL, heads=16), 0.0),
    "hybrid, learned temperature": (HYBRID, 0.0),
    "hybrid, longer is sharper": (dataclasses.replace(HYBRID, temperature="formula", sharpen_longer=True), 0.0),
    "hybrid, shorter is sharper": (dataclasses.replace(HYBRID, temperature="formula", sharpen_longer=False), 0.0),
    "hybrid, learned, span penalty": (HYBRID, 0.3),
}
TRAINING_SECONDS = 6.0  # of speech in the longest joined training item
LENGTHS = (6, 12, 18, 24)  # seconds of speech in the strings of the long trial: 1 to 4 times the training length
TRIAL_SECONDS = 300.0  # of speech for each of those lengths
TESTS = ("an4", "strings-test", *(f"digits-{length}s" for length in LENGTHS))


@dataclass(frozen=True)
class Job:
    """One training run: model, seed, steps, data and output."""

    name: str
    seed: int
    steps: int
    data: Path
    output: Path

    @property
    def folder(self) -> Path:
        """The folder of this run's checkpoints and figures."""
        return self.output / f"{self.name.replace(',', '').replace(' ', '-')}-seed{self.seed}"

    def manifest(self, test: str) -> Path:
        """Return the manifest of a set."""
        return self.data / "an4" / "test.jsonl" if test == "an4" else self.output / "sets" / test / "manifest.jsonl"


def main() -> None:
    """Train and measure the missing runs, and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"), help="holds an4/ and fsdd/")
    parser.add_argument("--output", type=Path, default=Path("runs/pilot"), help="output folder")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per model and seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs trained at once, each with one thread")
    given = parser.parse_args()
    data, output = given.data.absolute(), given.output.absolute()
    make_sets(data, output / "sets")
    jobs = [Job(name, seed, given.steps, data, output) for seed in given.seeds for name in ENTRANTS]
    waiting = [job for job in jobs if not (job.folder / "result.json").exists()]
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed(pool.submit(train_and_measure, job) for job in waiting):
            print(done.result(), flush=True)
    report(jobs, output / "table.md")


def make_sets(data: Path, folder: Path) -> None:
    """Write FSDD's strings as audio and manifests: dev and test of the training length, and those of the long trial."""
    draw = random.Random(0)
    short = [draw.uniform(1, TRAINING_SECONDS) for _ in range(100)]
    wanted = {"strings-dev": ("dev", short[:40]), "strings-test": ("test", short[40:])}
    wanted |= {f"digits-{n}s": ("test", [float(n)] * round(TRIAL_SECONDS / n)) for n in LENGTHS}
    for number, (name, (split, goals)) in enumerate(wanted.items()):
        if not (folder / name / "manifest.jsonl").exists():
            digits = read_manifest(data / "fsdd" / f"{split}.jsonl")
            write_strings(digits, goals, folder / name / "manifest.jsonl", number, in_seconds=True)


def train_and_measure(job: Job) -> str:
    """Train one model, or resume it, and write result.json, errors and words per utterance; return a line on it."""
    torch.set_num_threads(1)
    shape, span_penalty = ENTRANTS[job.name]
    settings = TrainConfig(
        steps=job.steps, batch_seconds=16.0, learning_rate=2e-3, warmup_steps=100, seed=job.seed,
        evaluate_every=max(1, job.steps // 8), ema_decay=0.99, ctc_weight=0.5, span_penalty=span_penalty,
        workers=0, clean_epochs=1000, silence=0.0, join=0.8, join_seconds=TRAINING_SECONDS, max_seconds=8.0,
    )  # fmt: skip
    train = tuple(str(job.data / corpus / "train.jsonl") for corpus in ("an4", "fsdd"))
    dev = (str(job.data / "an4" / "dev.jsonl"), str(job.manifest("strings-dev")))
    run = TrainingRun(train, dev, job.folder, dataclasses.replace(shape), settings=settings)
    trainer = Trainer(run, torch.device("cpu"), resume=(job.folder / "last").exists())
    with (
        (job.output / f"{job.folder.name}.log").open("a", encoding="utf-8") as lines,
        TrainingLog(job.folder, settings, Console(file=lines)) as log,
    ):
        trainer.fit(log)
    checkpoint = load_checkpoint(job.folder / "last")  # the last step of each: nothing is chosen
    recognizer = Recognizer(checkpoint, torch.device("cpu"), DecodingConfig(max_segment_seconds=60.0))  # never cut
    counts = {}
    for test in TESTS:
        rows = evaluate(recognizer.transcribe, read_manifest(job.manifest(test))).rows
        counts[test] = [(row.words.count, row.words.words) for row in rows if row.words]
    with written_aside(job.folder / "result.json") as aside:
        write_json(aside, {"steps": job.steps, "parameters": checkpoint.model.parameter_count(), "tests": counts})
    return f"{job.folder.name}: WER % {', '.join(f'{test} {rate(np.array(counts[test])):.1f}' for test in TESTS)}"


def rate(counts: np.ndarray) -> float:
    """Return the error rate of utterances' errors and words (U, 2), in percent."""
    errors, words = counts.sum(axis=0)
    return float(100 * errors / words)


def report(jobs: list[Job], path: Path) -> None:
    """Print and write WER over the seeds: 95 % bootstrap interval over utterances, range over seeds, differences."""
    found = {job: json.loads((job.folder / "result.json").read_text(encoding="utf-8")) for job in jobs}
    if len({result["steps"] for result in found.values()}) > 1:
        sys.exit(f"{path.parent}: its runs have different numbers of steps; give another --output")
    base = next(iter(ENTRANTS))
    rows = [
        f"| model | parameters | {' | '.join(TESTS)} | minus that of '{base}', an4 |",
        "|---" * (3 + len(TESTS)) + "|",
    ]
    runs = {
        name: {test: np.array([found[job]["tests"][test] for job in jobs if job.name == name]) for test in TESTS}
        for name in ENTRANTS
    }  # (seeds, U, 2)
    for name, tests in runs.items():
        parameters = next(found[job]["parameters"] for job in jobs if job.name == name)
        cells = [name, f"{parameters / 1e6:.3f} M", *(with_interval(tests[test]) for test in TESTS)]
        cells.append("–" if name == base else difference(runs[base]["an4"], tests["an4"]))
        rows.append(f"| {' | '.join(cells)} |")
    text = "\n".join(rows) + "\n"
    print(text)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def with_interval(counts: np.ndarray) -> str:
    """Return the WER of counts (seeds, U, 2), its interval, and its range over seeds."""
    drawn = resample_totals(counts.sum(axis=0), seed=0)
    low, high = np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    seeds = sorted(map(rate, counts))
    return f"{rate(counts.sum(axis=0)):.1f} ({low:.1f}–{high:.1f}), {seeds[0]:.1f}–{seeds[-1]:.1f}"


def difference(base: np.ndarray, other: np.ndarray) -> str:
    """Return other's WER minus base's in points, with a paired bootstrap interval."""
    (first, words), (second, _) = (counts.sum(axis=0).T for counts in (other, base))
    shift = compare(first, second, words, None).difference
    return f"{100 * shift.value:+.1f}{shift.bounds(lambda ratio: f'{100 * ratio:+.1f}')}"


if __name__ == "__main__":
    main()
