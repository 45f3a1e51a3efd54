"""Fine-tuning that keeps what its source does.

A Whisper model learns a new domain within minutes and forgets sentences as fast. Here a share of the training items are
recordings without transcripts, whose targets are the texts that the source model itself writes (Li & Hoiem 2016, with
the targets of Kim & Rush 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focusasr.audio.features import input_mels
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.losses import IGNORED
from focusasr.model.transformer import Model
from focusasr.runtime.console import pluralize
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.training.adapter import TaughtStep, greedy_texts, read_recordings
from focusasr.training.batching import Batch
from focusasr.training.dataset import Corpus
from focusasr.training.run import TrainingRun
from focusasr.training.step import StepResult, TrainStep
from focusasr.training.trainer import Trainer

TIMED = 0.5  # share of batches whose kept texts have timestamps, which fine-tuning forgets too


class KeepStep(TaughtStep):
    """One exact optimizer step, in which the source model writes the texts of the chosen corpora."""

    def measure(self, batches: Sequence[Batch], first: int) -> StepResult:
        """Compute the gradient of a step's batches, after the teacher has written its texts."""
        numbers = range(first + self.processes.rank, first + len(batches) * self.processes.count, self.processes.count)
        return super().measure([self.written(*one) for one in zip(batches, numbers, strict=True)], first)

    @torch.no_grad()
    def written(self, batch: Batch, number: int) -> Batch:
        """Return a batch with the teacher's texts; rows whose text fails have no target.

        `number` is that of the batch among those of all processes, which decides whether texts have timestamps.
        """
        without = torch.tensor([item.parts[0][0] in self.chosen for item in batch.items])
        rows = (without & ~batch.speechless).nonzero().flatten()
        if not len(rows):
            return batch
        there = batch.to(self.accelerator.device)
        samples = there.samples[rows]
        memory = self.teacher.encode(*input_mels(there.waveforms[rows, : samples.max()], samples, self.teacher.config))
        timed = np.random.default_rng([self.settings.seed, number]).random() < TIMED
        texts = dict(zip(rows.tolist(), greedy_texts(self.engine, self.tokenizer, memory, timed), strict=True))
        tokens, targets = list[Tensor](), list[Tensor]()
        for row in range(len(batch.items)):
            if row not in texts:
                tokens.append(batch.tokens[row])
                targets.append(batch.targets[row])
            elif (text := texts[row]) is None:
                tokens.append(batch.tokens[row])
                targets.append(torch.full_like(batch.targets[row], IGNORED))
            else:
                tokens.append(torch.tensor([*text.prompt, *text.tokens]))
                targets.append(torch.tensor([*[IGNORED] * (len(text.prompt) - 1), *text.tokens, self.tokenizer.end]))
        return batch._replace(
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.end),
            targets=pad_sequence(targets, batch_first=True, padding_value=IGNORED),
        )


class Keeper(Trainer):
    """A fine-tuning in progress that keeps what its source does."""

    def __init__(
        self, teacher: Checkpoint, run: TrainingRun, device: torch.device, resume: bool, source: Checkpoint | None
    ) -> None:
        self.teacher = teacher.model
        super().__init__(run, device, resume, source)

    def _read_corpora(self) -> list[Corpus]:
        labelled, prompt, seconds = super()._read_corpora(), self.tokenizer.prompt, self.run.settings.max_seconds
        kept = [read_recordings(option, prompt, seconds, self.findings) for option in self.run.keep]
        self.kept = frozenset(range(len(labelled), len(labelled) + len(kept)))
        return [*labelled, *kept]

    def summary(self) -> list[str]:
        """Return lines on the model, the data and the settings."""
        recordings = sum(len(self.corpora[number].utterances) for number in self.kept)
        line = f"targets of {pluralize(recordings, 'recording')} to keep: the texts of {self.run.settings.init_from}"
        return [*super().summary(), line]

    def _make_step(self, model: Model) -> TrainStep:
        assert isinstance(self.tokenizer, WhisperTokenizer)
        settings = self.run.settings
        return KeepStep(self.accelerator, model, settings, self.tokenizer, self.teacher, self.kept)
