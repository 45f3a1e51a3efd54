"""Training: manifests to a checkpoint folder, by a joint CTC/attention loss, on the engine of accelerate."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from focusasr.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.config import PRESETS, SAMPLE_RATE_HZ, DataConfig, ModelConfig, TextConfig, TrainConfig
from focusasr.data import Batch, Corpus, Examples, Findings, Plan, collate, read_corpus, read_texts
from focusasr.files import written_aside
from focusasr.model import Losses, LossWeights, Model, joint_loss
from focusasr.score import Score
from focusasr.settings import InputError, read_settings, to_settings
from focusasr.tokenizer import train_tokenizer
from focusasr.training_log import TrainingLog
from focusasr.validate import measure, model_card, read_dev_set
from focusasr.warm_start import learn_only, remarks, warm_model, warm_tokenizer, within_window

UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError)  # a state.pt
MOST_BAD_STEPS = 20  # consecutive steps without a finite loss before training gives up


@dataclass(frozen=True)
class Run:
    """One training run: manifests (PATH or PATH=WEIGHT), where the result goes, and every setting."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    output: Path
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    settings: TrainConfig = TrainConfig()

    def to_json(self) -> dict[str, Any]:
        """Return what is kept in the checkpoint of how it was made."""
        return {"data": {"train": list(self.train), "dev": list(self.dev)}, "train": to_settings(self.settings)}


@dataclass
class Position:
    """Where a run stands: optimizer steps done, batches read, and the best dev score so far."""

    step: int = 0
    batches: int = 0  # that all processes together have read
    epoch: int = 0
    best_wer: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0  # of training, evaluation included
    audio_seconds: float = 0.0  # that the model has heard
    bad_steps: int = 0  # skipped in a row, for want of a finite gradient
    skipped_steps: int = 0  # in all


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of optimizer step `step`, from 0: a linear rise, then half a cosine down to final_rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * share


def average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
    """Move averaged weights toward the current ones; slowly only once `count` updates have been made."""
    warm = min(decay, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averaged, current, 1 - warm)


