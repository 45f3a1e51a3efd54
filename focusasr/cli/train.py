"""The command `train`: manifests to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from focusasr.cli.options import DeviceOption, LocalFilesOption, ThreadsOption, with_settings
from focusasr.cli.run_request import RunRequest, carry_through, fit
from focusasr.config import ModelConfig, TextConfig
from focusasr.runtime.errors import UsageError
from focusasr.runtime.settings import require_use
from focusasr.training.run import TrainingRun
from focusasr.training_config import TrainConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
    from focusasr.training.logger import TrainingLog
    from focusasr.training.trainer import Trainer


@with_settings(TrainConfig, ModelConfig, TextConfig)
def train(
    given: dict[type, dict[str, Any]],
    manifests: Annotated[
        list[str] | None, typer.Argument(help="training manifests, each PATH or PATH=WEIGHT", show_default=False)
    ] = None,
    dev: Annotated[list[str] | None, typer.Option(help="manifest to evaluate on (repeatable)")] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="recordings that the Whisper model of --init-from shall transcribe as before, without transcripts: "
            "a manifest (PATH or PATH=WEIGHT), file, folder or glob (repeatable)"
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="output folder for best/ and last/")] = Path(
        "runs/focusasr"
    ),
    config: Annotated[Path | None, typer.Option(help="TOML file with the tables data, text, model and train")] = None,
    preset: Annotated[
        Literal["tiny", "small", "base"] | None,
        typer.Option(help="model size: about 2, 8 or 25 M parameters (default small)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --output-dir where it stopped")] = False,
    find_batch: Annotated[
        bool,
        typer.Option("--find-batch", help="print the largest --batch-seconds of this machine, without training"),
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="print a --learning-rate and draw find_lr.png, without training"),
    ] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Train a recognizer on manifests; command-line options override the TOML file."""
    from focusasr.training.finetune import find_source

    given[ModelConfig] |= {"preset": preset} if preset else {}
    request = RunRequest(given, {"train": manifests, "dev": dev, "keep": keep}, config, output_dir, resume)
    tables = request.tables()
    if not tables["data"].get("train"):
        raise UsageError("give a training manifest, or --config with [data] train")
    last = output_dir / "last" if resume else None
    source = find_source(tables, request.folder, last, local_files_only)
    work = work_of(find_batch, find_lr)
    chosen, line = request.start(device, threads)
    run = request.resolve(tables, source)
    origin = find_source(tables, request.folder, None, local_files_only) if resume and run.keep else source
    carry_through(request, lambda: trainer_of(run, chosen, resume, source, origin), [line], work)


def work_of(find_batch: bool, find_lr: bool) -> Callable[[Trainer, TrainingLog], Path | float]:
    """Return the training, or the search for a value instead; UsageError for two of them."""
    if find_batch and find_lr:
        raise UsageError("--find-batch and --find-lr cannot be combined. Use one of them.")
    from focusasr.training import tuner

    return tuner.find_batch if find_batch else tuner.find_learning_rate if find_lr else fit


def trainer_of(
    run: TrainingRun, device: torch.device, resume: bool, source: Checkpoint | None, origin: Checkpoint | None
) -> Trainer:
    """Return the trainer; `origin` is the model whose texts are targets if there are recordings to keep.

    UsageError if that is no Whisper model.
    """
    from focusasr.training.keep import Keeper
    from focusasr.training.trainer import Trainer

    if not (resume or source):  # which have their tokens
        require_use(run.text, "vocabulary_size", "tokens", "bpe")
    if not run.keep:
        return Trainer(run, device, resume, source)
    if origin is None or origin.whisper is None:
        found = "the run starts from no model" if origin is None else f"{run.settings.init_from} is no Whisper model"
        remedy = "Name one with --init-from, or leave --keep out and add manifests of other speech."
        raise UsageError(f"--keep {run.keep[0]}: {found}. {remedy}")
    return Keeper(origin, run, device, resume, source)
