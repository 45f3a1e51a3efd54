"""One training run: its settings, manifests and provenance (versions, commit, fingerprints)."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr import __version__
from focusasr.config import PRESETS, ModelConfig, TextConfig
from focusasr.runtime.cache import fingerprint
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import InputError, as_option, quote
from focusasr.runtime.files import real_path, restore
from focusasr.runtime.libraries import versions
from focusasr.runtime.settings import hints_of, read_settings, to_settings
from focusasr.training_config import DataConfig, TrainConfig

if TYPE_CHECKING:
    from focusasr.training.dataset import Corpus


BEGINNING = ("init_from", "train_only", "freeze")  # settings of [train] that cannot change on resume
TABLES = {"data": DataConfig, "text": TextConfig, "model": ModelConfig, "train": TrainConfig}

PACKAGES = ("torch", "torchaudio", "accelerate", "numpy", "soxr", "soundfile", "tokenizers")


@dataclass(frozen=True)
class TrainingRun:
    """One training run: manifests (PATH or PATH=WEIGHT), the output folder, and every setting."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    output: Path
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    settings: TrainConfig = TrainConfig()
    texts: tuple[str, ...] = ()  # manifests with transcripts, for an adaptation
    keep: tuple[str, ...] = ()  # recordings whose targets are the texts of the source model

    def to_json(self) -> dict[str, Any]:
        """Return the provenance that is written to the checkpoint."""
        some = {"texts": list(self.texts), "keep": list(self.keep)}
        data = {"train": list(self.train), "dev": list(self.dev), **{name: ones for name, ones in some.items() if ones}}
        return {"data": data, "train": to_settings(self.settings)}


def read_run(
    settings: dict[str, Any],
    folder: Path,
    output: Path,
    where: str = "",
    kind: type[TrainConfig] = TrainConfig,
) -> TrainingRun:
    """Build a run from the tables data, text, model and train; manifests are relative to `folder`.

    `[data] train` and `dev` are lists of PATH or PATH=WEIGHT, made absolute so that a run can be resumed from anywhere.
    `where` is the file of the tables, empty for options. InputError names unknown tables and settings.
    """
    places = {table: where and f"{where} [{table}]" for table in TABLES}
    unknown = settings.keys() - TABLES.keys()
    if unknown:
        raise InputError(f"{where}: unknown table [{quote(min(unknown))[1:-1]}]; expected: {', '.join(TABLES)}")
    for table, known in {**TABLES, "train": kind}.items():
        for name in _table(settings.get(table)):
            if name not in hints_of(known) and (homes := homes_of(name) - {table}):
                raise InputError(f"{places[table]}: unknown setting {quote(name)}; it belongs below [{min(homes)}]")
    data = read_settings(DataConfig, settings.get("data", {}), places["data"])
    unused, other = ("texts", "adapt") if kind is TrainConfig else ("keep", "train")
    if getattr(data, unused):
        raise InputError(f"{places['data']}: {unused} is a setting of focusasr {other}. Leave it out here.")
    model = dict(settings.get("model", {}))
    preset = model.pop("preset", "small")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InputError(f"{places['model']}: preset is {quote(preset)}; expected: {', '.join(PRESETS)}")
    return TrainingRun(
        output=output,
        model=read_settings(ModelConfig, {**PRESETS[preset], **model}, places["model"]),
        text=read_settings(TextConfig, settings.get("text", {}), places["text"]),
        settings=_with_folders(read_settings(kind, settings.get("train", {}), places["train"]), folder),
        **{name: tuple(_anchored(option, folder) for option in options) for name, options in vars(data).items()},
    )


def check_place(output: Path, resume: bool) -> None:
    """Reject a folder with nothing to resume, or, for a new run, with results; repair it after a kill."""
    for name in ("best", "last"):
        restore(output / name)
    there = (output / "last").exists()
    if there and not resume:
        raise InputError(f"{output}: holds a training run already; give --resume, or another --output-dir")
    if not there and (output / "model.safetensors").exists():
        raise InputError(f"{output}: is a checkpoint, not the folder of a run; give another --output-dir")
    if resume and not there:
        raise InputError(f"{output}: nothing to resume here; leave --resume out, or name the run with --output-dir")


def homes_of(name: str) -> set[str]:
    """Return the tables with a setting of this name."""
    return {table for table, kind in TABLES.items() if name in hints_of(kind) or (table, name) == ("model", "preset")}


