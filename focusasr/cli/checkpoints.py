"""The commands about checkpoints: `inspect`, `info` and `convert`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from focusasr import __version__
from focusasr.cli.options import DeviceOption, LocalFilesOption, ModelOption, number, with_settings
from focusasr.config import InspectionConfig
from focusasr.runtime.console import note
from focusasr.runtime.errors import InputError, SettingError, UsageError
from focusasr.runtime.files import ensure_file_writable
from focusasr.runtime.libraries import versions
from focusasr.runtime.settings import read_settings


@with_settings(InspectionConfig)
def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="folder, file, name on the hub, or default"),
    ],
    recording: Annotated[str, typer.Argument(metavar="AUDIO", help="an audio file, or - for standard input")],
    given: dict[type, dict[str, Any]],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG file for a picture")] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="encoder layer to draw, from 1 (repeatable; default: first, middle, last)",
            parser=number(int, least=1),
            metavar="<int>",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
    device: DeviceOption = "auto",
    local_files_only: LocalFilesOption = False,
) -> None:
    """Show the attention of an encoder on a recording: span, temperature, entropy and norms per layer and head."""
    from focusasr.audio.source import AUDIO_SUFFIXES
    from focusasr.cli.tables import print_attention
    from focusasr.evaluation import attention_stats as room
    from focusasr.model.checkpoint import load_checkpoint
    from focusasr.model.checkpoint_folder import find_checkpoint
    from focusasr.runtime.devices import choose_device

    config = read_settings(InspectionConfig, given[InspectionConfig])
    if output and output.suffix.lower() != ".png":
        raise SettingError("output", str(output), "a name that ends in .png, the only kind drawn")
    if Path(checkpoint).suffix.lower() in AUDIO_SUFFIXES and Path(checkpoint).is_file():
        swapped = shlex.join([recording, checkpoint])
        raise UsageError(f"{checkpoint} is a recording, not a checkpoint; did you mean focusasr inspect {swapped}?")
    if output:
        ensure_file_writable(output, "choose another place with --output")
    model = load_checkpoint(find_checkpoint(checkpoint, local_files_only), choose_device(device)[0]).model
    seen = room.inspect_recording(model, recording, config, layer)
    if output:
        from focusasr.cli.attention_plot import draw

        draw(seen, output)
        note(f"focusasr: {output} is drawn")
    if as_json:
        print(json.dumps(room.to_json(seen)))
    else:
        from rich.console import Console

        print_attention(seen, Console())


def info(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="checkpoint, as for --model", show_default=False)
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    local_files_only: LocalFilesOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
) -> None:
    """Show a checkpoint's card, the device and the reason for it, and package versions."""
    from focusasr.model.checkpoint import load_checkpoint
    from focusasr.model.checkpoint_folder import find_checkpoint
    from focusasr.runtime.devices import choose_device
    from focusasr.runtime.settings import to_settings

    if checkpoint and model and checkpoint != model:
        raise UsageError(f"two checkpoints, {checkpoint} and --model {model}; give one")
    chosen, reason = choose_device(device)
    loaded = load_checkpoint(find_checkpoint(checkpoint or model, local_files_only))
    installed = versions("torch", "torchaudio", "onnxruntime", "tokenizers", "soundfile", "av", "accelerate", "jiwer")
    installed = {"focusasr": __version__, "python": sys.version.split()[0], **installed}
    if as_json:
        facts = {"checkpoint": str(loaded.folder), "weights": loaded.model.parameter_count()}
        settings = {"model": to_settings(loaded.model.config), "metrics": loaded.metrics}
        print(json.dumps({**facts, "device": chosen.type, "reason": reason, "versions": installed, **settings}))
        return
    print(loaded.card.strip() + "\n")
    print(f"checkpoint  {loaded.folder}, {loaded.model.parameter_count():,} weights")
    print(f"device      {chosen} ({reason})")
    print("versions    " + ", ".join(f"{name} {number}" for name, number in installed.items()))


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="folder, file, or name on the hub, as for --model")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="new folder for the checkpoint")],
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="data type of stored weights: float16 halves the size, int8 quarters it"),
    ] = "float32",
    to: Annotated[
        Literal["focusasr", "huggingface", "ctranslate2"],
        typer.Option(help="output format: of focusasr, transformers or faster-whisper"),
    ] = "focusasr",
    local_files_only: LocalFilesOption = False,
) -> None:
    """Convert a checkpoint to a folder of focusasr, or a Whisper model to one of transformers or faster-whisper."""
    import torch
    from safetensors import SafetensorError

    from focusasr.model.checkpoint import load_checkpoint, save_checkpoint
    from focusasr.model.checkpoint_folder import find_checkpoint
    from focusasr.model.export import check_plain_whisper, save_ctranslate2, save_hugging_face
    from focusasr.runtime.files import ensure_writable, write_errors, written_aside

    if to != "focusasr" and dtype == "int8":
        raise UsageError(f"--dtype int8 cannot be used with --to {to}. Use --dtype float16.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new folder")
    ensure_writable(folder, "choose another folder")
    checkpoint = load_checkpoint(find_checkpoint(source, local_files_only))
    if to != "focusasr":
        check_plain_whisper(checkpoint, source, "transformers" if to == "huggingface" else "faster-whisper")
    largest = max(float(weight.abs().max()) for weight in checkpoint.model.state_dict().values())
    if dtype != "float32" and not largest <= torch.finfo(torch.float16).max:
        raise InputError(f"{source}: has a weight of {largest:.3g}, too large for {dtype}; use --dtype float32")
    checkpoint = replace(checkpoint, card=checkpoint.card.replace("weights (float32)", f"weights ({dtype})"))
    stored = getattr(torch, dtype)
    with write_errors(folder, "choose another folder", SafetensorError), written_aside(folder) as aside:
        if to == "focusasr":
            save_checkpoint(aside, checkpoint, {"converted_from": source}, dtype=stored)
        else:
            aside.mkdir(parents=True, exist_ok=True)
            (save_hugging_face if to == "huggingface" else save_ctranslate2)(aside, checkpoint, stored)
    print(folder)
