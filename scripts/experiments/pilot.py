"""The pilot experiment: six models with the same data, steps, seeds and code path.

    scripts/experiments/pilot.py ../shared/data --output runs/pilot --jobs 2

DATA holds an4/ and fsdd/ with manifests train.jsonl, dev.jsonl and test.jsonl. Single digits of FSDD are joined to
strings, newly sampled in each training epoch, and fixed by a seed for dev and test. Finished runs are kept, so the same
command resumes after a stop. Written to --output: runs, results.json, pilot.png, table.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import torch
from digit_strings import write_strings
from pilot_report import report
from rich.console import Console
from torch import Tensor

from focusasr.audio.features import log_mel, stack
from focusasr.audio.load import load
from focusasr.config import DecodingConfig, ModelConfig
from focusasr.data.manifest import read_manifest
from focusasr.decoding.ctc_attention import decode
from focusasr.evaluation.attention_stats import dense_weights, entropy, layer_figures, layer_views
from focusasr.evaluation.evaluate import evaluate
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.engine import Engine
from focusasr.model.losses import LossWeights, joint_loss
from focusasr.model.transformer import Model
from focusasr.runtime.files import written_aside
from focusasr.text.tokenizer import Tokenizer
from focusasr.training.logger import TrainingLog
from focusasr.training.run import TrainingRun
from focusasr.training.trainer import Trainer
from focusasr.training_config import TrainConfig
from focusasr.transcription.native import Recognizer

SHAPE = ModelConfig(encoder_layers=3, decoder_layers=1, heads=8)
GLOBAL = dataclasses.replace(SHAPE, attention="global", width=128)  # 0.948 M weights with 32 tokens
HYBRID = dataclasses.replace(SHAPE, attention="hybrid", width=112)  # 0.923 M
SPAN_PENALTY = 0.3
TRAINING_SECONDS = 6.0  # of speech in the longest joined training item
LENGTHS = (6, 12, 18, 24)  # seconds of speech in the strings of the long trial: 1 to 4 times the training length
TRIAL_SECONDS = 300.0  # of speech for each of those lengths
ROUNDS = 15  # of timing


@dataclass(frozen=True)
class Entrant:
    """One of the six models: its name, its architecture, and the weight of its span penalty in training."""

    name: str
    model: ModelConfig
    span_penalty: float = 0.0


ENTRANTS = (
    Entrant("global, 16 heads", dataclasses.replace(GLOBAL, heads=16)),
    Entrant("global, 8 heads", GLOBAL),
    Entrant("hybrid, shorter is sharper", dataclasses.replace(HYBRID, temperature="formula", sharpen_longer=False)),
    Entrant("hybrid, longer is sharper", dataclasses.replace(HYBRID, temperature="formula", sharpen_longer=True)),
    Entrant("hybrid, learned temperature", HYBRID),
    Entrant("hybrid, learned, span penalty", HYBRID, SPAN_PENALTY),
)


@dataclass(frozen=True)
class Job:
    """One training run: model, seed, steps, data and output."""

    entrant: Entrant
    seed: int
    steps: int
    data: Path
    output: Path

    @property
    def folder(self) -> Path:
        """The folder of this run's checkpoints and figures."""
        name = self.entrant.name.replace(",", "").replace(" ", "-")
        return self.output / f"{name}-seed{self.seed}"


def main() -> None:
    """Train the missing runs, measure, time, and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"), help="holds an4/ and fsdd/")
    parser.add_argument("--output", type=Path, default=Path("runs/pilot"), help="output folder")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per model and seed")
    parser.add_argument("--jobs", type=int, default=2, help="runs trained at once, each with one thread")
    parser.add_argument("--report", action="store_true", help="train nothing, report the runs that are finished")
    given = parser.parse_args()
    data, output = given.data.absolute(), given.output.absolute()
    make_sets(data, output / "sets")
    jobs = [Job(one, seed, given.steps, data, output) for seed in given.seeds for one in ENTRANTS]
    if not given.report:
        waiting = [job for job in jobs if finished(job) is None]
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
            for done in as_completed(pool.submit(train_and_measure, job) for job in waiting):
                print(done.result(), flush=True)
    results = [result for job in jobs if (result := finished(job)) is not None]
    times = kept(output / "times.json", lambda: measure_times(jobs[: len(ENTRANTS)]))
    report(results, times, output)


def finished(job: Job) -> dict[str, Any] | None:
    """Return the result of a finished run, None for an unfinished one; exit if the steps differ."""
    path = job.folder / "result.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result["steps"] != job.steps:
        sys.exit(f"{path}: made with {result['steps']} steps, now {job.steps} are wanted; give another --output")
    return result


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return the contents of `path`; create and write it if it does not exist."""
    if not path.exists():
        made = make()
        with written_aside(path) as aside:
            aside.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


