"""Batches that do not fit are cut and noted; a batch and a learning rate are found."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from focusasr.audio.features import log_mel, stack
from focusasr.config import ModelConfig
from focusasr.runtime.devices import Processes
from focusasr.runtime.errors import InputError
from focusasr.training import step as stepper
from focusasr.training import tuner
from focusasr.training.augment import Masks
from focusasr.training.batching import Batch
from focusasr.training.finetune import freeze
from focusasr.training.logger import TrainingLog
from focusasr.training.run import TrainingRun
from focusasr.training.step import TrainStep
from focusasr.training.trainer import Trainer
from focusasr.training.tuner import BatchTrial, find_batch, find_learning_rate, suggest
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import TINY, write_song_book

TEXTS = ["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face"]
SETTINGS = TrainConfig(steps=2, evaluate_every=2, batch_seconds=20, workers=0, join=0, silence=0, learning_rate=0.01)


def trainer_in(folder: Path, **model: Any) -> Trainer:
    songs = write_song_book(folder, TEXTS)
    config = ModelConfig(**{**TINY, **model})  # type: ignore[arg-type]
    return Trainer(TrainingRun((str(songs),), (), folder / "run", config, settings=SETTINGS), torch.device("cpu"))


def with_log(trainer: Trainer) -> tuple[TrainingLog, io.StringIO]:
    shown = io.StringIO()
    return TrainingLog(trainer.run.output, trainer.run.settings, Console(file=shown, width=200)), shown


def memory_for(monkeypatch: pytest.MonkeyPatch, frames: int, kind: type[RuntimeError]) -> list[int]:
    """Let the loss of larger pieces fail as torch does where memory ends; return the sizes of those that fit."""
    fitted: list[int] = []
    honest = stepper.joint_loss

    def limited(heard: Any, targets: Any, *rest: Any) -> Any:
        size = len(targets) * heard.memory.states.shape[1] * 4
        if size > frames:
            raise kind("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory: CUDA out of memory")
        fitted.append(size)
        return honest(heard, targets, *rest)

    monkeypatch.setattr(stepper, "joint_loss", limited)
    return fitted


def first_batch(trainer: Trainer) -> Batch:
    with trainer.batches() as batches:
        return next(batches)


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError]
) -> None:
    trainer = trainer_in(tmp_path)
    batch = first_batch(trainer)
    assert len(batch.lengths) == 6
    whole = trainer.stepper.measure([batch], 0)
    wanted = [parameter.grad.clone() for parameter in trainer.stepper.model.parameters()]
    trainer.stepper.discard()
    fitted = memory_for(monkeypatch, batch.padded_frames // 2, kind)
    cut = trainer.stepper.measure([batch], 0)
    assert len(cut.notes) == 1 and "does not fit the memory; it and its like are cut" in cut.notes[0]
    assert len(fitted) == 2
    assert [item for _, item in cut.rows] == batch.items
    for name in ("total", "attention", "ctc", "span", "seconds"):
        assert cut.figures[name] == pytest.approx(whole.figures[name], rel=1e-5)
    for parameter, gradient in zip(trainer.stepper.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    trainer.stepper.discard()
    assert trainer.stepper.measure([batch], 1).notes == [], "the next of its like is cut before it fails"


def test_training_goes_on_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    monkeypatch.setattr("focusasr.training.logger.draw_curves", lambda *_: None)
    longest = max(int(length) for length in first_batch(trainer).lengths)
    memory_for(monkeypatch, longest - 8, RuntimeError)  # the longest song alone is too much
    log, shown = with_log(trainer)
    with log:
        trainer.fit(log)
    assert trainer.position.step == 2
    assert f"an utterance of {longest / 100:.1f} s does not fit the memory and is passed over" in shown.getvalue()
    assert (trainer.run.output / "last").is_dir()


def test_other_errors_are_no_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(stepper, "joint_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.stepper.measure([first_batch(trainer)], 0)


def test_the_model_hears_float32_features_under_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    batch = first_batch(trainer)
    rows, bands = len(batch.lengths), trainer.run.model.mel_bands
    stripes = torch.tensor([[[0, 5]]] * rows)
    hiding = Masks(torch.ones(rows), stripes, torch.zeros(rows, 1, 2, dtype=torch.long))
    heard: list[torch.Tensor] = []
    trainer.stepper.model.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    trainer.stepper.measure([batch._replace(masks=hiding)], 0)
    (mel,) = heard
    waves = [wave[:size] for wave, size in zip(batch.waveforms, batch.samples, strict=True)]
    plain, lengths = stack([log_mel(wave, bands) for wave in waves])
    assert mel.dtype == torch.float32 and torch.equal(lengths, batch.lengths)
    torch.testing.assert_close(mel[..., 5:], plain[..., 5:], rtol=0, atol=1e-5)
    for row, whole, length in zip(mel, plain, lengths, strict=True):
        torch.testing.assert_close(row[:length, :5], whole[:length].mean().expand(int(length), 5))


def test_a_trial_fills_the_window_where_there_is_one(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, positions="absolute", audio_context=50)
    window = trainer.run.model.window_samples
    assert window == 32_000
    batch = BatchTrial(trainer).batch(20)
    assert (len(batch.lengths), batch.longest, batch.padded_frames) == (10, 200, 2000)
    assert trainer.stepper.measure([batch], 0).figures["padded_seconds"] == 20


def test_where_steps_become_long_the_fastest_batch_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    took = {5.0: 0.5, 10.0: 0.9, 20.0: 0.5, 40.0: 1.2, 80.0: 25.0}
    monkeypatch.setattr(BatchTrial, "run", lambda _, seconds: took[seconds])
    log, shown = with_log(trainer)
    assert find_batch(trainer, log) == 20.0
    assert "the memory may hold more, but steps would be long; of these 20 s is the fastest" in shown.getvalue()


@pytest.mark.parametrize("largest", [7.0, 40.0, 333.0])
def test_the_largest_batch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    trainer = trainer_in(tmp_path)
    monkeypatch.setattr(BatchTrial, "run", lambda _, seconds: 0.1 if seconds <= largest else None)
    log, shown = with_log(trainer)
    found = find_batch(trainer, log)
    assert largest * tuner.SAFE_SHARE * 0.8 <= found <= largest * tuner.SAFE_SHARE * 1.01
    assert "does not fit" in shown.getvalue()
    monkeypatch.setattr(BatchTrial, "run", lambda *_: None)
    with pytest.raises(InputError, match="not even 5 s of audio fit"):
        find_batch(trainer, log)


def test_a_trial_is_a_real_step_that_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path)
    before = [parameter.clone() for parameter in trainer.stepper.model.parameters()]
    trial = BatchTrial(trainer)
    batch = trial.batch(20)
    assert 18 <= batch.seconds <= 20
    assert trial.run(20) > 0
    memory_for(monkeypatch, 500, RuntimeError)
    assert trial.run(20) is None
    assert trainer.stepper.most_frames is None
    monkeypatch.setattr(tuner, "free_bytes", lambda: 0.0)
    trial.bytes_per_frame = 1.0
    assert trial.run(20) is None
    for parameter, value in zip(trainer.stepper.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None


def test_a_learning_rate_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "RATE_STEPS", 30)
    trainer = trainer_in(tmp_path)
    log, _ = with_log(trainer)
    found = find_learning_rate(trainer, log)
    assert 1e-5 < found < 0.1
    assert (trainer.run.output / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert not (trainer.run.output / "last").exists(), "training can begin in the same folder"


def scaled_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Return a trainer in fp16, whose losses are scaled, on a CPU, where the command refuses it for being slow."""

    def start(settings: TrainConfig, device: torch.device) -> Accelerator:
        accelerator = stepper.start_accelerator(settings, device)
        monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**60)
        return accelerator

    monkeypatch.setattr("focusasr.training.trainer.start_accelerator", start)
    return trainer_in(folder)


