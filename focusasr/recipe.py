"""What one training run is: manifests, where the result goes, every setting; read from one TOML file's tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusasr.config import PRESETS, DataConfig, ModelConfig, TextConfig, TrainConfig
from focusasr.settings import InputError, hints_of, read_settings, shown, to_settings

TABLES = {"data": DataConfig, "text": TextConfig, "model": ModelConfig, "train": TrainConfig}


@dataclass(frozen=True)
class Run:
    """One training run: manifests (PATH or PATH=WEIGHT), where the result goes, and every setting."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    output: Path
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    settings: TrainConfig = TrainConfig()

    def to_json(self) -> dict[str, Any]:
        """Return what is kept in the checkpoint of how it was made."""
        return {"data": {"train": list(self.train), "dev": list(self.dev)}, "train": to_settings(self.settings)}


def read_run(settings: dict[str, Any], folder: Path, output: Path, where: str, typed: Collection[str] = ()) -> Run:
    """Build a run from the tables data, text, model and train; manifests are relative to `folder`.

    `[data] train` and `dev` are lists of PATH or PATH=WEIGHT, made absolute so that a run can be resumed from anywhere.
    InputError names unknown tables and settings; what is wrong with a setting that was `typed` is said of its option.
    """
    unknown = settings.keys() - TABLES.keys()
    if unknown:
        raise InputError(f"{where}: unknown table [{shown(min(unknown))[1:-1]}]; wanted: {', '.join(TABLES)}")
    data = read_settings(DataConfig, settings.get("data", {}), f"{where} [data]")
    model = settings.get("model", {})
    if not isinstance(model, dict):
        raise InputError(f"{where} [model]: expected a table of settings, got {shown(model)}")
    model = dict(model)
    preset = model.pop("preset", "small")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"{where} [model]: preset is {shown(preset)}; wanted: {', '.join(PRESETS)}")
    return Run(
        train=tuple(_anchored(option, folder) for option in data.train),
        dev=tuple(_anchored(option, folder) for option in data.dev),
        output=output,
        model=read_settings(ModelConfig, {**PRESETS[preset], **model}, f"{where} [model]", typed),
        text=read_settings(TextConfig, settings.get("text", {}), f"{where} [text]", typed),
        settings=_with_folders(
            read_settings(TrainConfig, settings.get("train", {}), f"{where} [train]", typed), folder
        ),
    )


def table_of(name: str) -> str:
    """Return the table that a setting stands in."""
    return next((table for table, kind in TABLES.items() if name in hints_of(kind)), "model")


def _with_folders(settings: TrainConfig, folder: Path) -> TrainConfig:
    """Make the folders of noises and rooms absolute."""
    noise, room = (place and _anchored(place, folder) for place in (settings.noise_folder, settings.room_folder))
    return dataclasses.replace(settings, noise_folder=noise, room_folder=room)


def _anchored(option: str, folder: Path) -> str:
    return str((folder / option).absolute())
