"""The command `convert`: a checkpoint from elsewhere, such as a Whisper, as a native folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from focusasr.options import LocalFilesOption
from focusasr.settings import InputError


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="as --model: a folder, .pt, or name on the hub")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a new folder for the checkpoint")],
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="how weights are stored; float16 takes half the space")
    ] = "float32",
    local_files_only: LocalFilesOption = False,
) -> None:
    """Write any checkpoint, a Whisper's too, as a folder of focusasr that needs nothing else."""
    import torch
    from safetensors import SafetensorError

    from focusasr.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
    from focusasr.files import ensure_writable, unwritable, written_aside

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new folder")
    ensure_writable(folder, "choose another folder")
    checkpoint = load_checkpoint(find_checkpoint(source, local_files_only))
    largest = max(float(weight.abs().max()) for weight in checkpoint.model.state_dict().values())
    if dtype == "float16" and not largest <= torch.finfo(torch.float16).max:
        raise InputError(f"{source}: has a weight of {largest:.3g}, too large for float16; use --dtype float32")
    card = checkpoint.card.replace("weights (float32)", f"weights ({dtype})")
    try:
        with written_aside(folder) as aside:
            save_checkpoint(
                aside, replace(checkpoint, card=card), {"converted_from": source}, dtype=getattr(torch, dtype)
            )
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error, "choose another folder") from None
    print(folder)
