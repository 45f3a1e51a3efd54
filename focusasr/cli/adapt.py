"""The command `adapt`: a Whisper model for audio of its own length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from focusasr.cli.options import DeviceOption, LocalFilesOption, ThreadsOption, with_settings
from focusasr.cli.train import collected, said_as_given
from focusasr.config import ModelConfig
from focusasr.runtime.console import stderr
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.files import ensure_writable
from focusasr.training.run import read_run
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
    import torch

    from focusasr.model.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.runtime.devices import choose_device
    from focusasr.training.finetune import settings_from

    given_data = {"train": recordings, "dev": dev, "texts": texts}
    tables = collected(given_data, config, resumed_from=output_dir if resume and not config else None)
    if source is not None:
        given[AdaptConfig]["init_from"] = source
    for table, kind in (("train", AdaptConfig), ("model", ModelConfig)):
        tables[table] = {**tables.get(table, {}), **given[kind]}
    named = tables["train"].get("init_from")
    if not named or not (tables["data"].get("train") or tables["data"].get("texts")):
        raise UsageError("name a Whisper model and recordings: focusasr adapt tiny.en RECORDINGS -o DIR")
    if threads:
        torch.set_num_threads(threads)
    teacher = load_checkpoint(find_checkpoint(str(named), local_files_only))
    if teacher.whisper is None:
        raise InputError(f"{named}: is no Whisper model; native models take audio at its own length already")
    tables["model"].setdefault("tail_frames", TAIL_FRAMES)
    ensure_writable(output_dir, "choose another folder with --output-dir")
    chosen, reason = choose_device(device)
    file = config or (output_dir / "last" / "config.json" if resume else None)
    with said_as_given(given, file, InputError if resume and not config else UsageError) as typed:
        tables = settings_from(teacher, tables)
        run = read_run(
            tables, config.parent if config else Path(), output_dir, str(file or "options"), typed, AdaptConfig
        )
        carry_out(run, teacher, resume, chosen, reason)


def carry_out(run: Any, teacher: Any, resume: bool, device: Any, reason: str) -> None:
    """Adapt, and print the folder of the best checkpoint to stdout."""
    from focusasr.runtime.devices import close_process_group, translate_peer_errors
    from focusasr.training.adapter import Adapter
    from focusasr.training.logger import TrainingLog

    with translate_peer_errors("start the run again with --resume"):
        adapter = Adapter(teacher, run, device, resume)
        processes = adapter.stepper.processes
        with TrainingLog(run.output, run.settings, stderr(), processes.main) as log:
            log.say(f"on {device.type}: {reason}")
            if teacher.model.config.tail_frames is not None:
                log.say(f"{run.settings.init_from} is adapted already; the adaptation continues from it")
            for line in adapter.summary():
                log.say(line)
            adapter.fit(log)
        close_process_group(processes)
    if processes.main:
        print(run.output / "best")
    if log.broken_seen or adapter.findings.unreadable():
        raise typer.Exit(1)  # adapted, but some inputs were unusable
