"""The command `train`: manifests to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from focusasr.config import ModelConfig, TextConfig, TrainConfig
from focusasr.options import DeviceOption, LocalFilesOption, ThreadsOption, with_settings
from focusasr.progress import stderr
from focusasr.settings import InputError, read_toml


@with_settings(TrainConfig, ModelConfig, TextConfig)
def train(
    given: dict[type, dict[str, Any]],
    manifests: Annotated[
        list[str] | None, typer.Argument(help="training manifests, each PATH or PATH=WEIGHT", show_default=False)
    ] = None,
    dev: Annotated[list[str] | None, typer.Option(help="manifest to measure on; may be given again")] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="the run's folder: best/ and last/")] = Path(
        "runs/focusasr"
    ),
    config: Annotated[Path | None, typer.Option(help="TOML file with the tables data, text, model, train")] = None,
    preset: Annotated[
        Literal["tiny", "small", "base"] | None,
        typer.Option(help="size: about 2, 8, 25 M weights (default small)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run in --output-dir stopped")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Train a recognizer on manifests; what is on the command line wins over the TOML file."""
    import torch

    from focusasr.checkpoint import read_json
    from focusasr.device import choose_device
    from focusasr.train import Trainer, read_run
    from focusasr.training_log import TrainingLog
    from focusasr.warm_start import find_source, settings_from

    settings: dict[str, Any] = read_toml(config) if config else {}
    if resume and not config:
        settings = resumed_settings(output_dir, read_json)
    folder = config.parent if config else Path()
    for table, kind in (("train", TrainConfig), ("model", ModelConfig), ("text", TextConfig)):
        settings[table] = {**settings.get(table, {}), **given[kind]}
    here = {
        "train": [str(Path(m).absolute()) for m in manifests or []],
        "dev": [str(Path(m).absolute()) for m in dev or []],
    }
    settings["data"] = {**settings.get("data", {}), **{name: paths for name, paths in here.items() if paths}}
    if preset:
        settings["model"]["preset"] = preset
    if not settings["data"].get("train"):
        raise typer.BadParameter("give a training manifest, or --config with [data] train")
    source = find_source(settings, folder, output_dir / "last" if resume else None, local_files_only)
    if source:
        settings = settings_from(source, settings)
    run = read_run(settings, folder, output_dir, str(config or "options"))
    if threads:
        torch.set_num_threads(threads)
    chosen, reason = choose_device(device)
    trainer = Trainer(run, chosen, resume, source)
    with TrainingLog(output_dir, run.settings, stderr, trainer.accelerator.is_main_process) as log:
        log.say(f"on {chosen.type}: {reason}")
        for line in trainer.summary():
            log.say(line)
        trainer.fit(log)
    if trainer.accelerator.is_main_process:
        print(output_dir / "best")
    if log.broken_seen or trainer.findings.unreadable():
        raise typer.Exit(1)  # trained, but not on all that was given


def resumed_settings(output_dir: Path, read_json: Any) -> dict[str, Any]:
    """Return the settings that the run in `output_dir` was started with."""
    path = output_dir / "last" / "config.json"
    if not path.is_file():
        raise InputError(f"{output_dir}: nothing to resume here; leave --resume out")
    kept = read_json(path)
    return {**kept.get("run", {}), "model": kept.get("model", {}), "text": kept.get("text", {})}
