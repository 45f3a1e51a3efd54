"""The training loop: manifests to a checkpoint folder, by a joint CTC/attention loss."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader

from focusasr.config import SAMPLE_RATE_HZ
from focusasr.evaluation.wer import Score
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.checkpoint_folder import WEIGHTS
from focusasr.model.torch_weights import read_torch
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json, write_errors
from focusasr.runtime.process import block_sigint, on_interrupt_message
from focusasr.runtime.settings import read_settings
from focusasr.text.normalize import apply_policy
from focusasr.text.tokenizer import train_tokenizer
from focusasr.training.augment import read_sounds
from focusasr.training.batching import (
    Batch,
    BatchSampler,
    PlannedExample,
    SpeechDataset,
    begin_worker,
    collate,
    with_possible_workers,
)
from focusasr.training.dataset import Corpus, Findings, read_corpus, read_texts, utterance_name, warn_duplicates
from focusasr.training.finetune import learn_only, remarks, style_remarks, warm_model, warm_tokenizer, within_window
from focusasr.training.logger import TrainingLog
from focusasr.training.run import (
    TrainingRun,
    changed_manifests,
    changes,
    check_place,
    finished,
    measured_before,
    provenance,
    with_plain_paths,
)
from focusasr.training.state import TrainingState, written_checkpoint
from focusasr.training.step import MOST_NAMED, StepResult, TrainStep, learning_rate, start_accelerator
from focusasr.training.validation import Measured, few_mels, focus, measure, model_card, overall_wer, read_dev_sets

MOST_BAD_STEPS = 20  # consecutive steps without a valid loss before training stops
SAVE_SECONDS = 600.0  # most training time that a killed run loses between evaluations
LOST_WER = 0.2  # beyond twice the WER before the first step
USUAL_STEPS = 50  # steps in the moving mean of the usual loss


class Trainer:
    """A training run in progress, with all its changing state."""

    def __init__(
        self, run: TrainingRun, device: torch.device, resume: bool = False, source: Checkpoint | None = None
    ) -> None:
        last = run.output / "last"
        check_place(run.output, resume)
        self.source = source
        torch.manual_seed(run.settings.seed)
        self.accelerator = start_accelerator(run.settings, device)
        before = load_checkpoint(last) if resume else None
        if source and not before:
            self.tokenizer = warm_tokenizer(source, run.text)
        else:
            self.tokenizer = before.tokenizer if before else train_tokenizer(read_texts(run.train), run.text)
        model_config = dataclasses.replace(run.model, vocabulary=self.tokenizer.size)
        self.run = dataclasses.replace(
            run, model=model_config, settings=with_possible_workers(within_window(run.settings, model_config))
        )
        begun = with_plain_paths(read_json(last / "config.json")) if resume else {}
        self.changes = changes(begun, self.run) if resume else []
        self.findings = Findings()
        self.corpora = self._read_corpora()
        self.sounds = read_sounds(run.settings)
        self.dev_sets = read_dev_sets(run.dev)
        warn_duplicates(self.corpora, [u for dev in self.dev_sets for u in dev.utterances], self.findings)
        self.made_with = provenance(self.corpora, run.dev)
        self.position = TrainingState()
        self.scores, self.saved = dict[str, Score](), time.monotonic()  # of the last evaluation; time of the last save
        model = warm_model(model_config, source.model) if source and not resume else Model(model_config)
        learn_only(model, run.settings)
        self.stepper = self._make_step(model)
        if before:
            with contextlib.suppress(TypeError, AttributeError, KeyError):  # another version's config: only printed
                self.scores = {name: Score.from_json(one) for name, one in before.metrics.get("dev", {}).items()}
            self._load_state(last / "trainer" / "state.pt", before.model.state_dict())
            self._promise()
            made_before = begun.get("made_with") or {}
            other_dev = changed_manifests(made_before, self.made_with, "dev")
            if other_dev or measured_before(begun) != list(self.run.dev):
                self.position.best_wer, self.position.evaluations_since_best = None, 0  # from another measure
            for manifest in changed_manifests(made_before, self.made_with, "data") + other_dev:
                self.findings.suspect["manifest has changed since the run began: not the same run"].append(manifest)

    def _make_step(self, model: Model) -> TrainStep:
        return TrainStep(self.accelerator, model, self.run.settings, self.tokenizer.blank)

    def _read_corpora(self) -> list[Corpus]:
        return self._read_manifests(self.run.train)

    def _read_manifests(self, options: Sequence[str]) -> list[Corpus]:
        read = functools.partial(
            read_corpus, tokenizer=self.tokenizer, model=self.run.model,
            max_seconds=self.run.settings.max_seconds, found=self.findings,
        )  # fmt: skip
        corpora = [read(option) for option in options]
        for corpus in corpora:
            if not corpus.utterances:
                reasons = "; ".join(self.findings.lines()) or "it has no lines"
                raise InputError(f"{corpus.name}: no utterance can be used: {reasons}")
        return corpora

    def summary(self) -> list[str]:
        """Return lines on the model, the data and the settings."""
        model = self.run.model
        shape = f"width {model.width}, {model.heads} heads, {model.encoder_layers} + {model.decoder_layers} layers"
        millions = self.stepper.best_model.parameter_count() / 1e6
        lines = [f"{millions:.1f} M weights: {model.attention} attention, {shape}, {model.vocabulary} tokens"]
        for corpus in self.corpora:
            hours = corpus.seconds / 3600
            lines.append(f"{corpus.name}: {len(corpus.utterances)} utterances, {hours:.2f} h, weight {corpus.weight:g}")
        if self.source:
            texts = [one.text for corpus in self.corpora for one in corpus.utterances if one.text]
            lines += style_remarks([apply_policy(text, self.tokenizer.policy) for text in texts], self.source)
        lines += self.changes + remarks(self.run.settings, model, self.tokenizer, bool(self.dev_sets))
        batches = self._plan().epoch(0)
        held = sum(item.seconds for batch in batches for item in batch)
        window = (model.window_samples or 0) / SAMPLE_RATE_HZ
        padded = sum(len(batch) * max(window, *(item.seconds for item in batch)) for batch in batches)
        lines.append(
            f"{len(batches)} batches an epoch, {held / 3600:.1f} h, {100 * max(0.0, 1 - held / padded):.0f} % padding"
        )
        count = self.stepper.processes.count
        if count > 1 or self.run.settings.accumulate > 1:
            batches_each = self.run.settings.accumulate
            lines.append(f"each step: {count} processes x {batches_each} batches, as one batch of all of them")
        return lines + self.findings.lines()

    def loader(self) -> DataLoader:
        """Return the batches from the present position on, loaded and augmented by worker processes."""
        settings = self.run.settings
        heard, between = self.run.model, self.tokenizer.separator
        examples = SpeechDataset(self.corpora, settings, heard.mel_bands, between, self.sounds, heard.window_samples)
        workers: Any = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if settings.workers else {}
        return DataLoader(
            examples,
            batch_sampler=BatchSamplerShard(
                self._plan(self.position.batches),
                self.accelerator.num_processes,
                self.accelerator.process_index,
                even_batches=False,
            ),
            collate_fn=functools.partial(collate, end=self.tokenizer.end),
            num_workers=settings.workers,
            generator=torch.Generator().manual_seed(settings.seed),
            worker_init_fn=begin_worker,
            pin_memory=self.accelerator.device.type == "cuda",
            **workers,
        )

    @contextlib.contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """Yield the loader's batches; its workers end with the block."""
        with block_sigint() if self.run.settings.workers else contextlib.nullcontext():
            batches: Any = iter(self.loader())
        try:
            yield batches
        finally:
            if self.run.settings.workers:
                with contextlib.suppress(RuntimeError):  # error of a worker that Ctrl-C ended first
                    batches._shutdown_workers()  # else they live as long as any reference to `batches`

    def _plan(self, first: int = 0) -> BatchSampler:
        room = self.run.model.text_context - len(self.tokenizer.prompt) + 1
        window = self.run.model.window_samples
        shortest = window / SAMPLE_RATE_HZ if window else 1.0
        return BatchSampler(self.corpora, self.run.settings, room, first, shortest)

    def fit(self, log: TrainingLog) -> None:
        """Train until the last step, evaluating and saving on the way."""
        settings = self.run.settings
        if self.accelerator.is_main_process:
            self._write_findings()
        first = self.position.step
        if not first:
            on_interrupt_message("no checkpoint is written yet; the same command starts again from the beginning")
        log.go_on(self.position.step)
        if self.position.due or (first == 0 and settings.init_from and self.dev_sets):
            self._evaluate(log)
        with self.batches() as batches:
            while self.position.step < settings.steps and not self._out_of_patience():
                began = time.perf_counter()
                figures = self._step(batches, log)
                self.position.seconds += time.perf_counter() - began
                log.step(self.position, figures, self.stepper.optimizer.param_groups[0]["lr"])
                if self.position.step % settings.evaluate_every == 0 or self.position.step == settings.steps:
                    self._evaluate(log)
                elif time.monotonic() - self.saved > SAVE_SECONDS and not self.position.bad_steps:
                    self._save(self.scores, better=False)
        if self.position.step == first:
            log.say(finished(self.run, first))

    def _write_findings(self) -> None:
        path = self.run.output / "findings.jsonl"
        if self.findings.lines() or path.exists():
            with write_errors(path, "choose another --output-dir"):
                self.findings.write(path)

    def _out_of_patience(self) -> bool:
        return 0 < self.run.settings.patience <= self.position.evaluations_since_best

    def _step(self, batches: Iterator[Batch], log: TrainingLog) -> dict[str, float]:
        """Make one optimizer step from `accumulate` batches of every process; return its losses by name."""
        position, settings = self.position, self.run.settings
        began = time.perf_counter()
        group = [next(batches) for _ in range(settings.accumulate)]
        position.waiting_seconds += time.perf_counter() - began
        for batch in group:
            log.broken(batch.broken)
        self.stepper.set_rate(learning_rate(position.step, settings))
        measured = self.stepper.measure(group, position.batches)
        for note in measured.notes:
            log.say(f"step {position.step + 1}: {note}")
        position.batches += settings.accumulate * self.accelerator.num_processes
        position.epoch = group[0].position[0]
        position.audio_seconds += measured.figures["seconds"]
        position.padded_seconds += measured.figures["padded_seconds"]
        self._apply(measured, log)
        return measured.figures

    def _apply(self, measured: StepResult, log: TrainingLog) -> None:
        """Take the step, or skip and count it if its loss is invalid; InputError after too many in a row."""
        position = self.position
        position.step += 1
        trouble = self._trouble(measured)
        if trouble is None:
            self.stepper.apply()
            position.bad_steps = 0
            usual = position.usual_loss
            loss = measured.figures["attention"]
            position.usual_loss = loss if usual is None else usual + (loss - usual) / USUAL_STEPS
            return
        self.stepper.discard()
        position.bad_steps += 1
        position.skipped_steps += 1
        named = self._offenders(measured)
        log.say(f"step {position.step}: skipped, {trouble}; worst: {named}")
        if position.bad_steps >= MOST_BAD_STEPS:
            raise InputError(
                f"step {position.step}: {MOST_BAD_STEPS} steps in a row skipped ({trouble}), the last with {named}; "
                "look at these utterances, or lower --learning-rate, then --resume from the last checkpoint"
            )

    def _trouble(self, measured: StepResult) -> str | None:
        """Return the reason for which a step's loss is invalid, or None; the same in every process.

        An explosion is detected in the attention loss, per token: CTC's loss grows with the length of silences by
        design.
        """
        loss, usual, most = measured.figures["attention"], self.position.usual_loss, self.run.settings.explosion
        if not measured.figures["seconds"]:
            return "none of its recordings can be read"
        if not math.isfinite(measured.figures["total"]):
            return f"its loss is {measured.figures['total']}"
        if not measured.finite:
            return "its gradient is not finite"
        if most and usual is not None and loss > most * usual:
            return f"its attention loss is {loss:.3g} where {usual:.3g} is usual"
        return None

    def _offenders(self, measured: StepResult) -> str:
        """Return the utterances of a step with the highest losses, not finite ones first, over all processes."""
        rows = self.stepper.processes.gather([(loss, self._place(item)) for loss, item in measured.rows])
        rows.sort(key=lambda row: math.inf if math.isnan(row[0]) else row[0], reverse=True)
        bad = [row for row in rows if not math.isfinite(row[0])] or rows
        return ", ".join(f"{place} (loss {loss:.3g})" for loss, place in bad[:MOST_NAMED])

    def _place(self, item: PlannedExample) -> str:
        return " + ".join(utterance_name(self.corpora[corpus].utterances[index]) for corpus, index in item.parts)

    def _measures(self, model: Model) -> dict[str, Measured]:
        normalizer = self.run.settings.dev_normalizer
        return {
            dev.name: measure(model, self.tokenizer, dev, self.stepper.processes, normalizer) for dev in self.dev_sets
        }

    def _overall(self, scores: dict[str, Score]) -> float | None:
        """Return the figure by which the best checkpoint is chosen."""
        return overall_wer(scores)

    def _evaluate(self, log: TrainingLog) -> None:
        began = time.perf_counter()
        model, position = self.stepper.best_model, self.position
        try:
            measures = self._measures(model)
        except InputError:
            position.due = True
            self._save(self.scores, better=False)
            raise
        position.due = False
        for measured in measures.values():
            log.broken(measured.broken)
        log.broken(self.stepper.processes.gather(sorted(log.broken_seen)))  # training audio of all processes
        scores = {name: measured.score for name, measured in measures.items()}
        overall, best = self._overall(scores), position.best_wer
        better = overall is None or best is None or overall < best
        position.best_wer = overall if better else best
        position.first_wer = overall if position.step == 0 else position.first_wer
        position.evaluations_since_best = 0 if better else position.evaluations_since_best + 1
        position.seconds += time.perf_counter() - began
        log.evaluation(position, scores, overall, better)
        for name, measured in measures.items():
            log.samples(position.step, name, measured.references, measured.hypotheses)
        if self.accelerator.is_main_process:
            for dev in self.dev_sets[:1]:
                log.focus(position.step, focus(model, few_mels(dev, model.config)))
        self._save(scores, better)
        if self.accelerator.is_main_process:
            log.draw()
        model.train()
        self._check_dev(overall)

    def _check_dev(self, overall: float | None) -> None:
        """Raise InputError if the dev WER is far above that before the first step."""
        first = self.position.first_wer
        if first is not None and overall is not None and overall > 2 * first + LOST_WER:
            rates = f"dev WER rose from {100 * first:.1f} to {100 * overall:.1f} %"
            raise InputError(
                f"step {self.position.step}: {rates}, so training has destroyed what the source could do; "
                f"lower --learning-rate ({self.run.settings.learning_rate:g}); best/ holds the best checkpoint so far"
            )

    def _save(self, scores: dict[str, Score], better: bool) -> None:
        """Write best/, if it is better, and then last/: after a kill between them, the run resumes before both."""
        self.scores, self.saved = scores, time.monotonic()
        if not self.accelerator.is_main_process:
            return
        dev = {name: score.to_json() for name, score in scores.items()}
        metrics = {"position": dataclasses.asdict(self.position), "dev": dev}
        model = self.stepper.best_model
        card = model_card(self.run.output.name, model, self.run.to_json(), scores)
        whole = Checkpoint(model, self.tokenizer, metrics, card)
        written: Path | None = None
        for name in ("best", "last") if better else ("last",):
            with written_checkpoint(self.run.output, name, self.position.step) as aside:
                save_checkpoint(aside, whole, self.run.to_json(), self.made_with, weights=written)
                if name == "last":
                    (aside / "trainer").mkdir()
                    # In types that load without unpickling code; random numbers follow from seed and position.
                    state = {**self.stepper.state(), "position": metrics["position"]}
                    torch.save(state, aside / "trainer" / "state.pt")
            written = self.run.output / name / WEIGHTS
        self._promise()

    def _promise(self) -> None:
        on_interrupt_message(
            f"the checkpoint of step {self.position.step} is whole; the same command with --resume continues from it"
        )

    def _load_state(self, path: Path, best: dict[str, torch.Tensor]) -> None:
        try:
            state = read_torch(path)
            self.stepper.load_state(state, best)
            self.position = read_settings(TrainingState, state["position"], "position")
        except Exception as error:  # PyTorch's loader and its optimizer raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be resumed from ({reason}); train again into another folder") from None
