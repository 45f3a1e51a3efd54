"""One exact optimizer step from several batches, on accelerate.

A step's gradient is that of the mean over all its utterances and tokens, however they are divided into batches,
processes and chunks that fit the memory. Random numbers in the network follow from (seed, batch) alone, so that neither
resuming nor another number of processes changes them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from focusasr.audio.features import input_mels
from focusasr.model.losses import IGNORED, LossWeights, Size, joint_loss
from focusasr.model.transformer import Model
from focusasr.runtime.devices import Processes, is_out_of_memory
from focusasr.runtime.errors import SettingError
from focusasr.training.augment import apply_masks
from focusasr.training.batching import Batch, PlannedExample
from focusasr.training.finetune import freeze
from focusasr.training_config import TrainConfig

FIGURES = ("total", "attention", "ctc", "span", "seconds", "padded_seconds")
MOST_NAMED = 5  # utterances reported per skipped step


class StepResult(NamedTuple):
    """The result of one step over all processes: its losses and seconds by name, and the gradient's norm."""

    figures: dict[str, float]
    norm: float
    rows: list[tuple[float, PlannedExample]]  # this process's utterances with their own losses
    notes: list[str]  # on batches that were divided

    @property
    def finite(self) -> bool:
        """Return whether loss and gradient are finite."""
        return math.isfinite(self.norm) and math.isfinite(self.figures["total"])


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of optimizer step `step`, from 0: a linear warm-up, then half a cosine down to final_rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * share


def average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
    """Move averaged weights toward the current ones; faster in the first updates, of which `count` is the number."""
    warm = min(decay, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averaged, current, 1 - warm)