def test_fp16_bears_a_step_without_any_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = scaled_trainer(tmp_path, monkeypatch)
    batch = first_batch(trainer)
    memory_for(monkeypatch, 0, RuntimeError)
    measured = trainer.stepper.measure([batch], 0)
    assert (measured.norm, measured.rows, len(measured.notes)) == (0.0, [], 11)  # cut to single ones, and these left
    trainer.stepper.discard()
    trainer.stepper.measure([batch], 1)
    trainer.stepper.apply()


def test_a_learning_rate_is_found_once_fp16_has_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "RATE_STEPS", 20)
    trainer = scaled_trainer(tmp_path, monkeypatch)
    assert trainer.accelerator.scaler.get_scale() == 2.0**60
    monkeypatch.setattr(tuner, "MOST_BAD_STEPS", 100)
    log, shown = with_log(trainer)
    assert 1e-6 < find_learning_rate(trainer, log) < 1
    assert "  20 of 20: rate" in shown.getvalue()
    assert trainer.accelerator.scaler.get_scale() < 2.0**30


def test_several_processes_try_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sister process found too large, or slow, counts for all: else one would wait for the other's gradient."""
    trainer = trainer_in(tmp_path)
    trial = BatchTrial(trainer)
    sister: list[Any] = []
    monkeypatch.setattr(Processes, "gather", lambda _, mine: [*mine, sister.pop(0)])
    sister += [False, 33.0]
    assert trial.run(20) == 33.0
    sister += [False, math.inf]
    assert trial.run(20) is None
    sister += [True]
    assert trial.run(20) is None


def test_a_suggestion_from_a_known_curve() -> None:
    rates = [10 ** (-6 + place / 10) for place in range(61)]
    losses = [5 - 3 / (1 + math.exp(-4 * (math.log10(rate) + 4))) + 20 * max(0, rate - 0.1) for rate in rates]
    assert suggest(rates, losses) == pytest.approx(math.sqrt(1e-4 * 1e-1 / 10), rel=0.2)
    with pytest.raises(InputError, match="falls at no learning rate"):
        suggest(rates, [1.0 + rate for rate in rates])
    with pytest.raises(InputError, match="falls at no learning rate"):
        suggest([], [])


def test_the_engine_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision is 'fp16'"):
        stepper.choose_precision("fp16", torch.device("cpu"))
    assert stepper.choose_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(InputError, match="freeze is 2; expected: 0 to 1"):
        freeze(trainer_in(tmp_path).stepper.model, 2)


def test_frozen_layers_keep_their_weights(tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, TEXTS)
    settings = TrainConfig(steps=2, batch_seconds=20, workers=0, learning_rate=0.01, freeze=1)
    run = TrainingRun(
        (str(songs),), (), tmp_path / "run", ModelConfig(**{**TINY, "encoder_layers": 2}), settings=settings
    )  # type: ignore[arg-type]
    trainer = Trainer(run, torch.device("cpu"))
    frozen: TrainStep = trainer.stepper
    before = {name: value.clone() for name, value in frozen.model.named_parameters()}
    frozen.measure([first_batch(trainer)], 0)
    frozen.apply()
    still = {name for name, value in frozen.model.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith(("encoder.stem.", "encoder.blocks.0."))}