def make_optimizer(model: Model, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the weights that may learn, with weight decay on matrices only."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.dim() > 1]
    vectors = [parameter for parameter in learning if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return accelerate's name for the precision; auto is bf16 on CUDA and fp32 elsewhere."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": "bf16", "fp32": "no"}[wanted]


class Trainer:
    """A run in progress: everything that changes from step to step."""

    def __init__(self, run: Run, device: torch.device, resume: bool = False, source: Checkpoint | None = None) -> None:
        last = run.output / "last"
        if last.exists() and not resume:
            raise InputError(f"{run.output}: holds a training run already; give --resume, or another --output-dir")
        if resume and not last.exists():
            raise InputError(f"{run.output}: nothing to resume here; leave --resume out")
        torch.manual_seed(run.settings.seed)
        precision = choose_precision(run.settings.precision, device)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        before = load_checkpoint(last) if resume else None
        if source and not before:
            self.tokenizer = warm_tokenizer(source, run.text)
        else:
            self.tokenizer = before.tokenizer if before else train_tokenizer(read_texts(run.train), run.text)
        model_config = dataclasses.replace(run.model, vocabulary=self.tokenizer.size)
        self.run = dataclasses.replace(run, model=model_config, settings=within_window(run.settings, model_config))
        self.findings = Findings()
        self.corpora = self._read_corpora()
        self.dev_sets = [read_dev_set(option) for option in run.dev]
        self.position = Position()
        model = warm_model(model_config, source.model) if source and not resume else Model(model_config)
        learn_only(model, run.settings.train_only)
        self.optimizer: Any
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, run.settings))
        self.average = AveragedModel(
            self.accelerator.unwrap_model(self.model),
            multi_avg_fn=functools.partial(average, run.settings.ema_decay),
        )
        if resume:
            self._load_state(last / "trainer" / "state.pt")

    def _read_corpora(self) -> list[Corpus]:
        read = functools.partial(
            read_corpus, tokenizer=self.tokenizer, model=self.run.model,
            max_seconds=self.run.settings.max_seconds, found=self.findings,
        )  # fmt: skip
        corpora = [read(option) for option in self.run.train]
        for corpus in corpora:
            if not corpus.utterances:
                reasons = "; ".join(self.findings.lines()) or "it has no lines"
                raise InputError(f"{corpus.name}: no utterance can be used: {reasons}")
        return corpora

    @property
    def best_model(self) -> Any:
        """Return the model that is measured and saved: the averaged one where averaging is on."""
        averaging = self.run.settings.ema_decay > 0
        return self.average.module if averaging else self.accelerator.unwrap_model(self.model)

    def summary(self) -> list[str]:
        """Return lines that say what will be trained on what."""
        model = self.run.model
        shape = f"width {model.width}, {model.heads} heads, {model.encoder_layers} + {model.decoder_layers} layers"
        millions = self.best_model.parameter_count() / 1e6
        lines = [f"{millions:.1f} M weights: {model.attention} attention, {shape}, {model.vocabulary} tokens"]
        for corpus in self.corpora:
            hours = corpus.seconds / 3600
            lines.append(f"{corpus.name}: {len(corpus.utterances)} utterances, {hours:.2f} h, weight {corpus.weight:g}")
        lines += remarks(self.run.settings, model, self.tokenizer)
        batches = self._plan().epoch(0)
        held = sum(item.seconds for batch in batches for item in batch)
        padded = sum(len(batch) * max(item.seconds for item in batch) for batch in batches)
        lines.append(f"{len(batches)} batches an epoch, {held / 3600:.1f} h, {100 * (1 - held / padded):.0f} % padding")
        return lines + self.findings.lines()

    def loader(self) -> DataLoader:
        """Return the batches from the present position on, read and augmented by worker processes."""
        settings = self.run.settings
        model = self.run.model
        examples = Examples(self.corpora, settings, model.mel_bands, self.tokenizer.separator, model.window_samples)
        workers: Any = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if settings.workers else {}
        return DataLoader(
            examples,
            batch_sampler=BatchSamplerShard(
                self._plan(self.position.batches),
                self.accelerator.num_processes,
                self.accelerator.process_index,
                even_batches=False,
            ),
            collate_fn=functools.partial(collate, prompt=self.tokenizer.prompt, end=self.tokenizer.end),
            num_workers=settings.workers,
            generator=torch.Generator().manual_seed(settings.seed),
            worker_init_fn=_begin_worker,
            **workers,
        )

    def _plan(self, first: int = 0) -> Plan:
        room = self.run.model.text_context - len(self.tokenizer.prompt) + 1
        window = self.run.model.window_samples
        shortest = window / SAMPLE_RATE_HZ if window else 1.0
        return Plan(self.corpora, self.run.settings, room, first, shortest)

    def fit(self, log: TrainingLog) -> None:
        """Train until the last step, evaluating and saving on the way."""
        settings = self.run.settings
        batches: Any = iter(self.loader())
        try:
            while self.position.step < settings.steps and not self._out_of_patience():
                began = time.perf_counter()
                losses, heard = self._step(batches, log)
                self.position.seconds += time.perf_counter() - began
                self.position.audio_seconds += heard
                log.step(self.position, losses, self.optimizer.param_groups[0]["lr"])
                if self.position.step % settings.evaluate_every == 0 or self.position.step == settings.steps:
                    self._evaluate(log)
        finally:
            if settings.workers:
                with contextlib.suppress(RuntimeError):  # of a worker that Ctrl-C ended first
                    batches._shutdown_workers()  # else they live while anything, such as a traceback, holds `batches`

    def _out_of_patience(self) -> bool:
        return 0 < self.run.settings.patience <= self.position.evaluations_since_best

    def _step(self, batches: Any, log: TrainingLog) -> tuple[Losses, float]:
        """Make one optimizer step from `accumulate` batches; return the last losses and the seconds of audio heard."""
        settings = self.run.settings
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.position.step, settings)
        weights = LossWeights(settings.ctc_weight, settings.label_smoothing, settings.span_penalty)
        heard = 0.0
        for _ in range(settings.accumulate):
            batch: Batch = next(batches)
            log.broken(batch.broken)
            mel, lengths, tokens, targets = (part.to(self.accelerator.device) for part in batch[:4])
            with self.accelerator.autocast():
                losses = joint_loss(self.model(mel, lengths, tokens), targets, self.tokenizer.blank, weights)
            self.accelerator.backward(losses.total / settings.accumulate)
            heard += batch.seconds * self.accelerator.num_processes
            self.position.batches += self.accelerator.num_processes
            self.position.epoch = batch.position[0]
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self._apply(bool(torch.isfinite(norm)), batch)
        return losses, heard

    def _apply(self, finite: bool, batch: Batch) -> None:
        """Take the step, or skip it where the gradient is not finite; InputError after too many in a row."""
        if finite:
            self.optimizer.step()
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        self.position.bad_steps = 0 if finite else self.position.bad_steps + 1
        self.position.skipped_steps += not finite
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        if self.position.bad_steps >= MOST_BAD_STEPS:
            raise InputError(
                f"step {self.position.step}: {MOST_BAD_STEPS} steps in a row without a finite gradient "
                f"(epoch and batch {batch.position}); lower --learning-rate, then --resume from the last checkpoint"
            )

    def _evaluate(self, log: TrainingLog) -> None:
        began = time.perf_counter()
        model = self.best_model
        scores = {}
        for dev in self.dev_sets:
            measured = measure(model, self.tokenizer, dev)
            scores[dev.name] = measured.score
            log.broken(measured.broken)
        model.train()
        overall, best = _overall(scores), self.position.best_wer
        better = overall is None or best is None or overall < best
        self.position.best_wer = overall if better else best
        self.position.evaluations_since_best = 0 if better else self.position.evaluations_since_best + 1
        self.position.seconds += time.perf_counter() - began
        log.evaluation(self.position, scores, overall, better)
        if self.accelerator.is_main_process:
            self._save(scores, better)

    def _save(self, scores: dict[str, Score], better: bool) -> None:
        metrics = {
            "position": dataclasses.asdict(self.position),
            "dev": {k: dataclasses.asdict(v) for k, v in scores.items()},
        }
        card = model_card(self.run.output.name, self.best_model, self.run.to_json(), scores)
        checkpoint = Checkpoint(self.best_model, self.tokenizer, metrics, card)
        with written_aside(self.run.output / "last") as aside:
            save_checkpoint(aside, checkpoint, self.run.to_json())
            (aside / "trainer").mkdir()
            torch.save(self._state(), aside / "trainer" / "state.pt")
        if better:
            with written_aside(self.run.output / "best") as aside:
                save_checkpoint(aside, checkpoint, self.run.to_json())

    def _state(self) -> dict[str, Any]:
        """Return what exact resuming needs, in types that load without unpickling code."""
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": dataclasses.asdict(self.position),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def _load_state(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.position = Position(**state["position"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["cuda_rng"])
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be resumed from ({reason}); train anew into another folder") from None