def changes(begun: dict[str, Any], run: TrainingRun) -> list[str]:
    """Return lines on settings and manifests that differ from those in `begun`, a checkpoint's config.json.

    They apply from there on. InputError for differences in the model, its text policy, and the trained weights.
    """
    now = json.loads(json.dumps({**run.to_json(), "model": to_settings(run.model), "text": to_settings(run.text)}))
    before = {**_table(begun.get("run")), "model": begun.get("model"), "text": begun.get("text")}
    other = {
        (table, name): (_table(before.get(table))[name], value)
        for table, values in now.items()
        for name, value in values.items()
        if not _same(name, _table(before.get(table)).get(name, value), value)
    }
    fixed = [key for key in other if key[1] in BEGINNING or (key[0] in ("model", "text") and key[1] != "dropout")]
    if fixed:
        was, wanted = (" ".join(f"{as_option(name)} {_said(other[t, name][i])}" for t, name in fixed) for i in (0, 1))
        weights = f" (--init-from {run.output / 'last'})" if all(table == "train" for table, _ in fixed) else ""
        raise InputError(
            f"{run.output}: was started with {was}, which cannot become {wanted}; use the original value, or train "
            f"into another --output-dir{weights}"
        )
    names = {key: "training manifests" if key == ("data", "train") else as_option(key[1]) for key in other}
    told = [f"{names[key]} {_changed(was, value)}" for key, (was, value) in other.items()]
    return [f"other than before, and counts from here on: {', '.join(told)}"] if told else []


def _same(name: str, was: Any, now: Any) -> bool:
    """Return whether a setting is unchanged; a source checkpoint may be relative or absolute."""
    if name == "init_from" and isinstance(was, str) and isinstance(now, str):
        return was == now or (os.path.exists(was) and real_path(was) == real_path(now))
    return bool(was == now)


def measured_before(begun: dict[str, Any]) -> list[str]:
    """Return the dev manifests of a checkpoint's config.json."""
    return list(_table(_table(begun.get("run")).get("data")).get("dev") or [])


def finished(run: TrainingRun, step: int) -> str:
    """Return the line for a run that is complete, with the way to extend it."""
    steps, patience = run.settings.steps, run.settings.patience
    why, more = f"all {steps} steps are made", f"--steps N above {max(step, steps)}"
    if step < steps:
        why, more = (
            f"{pluralize(patience, 'evaluation')} brought no better dev WER",
            f"--patience N above {patience} (0: never stop)",
        )
    return (
        f"done already at step {step}: {why}; {more} continues, --init-from {run.output / 'best'} with another "
        "--output-dir starts a new run with these weights"
    )


def with_plain_paths(kept: Any) -> Any:
    """Return the contents of a checkpoint's config.json, its absolute paths in the form of `_anchored`."""
    if isinstance(kept, dict):
        return {name: with_plain_paths(value) for name, value in kept.items()}
    if isinstance(kept, list):
        return [with_plain_paths(value) for value in kept]
    return _anchored(kept, Path()) if isinstance(kept, str) and os.path.isabs(kept) and os.pardir in kept else kept


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str:
    return "none" if value in (None, []) else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changed(was: Any, value: Any) -> str:
    """Return the change of a setting as text; of a list only additions and removals."""
    if not (isinstance(was, list) and isinstance(value, list)):
        return f"{_said(value)} (was {_said(was)})"
    new, gone = [one for one in value if one not in was], [one for one in was if one not in value]
    parts = [f"{word} {_said(some)}" for word, some in (("with", new), ("without", gone)) if some]
    return " and ".join(parts) or "in another order"


def _with_folders(settings: TrainConfig, folder: Path) -> TrainConfig:
    """Make the folders of noises and rooms absolute, and the source if it is a path, for resuming from anywhere."""
    noise, room = (place and _anchored(place, folder) for place in (settings.noise_folder, settings.room_folder))
    start = settings.init_from
    start = _anchored(start, folder) if start and os.path.exists(folder / start) else start
    return dataclasses.replace(settings, noise_folder=noise, room_folder=room, init_from=start)


def _anchored(option: str, folder: Path) -> str:
    """Return a path from `folder` as an absolute one, without its `..` if that names the same place."""
    path = str((folder / option).absolute())
    plain = os.path.normpath(path)
    return plain if real_path(plain) == real_path(path) else path


def provenance(corpora: Sequence[Corpus], dev: Sequence[str]) -> dict[str, Any]:
    """Return versions, the commit if the program runs from a git clone, and fingerprints of the manifests."""
    from focusasr.training.dataset import parse_manifest_option

    data = [
        {
            "manifest": corpus.name,
            "sha256": fingerprint(Path(corpus.name)),
            "weight": corpus.weight,
            "utterances": len(corpus.utterances),
            "hours": round(corpus.seconds / 3600, 4),
        }
        for corpus in corpora
    ]
    measured = [parse_manifest_option(option)[0] for option in dev]
    return {
        "versions": {"focusasr": __version__, "python": platform.python_version(), **versions(*PACKAGES)},
        "commit": commit(Path(__file__).parents[1]),
        "data": data,
        "dev": [{"manifest": str(path), "sha256": fingerprint(path)} for path in measured],
    }


def changed_manifests(before: dict[str, Any], now: dict[str, Any], kind: str) -> list[str]:
    """Return the manifests of a kind ("data" or "dev") whose fingerprint differs between two runs' `provenance`."""
    known = {row["manifest"]: row["sha256"] for row in before.get(kind, [])}
    return [row["manifest"] for row in now[kind] if known.get(row["manifest"], row["sha256"]) != row["sha256"]]


def commit(folder: Path) -> str | None:
    """Return the commit of `folder`, with "+changes" if files differ from it; None outside of git.

    A repository that only contains the installed package, such as its user's, is ignored.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