# Strings of digits


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


# One run


def train_and_measure(job: Job) -> str:
    """Train one model, or resume it, and write result.json; return a line on the result."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    settings = TrainConfig(
        steps=job.steps, batch_seconds=16.0, learning_rate=2e-3, warmup_steps=100, seed=job.seed,
        evaluate_every=max(1, job.steps // 8), ema_decay=0.99, ctc_weight=0.5, span_penalty=job.entrant.span_penalty,
        workers=0, clean_epochs=1000, silence=0.0, join=0.8, join_seconds=TRAINING_SECONDS, max_seconds=8.0,
    )  # fmt: skip
    train = tuple(str(job.data / corpus / "train.jsonl") for corpus in ("an4", "fsdd"))
    dev = (str(job.data / "an4" / "dev.jsonl"), str(job.output / "sets" / "strings-dev" / "manifest.jsonl"))
    run = TrainingRun(train, dev, job.folder, dataclasses.replace(job.entrant.model), settings=settings)
    trainer = Trainer(run, torch.device("cpu"), resume=(job.folder / "last").exists())
    written = job.folder.parent / f"{job.folder.name}.log"
    with written.open("a", encoding="utf-8") as lines, TrainingLog(job.folder, settings, Console(file=lines)) as log:
        trainer.fit(log)
    checkpoint = load_checkpoint(job.folder / "last")  # the last step of each: nothing is chosen
    tests = measured(checkpoint, job)
    result = {
        "name": job.entrant.name, "seed": job.seed, "steps": job.steps, "width": job.entrant.model.width,
        "heads": job.entrant.model.heads, "parameters": checkpoint.model.parameter_count(),
        "span_penalty": job.entrant.span_penalty, "curves": curves(job.folder / "metrics.jsonl"), "tests": tests,
        "looks": looks(checkpoint.model, job),
    }  # fmt: skip
    kept(job.folder / "result.json", lambda: result)
    wers = ", ".join(
        f"{name} {100 * sum(e for e, _ in t['words']) / sum(w for _, w in t['words']):.1f}" for name, t in tests.items()
    )
    return f"{job.folder.name}: {(time.perf_counter() - began) / 60:.1f} min, WER % {wers}"


def curves(metrics: Path) -> dict[str, dict[str, float]]:
    """Return training loss and dev WER by step; a resumed run's repeated steps count once."""
    found: dict[str, dict[str, float]] = {"loss": {}, "ctc": {}, "attention": {}, "wer": {}, "span": {}}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        names = {"total": "loss", "ctc": "ctc", "attention": "attention", "span": "span", "wer": "wer"}
        for key, name in names.items():
            if key in row:
                found[name][str(row["step"])] = row[key]
    return found


def measured(checkpoint: Checkpoint, job: Job) -> dict[str, Any]:
    """Return each test set's errors and lengths, in words and in characters, utterance by utterance."""
    paths = {"an4": job.data / "an4" / "test.jsonl"}
    for name in ("strings-test", *(f"digits-{n}s" for n in LENGTHS)):
        paths[name] = job.output / "sets" / name / "manifest.jsonl"
    recognizer = Recognizer(checkpoint, torch.device("cpu"), DecodingConfig(max_segment_seconds=60.0))  # never cut
    counts = {}
    for name, path in paths.items():
        rows = evaluate(recognizer.transcribe, read_manifest(path)).rows
        counts[name] = {
            "words": [(row.words.count, row.words.words) for row in rows if row.words],
            "characters": [(row.characters.count, row.characters.words) for row in rows if row.characters],
        }
    return counts


