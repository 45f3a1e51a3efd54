"""The command `adapt`: a Whisper model for audio of its own length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from focusasr.cli.options import DeviceOption, LocalFilesOption, ThreadsOption, with_settings
from focusasr.cli.run_request import RunRequest, carry_through
from focusasr.config import ModelConfig
from focusasr.runtime.errors import InputError, UsageError
from focusasr.training_config import AdaptConfig

TAIL_FRAMES = 48  # of silence after the audio at inference


@with_settings(AdaptConfig, ModelConfig)
def adapt(
    given: dict[type, dict[str, Any]],
    source: Annotated[
        str | None, typer.Argument(help="Whisper model to adapt, as for --model of other commands", show_default=False)
    ] = None,
    recordings: Annotated[
        list[str] | None,
        typer.Argument(help="recordings to adapt on: manifests (PATH or PATH=WEIGHT), files, folders, globs"),
    ] = None,
    texts: Annotated[list[str] | None, typer.Option(help="manifest with transcripts to train on (repeatable)")] = None,
    dev: Annotated[list[str] | None, typer.Option(help="manifest to evaluate on (repeatable)")] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="output folder for best/ and last/")] = Path(
        "runs/adapted"
    ),
    config: Annotated[Path | None, typer.Option(help="TOML file with the tables data, model and train")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --output-dir where it stopped")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Adapt a Whisper model to audio of its own length, so that short recordings take less time.

    The source model on padded audio is the teacher of its copy, so recordings need no transcripts. Word error rates on
    --dev are measured at the audio's own length and padded to 30 s, also before the first step.
    """
    from focusasr.training.adapter import Adapter
    from focusasr.training.finetune import find_source

    if source is not None:
        given[AdaptConfig]["init_from"] = source
    manifests = {"train": recordings, "dev": dev, "texts": texts}
    request = RunRequest(given, manifests, config, output_dir, resume, AdaptConfig)
    tables = request.tables()
    named, data = tables["train"].get("init_from"), tables["data"]
    if not named or not (data.get("train") or data.get("texts")):
        raise UsageError("name a Whisper model and recordings: focusasr adapt tiny.en RECORDINGS -o DIR")
    teacher = find_source(tables, request.folder, None, local_files_only)
    if teacher is None or teacher.whisper is None:
        raise InputError(f"{named}: is no Whisper model; native models take audio at its own length already")
    tables["model"].setdefault("tail_frames", TAIL_FRAMES)
    chosen, line = request.start(device, threads)
    run = request.resolve(tables, teacher)
    adapted = teacher.model.config.tail_frames is not None
    lines = [line, *[f"{named} is adapted already; the adaptation continues from it"] * adapted]
    carry_through(request, lambda: Adapter(teacher, run, chosen, resume), lines)
