"""Searches for the largest batch that fits and for a learning rate (Smith 2015)."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from focusasr.audio.features import frame_count
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.devices import memory_gigabytes
from focusasr.runtime.errors import InputError
from focusasr.training.augment import NO_MASKS, stack_masks
from focusasr.training.batching import Batch, PlannedExample
from focusasr.training.logger import TrainingLog, draw_rates
from focusasr.training.step import StepResult, TrainStep
from focusasr.training.trainer import MOST_BAD_STEPS, Trainer

LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
RATE_STEPS = 100
SMOOTHING = 0.9  # of the moving mean of losses
OUTLIERS = 5  # losses in a median before smoothing: silence has a high loss at first
DIVERGED = 3.0  # times the lowest loss so far, which ends the search
SAFE_SHARE = 0.8  # of the largest batch that fits: texts differ, and memory is fragmented
SMALLEST_SECONDS = 5.0
LONGEST_STEP_SECONDS = 20.0
CLOSE_ENOUGH = 0.15  # relative gap between a batch that fits and one that does not
TOKENS_PER_SECOND = 15  # fast speech, in characters per second
CONTAINER_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def find_learning_rate(trainer: Trainer, log: TrainingLog) -> float:
    """Return a learning rate from losses at step by step rising rates; the curve is drawn in find_lr.png.

    InputError if the loss falls at no rate.
    """
    rates: list[float] = []
    raw: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    with trainer.batches() as batches:
        for step in range(RATE_STEPS):
            rate = LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (step / (RATE_STEPS - 1))
            group = [next(batches) for _ in range(trainer.run.settings.accumulate)]
            trainer.stepper.set_rate(rate)
            measured = _scaled(trainer.stepper, group, step * len(group) * trainer.stepper.processes.count)
            if not measured.finite:
                break
            trainer.stepper.apply()
            raw.append(measured.figures["total"])
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * statistics.median(raw[-OUTLIERS:])
            rates.append(rate)
            losses.append(smooth / (1 - SMOOTHING ** (step + 1)))
            log.say(f"{step + 1:4d} of {RATE_STEPS}: rate {rate:.1e}, loss {losses[-1]:.3f}")
            if losses[-1] > DIVERGED * min(losses):
                break
    suggested = suggest(rates, losses)
    if log.main:
        picture = trainer.run.output / "find_lr.png"
        draw_rates(rates, losses, suggested, picture)
        log.say(f"curve: {picture}")
    return suggested


def _scaled(stepper: TrainStep, group: Sequence[Batch], first: int) -> StepResult:
    """Measure a step; with fp16 repeatedly, at a lower scale of the losses, until its gradient is finite."""
    for _ in range(MOST_BAD_STEPS):
        measured = stepper.measure(group, first)
        if measured.finite or stepper.accelerator.scaler is None or not math.isfinite(measured.figures["total"]):
            break
        stepper.discard()
    return measured


def suggest(rates: list[float], losses: list[float]) -> float:
    """Return a rate from smoothed losses at rising rates, to two digits; InputError if the loss never falls.

    It is the geometric mean of two rules of thumb: the rate at which the loss falls fastest, which is too low if the
    first steps are easy, and a tenth of the rate with the lowest loss, which is too high without warm-up.
    """
    lowest = min(range(len(losses)), key=losses.__getitem__) if losses else 0
    reach = 3  # points to either side, against outliers
    slopes = {
        place: losses[place + reach] - losses[place - reach]
        for place in range(reach, min(lowest, len(losses) - 1 - reach) + 1)
    }
    falling = [place for place, slope in slopes.items() if slope < 0]
    if not falling:
        raise InputError("the loss falls at no learning rate; look at the manifest, or give --learning-rate 1e-3")
    steepest = rates[min(falling, key=slopes.__getitem__)]
    return float(f"{math.sqrt(steepest * rates[lowest] / 10):.1e}")


def find_batch(trainer: Trainer, log: TrainingLog) -> float:
    """Return the seconds of audio of the largest batch that fits the memory, less a margin, from real steps.

    The size of batches of the longest items is doubled until one does not fit, then bisected. If steps become long
    first, as on a CPU, the fastest size is returned. InputError if none fits. The weights do not change.
    """
    trial = BatchTrial(trainer)
    fits, fails = 0.0, math.inf
    speeds: dict[float, float] = {}
    seconds = SMALLEST_SECONDS
    while fails - fits > CLOSE_ENOUGH * fits:
        took = trial.run(seconds)
        if took is None:
            log.say(f"{seconds:7.0f} s a batch: does not fit")
            fails = seconds
        else:
            log.say(f"{seconds:7.0f} s a batch: {seconds / took:.0f} h/h, {took:.1f} s a step")
            fits = seconds
            speeds[seconds] = seconds / took
            if took > LONGEST_STEP_SECONDS and fails == math.inf:
                fastest = max(speeds, key=speeds.__getitem__)
                log.say(f"the memory may hold more, but steps would be long; of these {fastest:g} s is the fastest")
                return fastest
        if not fits and fails <= SMALLEST_SECONDS:
            raise InputError(f"not even {SMALLEST_SECONDS:g} s of audio fit the memory; take a smaller --preset")
        seconds = 2 * seconds if fails == math.inf else (fits + fails) / 2
    return float(f"{SAFE_SHARE * fits:.2g}")


class BatchTrial:
    """Steps of batches of noise with the longest audio and texts in the training data, which need most memory."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.before = used_bytes()
        self.bytes_per_frame = 0.0
        lengths = [utterance.duration or 0.0 for corpus in trainer.corpora for utterance in corpus.utterances]
        if trainer.run.settings.join:
            lengths.append(min(trainer.run.settings.join_seconds, trainer.run.settings.max_seconds))
        self.longest = max(1.0, *lengths)

    def run(self, seconds: float) -> float | None:
        """Return the wall seconds of one step with `seconds` of audio; None if it does not fit the memory."""
        batch = self.batch(seconds)
        stepper = self.trainer.stepper
        wanted = batch.padded_frames * self.bytes_per_frame * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if any(stepper.processes.gather([wanted > free_bytes()])):  # Linux would kill the process, not the step
            return None
        began = time.perf_counter()
        cut = stepper.measure([batch], 0).notes
        took = time.perf_counter() - began
        stepper.discard()
        stepper.most_frames = None
        self.bytes_per_frame = max(0.0, used_bytes() - self.before) / batch.padded_frames
        seen = stepper.processes.gather([math.inf if cut else took])  # the same decision in all processes
        return max(seen) if max(seen) < math.inf else None

    def batch(self, seconds: float) -> Batch:
        """Return a batch of noise of that many seconds."""
        model = self.trainer.run.model
        window = model.window_samples
        longest = window / SAMPLE_RATE_HZ if window else min(self.longest, seconds)
        rows, samples = max(1, int(seconds / longest)), int(longest * SAMPLE_RATE_HZ)
        draw = torch.Generator().manual_seed(0)
        width = min(model.text_context - 1, int(longest * TOKENS_PER_SECOND))
        tokens = torch.randint(4, max(5, model.vocabulary), (rows, max(1, width)), generator=draw)
        waveforms = torch.randn(rows, samples, generator=draw)
        items = [PlannedExample(((0, 0),), longest, (0, 0, row), (0, 0)) for row in range(rows)]
        counts, frames = torch.full((rows,), samples), torch.full((rows,), frame_count(samples))
        masks, speechless = stack_masks([NO_MASKS] * rows), torch.zeros(rows, dtype=torch.bool)
        return Batch(waveforms, counts, masks, frames, tokens, tokens, items, [], speechless)


def used_bytes() -> float:
    """Return the peak memory of this process on the CPU; on a GPU it is not needed, since allocation fails there."""
    return 1e9 * memory_gigabytes()


def free_bytes() -> float:
    """Return the free memory of a CPU machine within its container's limit; infinite on a GPU."""
    if torch.cuda.is_available():
        return math.inf
    import psutil

    left = float(psutil.virtual_memory().available)
    for limit, used in CONTAINER_FILES:
        if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
            left = min(left, float(most) - float(used.read_text()))
    return left