# Attention statistics


def test_mels(job: Job, count: int) -> list[Tensor]:
    """Return log-mel spectrograms of the first recordings of AN4's test set that last 2 to 6 s."""
    rows = [row for row in read_manifest(job.data / "an4" / "test.jsonl") if 2 <= (row.duration or 0) <= 6][:count]
    return [log_mel(torch.from_numpy(load(r.source)), 80) for r in rows]


@torch.inference_mode()
def looks(model: Model, job: Job) -> dict[str, Any]:
    """Return means over recordings, per layer and head: spans, temperatures, entropies, the branches' shares."""
    mels = test_mels(job, 12)
    if model.config.attention == "global":
        return {"global_entropy": torch.stack([global_entropies(model, mel) for mel in mels]).mean(dim=0).tolist()}
    names = ("span_ms", "temperature", "local_entropy", "global_entropy", "local_over_global")
    found = {name: torch.zeros(model.config.encoder_layers, model.config.heads) for name in names}
    for mel in mels:
        for number, view in enumerate(layer_views(model, mel)):
            for head, figures in enumerate(layer_figures(number, view, model.config.step_seconds).heads):
                for name in names:
                    found[name][number, head] += getattr(figures, name) / len(mels)
    return {name: values.tolist() for name, values in found.items()}


def global_entropies(model: Model, mel: Tensor) -> Tensor:
    """Return the entropy of every head's weights relative to uniform ones, (layers, H), for one spectrogram (F, M)."""
    x, mask, rotation = model.encoder.embed(*stack([mel]))
    everything, even = x.new_ones(1, x.shape[1], x.shape[1]), x.new_ones(model.config.heads)
    layers = []
    for block in model.encoder.blocks:
        attention: Any = block.attention
        weights, _ = dense_weights(attention.attn_global, attention.ln_global(x), everything, even, rotation)
        layers.append(entropy(weights, everything > 0)[1])
        x, _ = block(x, mask, rotation)
    return torch.stack(layers)


# Time, apart from the training that shares the machine with itself


def measure_times(jobs: list[Job]) -> dict[str, Any]:
    """Return seconds of one training step, of encoding and of transcribing, medians of interleaved rounds."""
    torch.set_num_threads(1)
    mels = test_mels(jobs[0], 8)
    work = {job.entrant.name: tasks(load_checkpoint(job.folder / "last"), mels) for job in jobs}
    seconds: dict[str, dict[str, list[float]]] = {name: {task: [] for task in work[name]} for name in work}
    for _ in range(ROUNDS + 1):
        for name in random.sample(list(work), len(work)):
            for task, run in work[name].items():
                began = time.perf_counter()
                run()
                seconds[name][task].append(time.perf_counter() - began)
    medians = {
        name: {task: statistics.median(taken[1:]) for task, taken in by_task.items()}
        for name, by_task in seconds.items()
    }
    return {"seconds": medians, "rounds": ROUNDS, "load": os.getloadavg()[0], "threads": 1}


def tasks(checkpoint: Checkpoint, mels: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the timed functions of one model, all on the same recordings: train, encode, transcribe."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    mel, lengths = stack(mels)
    tokens = torch.randint(4, tokenizer.size, (len(mels), 20), generator=torch.Generator().manual_seed(0))

    def train() -> None:
        model.train()
        joint_loss(model(mel, lengths, tokens), tokens, tokenizer.blank, LossWeights()).total.backward()
        model.zero_grad(set_to_none=True)

    return {
        "train": train,
        "encode": lambda: encode(model, mel, lengths),
        "transcribe": lambda: transcribe(model, mels, tokenizer),
    }


@torch.inference_mode()
def encode(model: Model, mel: Tensor, lengths: Tensor) -> None:
    """Run the encoder alone."""
    model.eval().encode(mel, lengths)


def transcribe(model: Model, mels: list[Tensor], tokenizer: Tokenizer) -> None:
    """Find the texts, like the command line."""
    decode(Engine(model.eval()), mels, tokenizer, DecodingConfig())


if __name__ == "__main__":
    main()
