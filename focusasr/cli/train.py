"""The command `train`: manifests to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from focusasr.cli.options import DeviceOption, LocalFilesOption, ThreadsOption, with_settings
from focusasr.config import PRESETS, ModelConfig, TextConfig
from focusasr.runtime.console import stderr
from focusasr.runtime.errors import InputError, SettingError, UsageError, quote
from focusasr.runtime.files import ensure_writable
from focusasr.runtime.settings import hints_of, read_toml, require_use
from focusasr.training.run import TABLES, TrainingRun, homes_of, read_run, table_of
from focusasr.training_config import TrainConfig

if TYPE_CHECKING:
    from focusasr.model.checkpoint import Checkpoint


Find = Literal["batch", "lr"] | None
FOLDERS = {"noise_folder", "room_folder"}


@dataclass(frozen=True)
class TrainJob:
    """A run: whether it resumes, its source checkpoint, and the value to search for instead of training.

    `teacher` is the model whose texts are targets, if there are recordings to keep.
    """

    run: TrainingRun
    resume: bool
    source: Checkpoint | None
    find: Find
    teacher: Checkpoint | None = None


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
    import torch

    from focusasr.runtime.devices import choose_device
    from focusasr.training.finetune import find_source, settings_for, settings_from

    given_data = {"train": manifests, "dev": dev, "keep": keep}
    tables = collected(given_data, config, resumed_from=output_dir if resume and not config else None)
    given[ModelConfig] |= {"preset": preset} if preset else {}
    given[TrainConfig] = _anchored_here(given[TrainConfig], beside=config)
    if preset and isinstance(tables.get("model"), dict):  # it overrides the sizes in the file
        tables["model"] = {name: value for name, value in tables["model"].items() if name not in PRESETS[preset]}
    for table, kind in (("train", TrainConfig), ("model", ModelConfig), ("text", TextConfig)):
        tables[table] = {**tables.get(table, {}), **given[kind]}
    if not tables["data"].get("train"):
        raise UsageError("give a training manifest, or --config with [data] train")
    folder = config.parent if config else Path()
    source = find_source(tables, folder, output_dir / "last" if resume else None, local_files_only)
    if threads:
        torch.set_num_threads(threads)
    find = sought(find_batch, find_lr)
    chosen, reason = choose_device(device)
    elsewhere = "allow writing there, or resume a copy of it" if resume else "choose another folder with --output-dir"
    ensure_writable(output_dir, elsewhere)
    file = config or (output_dir / "last" / "config.json" if resume else None)
    blame = InputError if resume and not config else UsageError  # an invalid checkpoint, or an error of the user
    with said_as_given(given, file, blame) as typed:
        tables = settings_for(source, settings_from(source, tables)) if source else tables
        try:
            run = read_run(tables, folder, output_dir, str(file or "options"), typed)
        except InputError as error:
            raise error if isinstance(error, UsageError) else blame(str(error)) from None
        origin = find_source(tables, folder, None, local_files_only) if resume and run.keep else source
        carry_out(TrainJob(run, resume, source, find, teacher_of(run, origin)), chosen, reason)


def _anchored_here(typed: dict[str, Any], beside: Path | None) -> dict[str, Any]:
    """Return typed settings with folders relative to the working folder, not to that of a TOML file."""
    folders = {name: place and str(Path(place).absolute()) for name, place in typed.items() if name in FOLDERS}
    start = typed.get("init_from")
    if start and beside and Path(start).exists():  # else a model name, or a path relative to the file
        folders["init_from"] = str(Path(start).absolute())
    return {**typed, **folders}


def sought(batch: bool, rate: bool) -> Find:
    """Return the value to search for instead of training; UsageError for two of them."""
    if batch and rate:
        raise UsageError("--find-batch and --find-lr cannot be combined. Use one of them.")
    return "batch" if batch else "lr" if rate else None


def teacher_of(run: TrainingRun, origin: Checkpoint | None) -> Checkpoint | None:
    """Return the model whose texts are targets, or None without recordings to keep; UsageError if it is no Whisper."""
    if not run.keep:
        return None
    if origin is None or origin.whisper is None:
        found = "the run starts from no model" if origin is None else f"{run.settings.init_from} is no Whisper model"
        remedy = "Name one with --init-from, or leave --keep out and add manifests of other speech."
        raise UsageError(f"--keep {run.keep[0]}: {found}. {remedy}")
    return origin


@contextmanager
def said_as_given(
    given: dict[type, dict[str, Any]], file: Path | None, kind: type[InputError]
) -> Iterator[Collection[str]]:
    """Report an invalid setting as it was given: as an option, or, with the error class `kind`, as in the file.

    Yields the names that count as typed; without a file all do.
    """
    typed = {name for kind, names in given.items() for name in (*names, *(() if file else hints_of(kind)))}
    try:
        yield typed
    except SettingError as error:
        raise error.told(f"{file} [{table_of(error.name)}]", typed, kind) from None


def carry_out(trial: TrainJob, device: Any, reason: str) -> None:
    """Train, or find a batch size or a learning rate; print the result to stdout."""
    from focusasr.runtime.devices import close_process_group, translate_peer_errors
    from focusasr.training import tuner
    from focusasr.training.keep import Keeper
    from focusasr.training.logger import TrainingLog
    from focusasr.training.trainer import Trainer

    run = trial.run
    if not (trial.resume or trial.source):  # which have their tokens
        require_use(run.text, "vocabulary_size", "tokens", "bpe")
    with translate_peer_errors("start the run again with --resume"):
        trainer = (
            Keeper(trial.teacher, run, device, trial.resume, trial.source)
            if trial.teacher
            else Trainer(run, device, trial.resume, trial.source)
        )
        processes = trainer.stepper.processes
        result: Any = run.output / "best"
        with TrainingLog(run.output, run.settings, stderr(), processes.main) as log:
            log.say(f"on {device.type}: {reason}")
            for line in trainer.summary():
                log.say(line)
            if trial.find:
                tune = {"batch": tuner.find_batch, "lr": tuner.find_learning_rate}[trial.find]
                result = f"{tune(trainer, log):g}"
            else:
                trainer.fit(log)
        close_process_group(processes)
    if processes.main:
        print(result)
    if log.broken_seen or trainer.findings.unreadable():
        raise typer.Exit(1)  # trained, but some inputs were unusable


def collected(given: dict[str, list[str] | None], config: Path | None, resumed_from: Path | None) -> dict[str, Any]:
    """Return the tables of the TOML file or of the resumed run, with the manifests `given` here by kind."""
    tables: dict[str, Any] = read_toml(config) if config else resumed_settings(resumed_from) if resumed_from else {}
    here = {name: [str(Path(option).absolute()) for option in options or []] for name, options in given.items()}
    for name, value in tables.items():
        if not isinstance(value, dict):
            said = f"{config or resumed_from}: {quote(name)} is {quote(value)}; expected: {_place_of(name)}"
            raise UsageError(said) if config else InputError(said)
    tables["data"] = {**tables.get("data", {}), **{name: paths for name, paths in here.items() if paths}}
    return tables


def _place_of(name: str) -> str:
    """Return the table of a name that is outside all tables."""
    if homes := homes_of(name):
        return f"this line below [{'] or ['.join(sorted(homes))}]"
    return "a table of settings" if name in TABLES else f"tables of settings: {', '.join(TABLES)}"


def resumed_settings(output_dir: Path) -> dict[str, Any]:
    """Return the settings that the run in `output_dir` was started with."""
    from focusasr.runtime.files import read_json, restore

    restore(output_dir / "last")
    path = output_dir / "last" / "config.json"
    if not path.is_file():
        raise InputError(f"{output_dir}: nothing to resume here; leave --resume out, or name the run with --output-dir")
    kept = read_json(path)
    run = kept.get("run", {})
    return {
        **(run if isinstance(run, dict) else {"run": run}),
        "model": kept.get("model", {}),
        "text": kept.get("text", {}),
    }