def make_optimizer(model: Model, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over all trained weights, with weight decay on matrices only."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.dim() > 1]
    vectors = [parameter for parameter in learning if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return accelerate's name for the precision; auto is bf16 on CUDA and fp32 elsewhere."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise SettingError("precision", "fp16", "fp32, or bf16 to save memory: the CPU has no fast path for fp16")
    return {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}[wanted]


def start_accelerator(settings: TrainConfig, device: torch.device) -> Accelerator:
    """Return the Accelerator: device, precision, and the peer processes if any."""
    precision = choose_precision(settings.precision, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")


class TrainStep:
    """A model in training: weights, optimizer, averaged weights, loss scaling."""

    def __init__(self, accelerator: Accelerator, model: Model, settings: TrainConfig, blank: int) -> None:
        freeze(model, settings.freeze)
        self.accelerator = accelerator
        self.settings = settings
        self.blank = blank
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        self.weights = LossWeights(
            settings.ctc_weight, settings.label_smoothing, settings.span_penalty, settings.intermediate_ctc
        )
        decay = functools.partial(average, settings.ema_decay)
        self.average = AveragedModel(model, device=accelerator.device, multi_avg_fn=decay)
        # No DistributedDataParallel: one process may divide a batch that does not fit its memory, others not.
        self.model: Model = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer: Any = accelerator.prepare_optimizer(make_optimizer(model, settings))
        self.most_frames: int | None = None  # of one chunk, known after a batch did not fit the memory

    @property
    def best_model(self) -> Model:
        """Return the model to evaluate and save: the averaged one if averaging is on."""
        return cast(Model, self.average.module) if self.settings.ema_decay > 0 else self.model

    def measure(self, batches: Sequence[Batch], first: int) -> StepResult:
        """Compute the gradient of a step's batches, this process's share, and clip it.

        `first` is the number of the step's first batch among all batches of all processes.
        """
        self.model.train()
        whole = self._size(batches)
        pieces = [(index, piece) for index, batch in enumerate(batches) for piece in self._fitting(batch)]
        notes: list[str] = []
        while True:
            pieces, results, note = self._try(pieces, first, whole)
            if note is None:
                break
            notes.append(note)
        if (scaler := self.accelerator.scaler) is not None:
            scaler.scale(torch.zeros((), device=self.accelerator.device))  # creates its scale, even without any loss
        self._sync()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        own = torch.tensor([figures for figures, _ in results], dtype=torch.float64).reshape(-1, len(FIGURES)).sum(0)
        figures = dict(zip(FIGURES, self._sum(own.tolist()), strict=True))
        return StepResult(figures, float(norm or 0.0), [row for _, rows in results for row in rows], notes)

    def _try(self, pieces: list[tuple[int, Batch]], first: int, whole: Size) -> Any:
        """Run all chunks; if one does not fit the memory, return them with that one divided, and a note."""
        results: list[Any] = []
        try:
            for index, piece in pieces:
                self._seed(first + index * self.processes.count + self.processes.rank, piece)
                results.append(self._backward(piece, whole))
            return pieces, results, None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)  # the other chunks are computed again: exact, and rare
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        place = len(results)
        index, piece = pieces[place]
        rows, seconds = len(piece.lengths), piece.padded_frames / 100
        if rows == 1:
            note = f"an utterance of {seconds:.1f} s does not fit the memory and is passed over; lower --max-seconds"
            return [*pieces[:place], *pieces[place + 1 :]], results, note
        self.most_frames = piece.padded_frames // 2
        halves = [(index, piece.rows(0, rows // 2)), (index, piece.rows(rows // 2, rows))]
        note = f"a batch of {seconds:.0f} s does not fit the memory; it and its like are cut (lower --batch-seconds)"
        return [*pieces[:place], *halves, *pieces[place + 1 :]], results, note

    def _fitting(self, batch: Batch) -> list[Batch]:
        """Divide a batch into chunks that are known to fit the memory."""
        if self.most_frames is None or batch.padded_frames <= self.most_frames:
            return [batch]
        rows = max(1, self.most_frames // batch.longest)
        return [
            batch.rows(start, min(start + rows, len(batch.lengths))) for start in range(0, len(batch.lengths), rows)
        ]

    def _seed(self, number: int, piece: Batch) -> None:
        """Seed dropout from the batch alone, independent of its process and of earlier batches."""
        entropy = [self.settings.seed, number, piece.items[0].seed[2]]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _backward(self, piece: Batch, whole: Size) -> tuple[list[float], list[tuple[float, PlannedExample]]]:
        there, config = piece.to(self.accelerator.device), self.model.config
        mel, lengths = input_mels(there.waveforms, there.samples, config)
        mel = apply_masks(mel, lengths, there.masks)  # like `log_mels` in float32, whatever the precision
        with self.accelerator.autocast():
            heard = self.model(mel, lengths, there.tokens, self.settings.intermediate_ctc > 0)
            losses = joint_loss(heard, there.targets, self.blank, self.weights, whole)
        self.accelerator.backward(losses.total)
        figures = torch.stack([part.detach() for part in losses[:4]]).tolist()
        rows = list(zip(losses.rows.tolist(), piece.items, strict=True))
        return [*figures, piece.seconds, piece.padded_frames / 100], rows

    def _size(self, batches: Sequence[Batch]) -> Size:
        tokens = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        size = Size(*self._sum([float(tokens), float(sum(len(batch.lengths) for batch in batches))]))
        return size._replace(tokens=max(1.0, size.tokens))

    def _sum(self, values: list[float]) -> list[float]:
        if self.processes.count == 1:
            return values
        single = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(single, "sum").tolist()

    def _sync(self) -> None:
        """Add up the gradients of all processes, including those with skipped batches, as zeros.

        In a single process, only fp16 needs the zeros: its scaler rejects a step without any gradient.
        """
        if self.processes.count == 1 and self.accelerator.scaler is None:
            return
        learning = [weights for weights in self.model.parameters() if weights.requires_grad]
        own = [torch.zeros_like(weights) if weights.grad is None else weights.grad for weights in learning]
        total: Any = self.accelerator.reduce(torch.cat([grad.flatten() for grad in own]), "sum")
        for weights, grad in zip(learning, total.split([weights.numel() for weights in learning]), strict=True):
            weights.grad = grad.view_as(weights)

    def apply(self) -> None:
        """Take the measured step."""
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.average.update_parameters(self.model)
        self.optimizer.zero_grad(set_to_none=True)

    def discard(self) -> None:
        """Skip the measured step; with fp16 the scale of the losses falls if it was too large."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """Return the state for exact resuming next to the weights of `best_model`, loadable without unpickling code."""
        scaler = self.accelerator.scaler
        return {
            **({"model": self.model.state_dict()} if self.best_model is not self.model else {}),
            "averaged": self.average.n_averaged,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load_state(self, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        """Restore the result of `state`, of this version or an earlier one, with the weights of `best_model`."""
        older = state.get("average", {})
        self.model.load_state_dict(state.get("model", best))
        self.average.module.load_state_dict(best)
        self.average.n_averaged.copy_(older["n_averaged"] if older else state["averaged"])
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # from the settings, like all the others
        if state.get("scaler") and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
