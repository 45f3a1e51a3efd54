"""The state of a training run, and its checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from focusasr.runtime.errors import InputError
from focusasr.runtime.files import written_aside

UNWRITABLE = (OSError, RuntimeError, SafetensorError)  # errors of the libraries that write a checkpoint


@dataclass
class TrainingState:
    """The state of a run: optimizer steps, batches read, and the best dev score so far."""

    step: int = 0
    batches: int = 0  # read by all processes together
    epoch: int = 0  # epoch of the start of the last step
    best_wer: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0  # of training, evaluation included
    audio_seconds: float = 0.0  # of audio used for training
    bad_steps: int = 0  # consecutive skipped steps, without a valid loss
    skipped_steps: int = 0  # total
    padded_seconds: float = 0.0  # of audio, padding counted
    waiting_seconds: float = 0.0  # of training, for data
    usual_loss: float | None = None  # attention loss, a moving mean
    first_wer: float | None = None  # dev WER before the first step
    due: bool = False  # an evaluation that failed, repeated first on resume

    @property
    def speed(self) -> float:
        """Return the seconds of audio per second, evaluation included."""
        return self.audio_seconds / max(self.seconds, 1e-9)

    @property
    def padding(self) -> float:
        """Return the share of padding in the computed frames."""
        return max(0.0, 1 - self.audio_seconds / self.padded_seconds) if self.padded_seconds else 0.0

    @property
    def waiting(self) -> float:
        """Return the share of time spent waiting for data."""
        return self.waiting_seconds / max(self.seconds, 1e-9)


@contextlib.contextmanager
def written_checkpoint(output: Path, name: str, step: int) -> Iterator[Path]:
    """Yield a folder that becomes the checkpoint `name` of a run; InputError if it cannot be written."""
    folder = output / name
    try:
        with written_aside(folder) as aside:
            yield aside
    except UNWRITABLE as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:150]
        kept = (output / "last").exists()
        then = "the one before is whole; make room there, then --resume" if kept else "free some space, and start again"
        raise InputError(f"{folder}: the checkpoint of step {step} cannot be written ({reason}); {then}") from None
