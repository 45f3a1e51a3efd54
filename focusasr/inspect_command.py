"""The commands `inspect` and `info`: what the focus does with a recording, and what there is to compute with."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from focusasr import __version__
from focusasr.config import InspectionConfig
from focusasr.files import ensure_file_writable
from focusasr.options import DeviceOption, LocalFilesOption, ModelOption, number, with_settings
from focusasr.progress import note
from focusasr.settings import SettingError, UsageError, read_options


@with_settings(InspectionConfig)
def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="folder, .pt, name on the hub, or default"),
    ],
    recording: Annotated[str, typer.Argument(metavar="AUDIO", help="an audio file, or - for standard input")],
    given: dict[type, dict[str, Any]],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="draw a picture here, a .png")] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="encoder layer to draw, from 1; may be given again (default: first, middle, last)",
            parser=number(int, least=1),
            metavar="<int>",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
    device: DeviceOption = "auto",
    local_files_only: LocalFilesOption = False,
) -> None:
    """Show what the focus of an encoder does with a recording: span, temperature, entropy, norms per layer and head."""
    from focusasr import inspection as room
    from focusasr.audio import AUDIO_SUFFIXES
    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.device import choose_device

    config = read_options(InspectionConfig, given[InspectionConfig])
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
        from focusasr.picture import draw

        draw(seen, output)
        note(f"focusasr: {output} is drawn")
    if as_json:
        print(json.dumps(room.to_json(seen)))
    else:
        from rich.console import Console

        room.print_table(seen, Console())


def info(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="as --model, which does as well", show_default=False)
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    local_files_only: LocalFilesOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
) -> None:
    """Show a checkpoint's card, the device that would compute and why, and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.device import choose_device
    from focusasr.settings import to_settings

    if checkpoint and model and checkpoint != model:
        raise UsageError(f"two checkpoints, {checkpoint} and --model {model}; give one")
    chosen, reason = choose_device(device)
    loaded = load_checkpoint(find_checkpoint(checkpoint or model, local_files_only))
    versions = {"focusasr": __version__, "python": sys.version.split()[0]}
    for name in ("torch", "torchaudio", "tokenizers", "soundfile", "av", "accelerate", "jiwer"):
        with suppress(PackageNotFoundError):  # the last two are for training and evaluating
            versions[name] = version(name)
    if as_json:
        facts = {"checkpoint": str(loaded.folder), "weights": loaded.model.parameter_count()}
        settings = {"model": to_settings(loaded.model.config), "metrics": loaded.metrics}
        print(json.dumps({**facts, "device": chosen.type, "reason": reason, "versions": versions, **settings}))
        return
    print(loaded.card.strip() + "\n")
    print(f"checkpoint  {loaded.folder}, {loaded.model.parameter_count():,} weights")
    print(f"device      {chosen} ({reason})")
    print("versions    " + ", ".join(f"{name} {number}" for name, number in versions.items()))
