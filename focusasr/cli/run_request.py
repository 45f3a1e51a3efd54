"""A requested training run: a TOML file or an earlier run, overridden by options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from focusasr.config import PRESETS, ModelConfig, TextConfig
from focusasr.runtime.console import stderr
from focusasr.runtime.errors import InputError, SettingError, UsageError, quote
from focusasr.runtime.files import ensure_writable
from focusasr.runtime.settings import read_toml
from focusasr.training.run import TABLES, TrainingRun, check_place, homes_of, read_run
from focusasr.training_config import TrainConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
    from focusasr.training.logger import TrainingLog
    from focusasr.training.trainer import Trainer

FOLDERS = {"noise_folder", "room_folder"}


@dataclass(frozen=True)
class RunRequest:
    """Typed settings by class, manifests by their setting of [data], TOML file, output folder, and class of [train]."""

    given: dict[type, dict[str, Any]]
    manifests: dict[str, list[str] | None]
    config: Path | None
    output: Path
    resume: bool
    kind: type[TrainConfig] = TrainConfig

    @property
    def folder(self) -> Path:
        """The folder that paths in the file are relative to."""
        return self.config.parent if self.config else Path()

    @property
    def file(self) -> Path | None:
        """The file with the settings that were not typed."""
        return self.config or (self.output / "last" / "config.json" if self.resume else None)

    def tables(self) -> dict[str, Any]:
        """Return the tables of the file, overridden by what was typed; InputError if one is no table."""
        tables = read_toml(self.config) if self.config else resumed_settings(self.output) if self.resume else {}
        for name, value in tables.items():
            if not isinstance(value, dict):
                found = f"{self.config or self.output}: {quote(name)} is {quote(value)}; expected: {_place_of(name)}"
                raise UsageError(found) if self.config else InputError(found)
        typed = {**self.given, self.kind: self._anchored(self.given.get(self.kind, {}))}
        if preset := typed.get(ModelConfig, {}).get("preset"):  # it overrides the sizes in the file
            sizes = tables.get("model", {})
            tables["model"] = {name: value for name, value in sizes.items() if name not in PRESETS[preset]}
        for table, kind in (("train", self.kind), ("model", ModelConfig), ("text", TextConfig)):
            tables[table] = {**tables.get(table, {}), **typed.get(kind, {})}
        here = {name: [str(Path(one).absolute()) for one in options or []] for name, options in self.manifests.items()}
        tables["data"] = {**tables.get("data", {}), **{name: paths for name, paths in here.items() if paths}}
        return tables

    def _anchored(self, typed: dict[str, Any]) -> dict[str, Any]:
        """Return typed settings with folders relative to the working folder, not to that of the TOML file."""
        folders = {name: place and str(Path(place).absolute()) for name, place in typed.items() if name in FOLDERS}
        start = typed.get("init_from")
        if start and self.config and Path(start).exists():  # else a model name, or a path relative to the file
            folders["init_from"] = str(Path(start).absolute())
        return {**typed, **folders}

    def start(self, device: str, threads: int) -> tuple[torch.device, str]:
        """Check that the output is writable; return the device and a line on its choice."""
        import torch

        from focusasr.runtime.devices import choose_device

        if threads:
            torch.set_num_threads(threads)
        resumed = "allow writing there, or resume a copy of it"
        ensure_writable(self.output, resumed if self.resume else "choose another folder with --output-dir")
        chosen, reason = choose_device(device)
        return chosen, f"on {chosen.type}: {reason}"

    def resolve(self, tables: dict[str, Any], source: Checkpoint | None) -> TrainingRun:
        """Return the run of the tables, with defaults that fit the source."""
        from focusasr.training.finetune import settings_for, settings_from

        with self.errors_with_place():
            if source is not None:
                tables = settings_from(source, tables)
                tables = settings_for(source, tables) if self.kind is TrainConfig else tables
            try:
                return read_run(tables, self.folder, self.output, self._place, self.kind)
            except InputError as error:
                raise error if isinstance(error, UsageError) else self._blame(str(error)) from None

    @property
    def _place(self) -> str:
        """The place of invalid settings: "" for options, which need none."""
        return f"{self.file}{' or options' if any(self.given.values()) else ''}" if self.file else ""

    @property
    def _blame(self) -> type[InputError]:
        """The error of an invalid file: a corrupt checkpoint, or a mistake of the user."""
        return InputError if self.resume and not self.config and not any(self.given.values()) else UsageError

    @contextmanager
    def errors_with_place(self) -> Iterator[None]:
        """Name the file in errors of settings."""
        try:
            yield
        except SettingError as error:
            raise self._blame(f"{self._place}: {error}") if self.file else error from None


def _place_of(name: str) -> str:
    """Return the table of a name that is outside all tables."""
    if homes := homes_of(name):
        return f"this line below [{'] or ['.join(sorted(homes))}]"
    return "a table of settings" if name in TABLES else f"tables of settings: {', '.join(TABLES)}"


def resumed_settings(output: Path) -> dict[str, Any]:
    """Return the settings that the run in `output` was started with."""
    from focusasr.runtime.files import read_json

    check_place(output, resume=True)
    kept = read_json(output / "last" / "config.json")
    run = kept.get("run", {})
    return {
        **(run if isinstance(run, dict) else {"run": run}),
        "model": kept.get("model", {}),
        "text": kept.get("text", {}),
    }


def fit(trainer: Trainer, log: TrainingLog) -> Path:
    """Train, and return the best checkpoint."""
    trainer.fit(log)
    return trainer.run.output / "best"


def carry_through(
    request: RunRequest,
    make: Callable[[], Trainer],
    lines: Sequence[str],
    work: Callable[[Trainer, TrainingLog], Path | float] = fit,
) -> None:
    """Make a trainer, log `lines` and its summary, let it work, and print the result; status 1 after bad inputs."""
    from focusasr.runtime.devices import close_process_group, translate_peer_errors
    from focusasr.training.logger import TrainingLog

    with translate_peer_errors("start the run again with --resume"), request.errors_with_place():
        trainer = make()
        run, processes = trainer.run, trainer.stepper.processes
        with TrainingLog(run.output, run.settings, stderr(), processes.main) as log:
            for line in (*lines, *trainer.summary()):
                log.say(line)
            result = work(trainer, log)
        close_process_group(processes)
    if processes.main:
        print(f"{result:g}" if isinstance(result, float) else result)
    if log.broken_seen or trainer.findings.unreadable():
        raise typer.Exit(1)  # done, but some inputs were unusable
