"""The command `evaluate`: a checkpoint on a manifest with the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from focusasr.config import DecodingConfig, LongformConfig, SearchConfig
from focusasr.options import DeviceOption, LocalFilesOption, ModelOption, ThreadsOption, with_settings
from focusasr.progress import progress_bar, stderr
from focusasr.recognizers import ModelChoice, load_recognizer
from focusasr.transcribe_command import told

if TYPE_CHECKING:
    from focusasr.audio import Source
    from focusasr.transcribe import Outcome


@with_settings(DecodingConfig, SearchConfig, LongformConfig)
def evaluate(
    manifest: Annotated[Path, typer.Argument(help="manifest (JSON Lines with audio_filepath and text)")],
    given: dict[type, dict[str, Any]],
    model: ModelOption = None,
    normalizer: Annotated[
        Literal["none", "basic", "english"],
        typer.Option(help="what is done to both texts first: nothing, case and punctuation, Whisper's English rules"),
    ] = "basic",
    output: Annotated[Path | None, typer.Option(help="write one JSON line per utterance here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
    worst: Annotated[int, typer.Option(help="how many of the worst utterances to show", min=0)] = 5,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Measure word error rate on a manifest, with its 95 % interval."""
    from focusasr import evaluate as room
    from focusasr.manifest import read_manifest

    bad_lines: list[str] = []
    utterances = read_manifest(manifest, bad_lines.append)
    for line in bad_lines:
        stderr.print(f"focusasr: {line}", markup=False, highlight=False, soft_wrap=True)
    loaded = load_recognizer(ModelChoice(model, device, threads, local_files_only), given, "evaluate")
    for remark in loaded.remarks:
        stderr.print(f"focusasr: {remark}", markup=False, highlight=False, soft_wrap=True)
    with progress_bar(len(utterances), "evaluating") as tell:

        def recognize(sources: Iterable[Source]) -> Iterator[Outcome]:
            return told(loaded.recognizer.transcribe(sources, lambda seconds: tell(0, seconds)), tell)

        evaluation = room.evaluate(recognize, utterances, normalizer)
    if output:
        room.write_rows(evaluation, output)
    if as_json:
        print(json.dumps(room.to_json(evaluation)))
    else:
        room.print_table(evaluation, Console(), worst)
    if evaluation.failures or bad_lines:
        raise typer.Exit(1)