def _overall(scores: dict[str, Score]) -> float | None:
    """Return the mean of the dev sets' WERs, each set counting the same; None where there is none."""
    return sum(score.wer for score in scores.values()) / len(scores) if scores else None


def _begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which ends its workers


def read_run(settings: dict[str, Any], folder: Path, output: Path, where: str) -> Run:
    """Build a run from the tables data, text, model and train; manifests are relative to `folder`.

    `[data] train` and `dev` are lists of PATH or PATH=WEIGHT, made absolute so that a run can be resumed from anywhere.
    InputError names unknown tables and settings.
    """
    unknown = settings.keys() - {"data", "text", "model", "train"}
    if unknown:
        raise InputError(f"{where}: unknown table [{min(unknown)}]; wanted: data, text, model, train")
    data = read_settings(DataConfig, settings.get("data", {}), f"{where} [data]")
    model = settings.get("model", {})
    if not isinstance(model, dict):
        raise InputError(f"{where} [model]: expected a table of settings, got {model!r}")
    model = dict(model)
    preset = model.pop("preset", "small")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"{where} [model]: preset is {preset!r}; wanted: {', '.join(PRESETS)}")
    return Run(
        train=tuple(_anchored(option, folder) for option in data.train),
        dev=tuple(_anchored(option, folder) for option in data.dev),
        output=output,
        model=read_settings(ModelConfig, {**PRESETS[preset], **model}, f"{where} [model]"),
        text=read_settings(TextConfig, settings.get("text", {}), f"{where} [text]"),
        settings=read_settings(TrainConfig, settings.get("train", {}), f"{where} [train]"),
    )


def _anchored(option: str, folder: Path) -> str:
    return str((folder / option).absolute())
