"""The command `transcribe`: files to text, on stdout or in files; and the recognizer that `evaluate` uses too."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from focusasr.config import DecodingConfig
from focusasr.options import DeviceOption, LocalFilesOption, ModelOption, ThreadsOption, with_settings
from focusasr.progress import progress_bar, stderr
from focusasr.settings import read_settings

if TYPE_CHECKING:
    from focusasr.audio import Source
    from focusasr.transcribe import Outcome, Recognizer


@with_settings(DecodingConfig)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="audio or video files, folders, globs, or - for standard input")],
    given: dict[type, dict[str, Any]],
    model: ModelOption = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="write files here")] = None,
    output_format: Annotated[
        Literal["txt", "vtt", "srt", "tsv", "json", "all"],
        typer.Option("--output-format", "-f", help="with --output-dir: which files; without: how one file is printed"),
    ] = "all",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    local_files_only: LocalFilesOption = False,
) -> None:
    """Write down what is said in audio files.

    Without --output-dir the text goes to stdout: one file gives its text, several give PATH<TAB>TEXT, a line each,
    in the order given. A file that cannot be read is named on stderr, the others go on, and the exit status is 1.
    """
    from focusasr.audio import find_sources

    sources = find_sources(files)
    several = len(sources) > 1
    if several and output_dir is None and output_format not in ("all", "txt"):
        raise typer.BadParameter(f"--output-format {output_format} of several files needs --output-dir")
    config = read_settings(DecodingConfig, given[DecodingConfig], "transcribe")
    recognizer = make_recognizer(model, device, threads, config, local_files_only)
    with progress_bar(len(sources), "transcribing") as tell:
        outcomes = told(recognizer.transcribe(sources, lambda seconds: tell(0, seconds)), tell)
        if output_dir is None:
            failed = print_texts(outcomes, several, "txt" if output_format == "all" else output_format)
        else:
            failed = write_files(outcomes, sources, output_dir, output_format)
    if failed:
        if len(sources) > 1:
            print(f"focusasr: {failed} of {len(sources)} files failed", file=sys.stderr)
        raise typer.Exit(1)


def told(outcomes: Iterable[Outcome], tell: Any) -> Iterator[Outcome]:
    """Count each outcome on the progress bar, and name those that failed on stderr."""
    for outcome in outcomes:
        tell(1, 0.0)
        if outcome.error is not None:
            stderr.print(f"focusasr: {outcome.error}", markup=False, highlight=False, soft_wrap=True)
        yield outcome


def print_texts(outcomes: Iterable[Outcome], several: bool, suffix: str) -> int:
    """Print transcripts to stdout as they come; return how many failed."""
    from focusasr.output import render

    failed = 0
    for outcome in outcomes:
        if outcome.transcript is None:
            failed += 1
        elif several:
            print(f"{outcome.source.name}\t{outcome.transcript.text}", flush=True)
        elif suffix == "txt":
            print(outcome.transcript.text, flush=True)
        else:
            sys.stdout.write(render(outcome.transcript, suffix))
    return failed


def write_files(outcomes: Iterable[Outcome], sources: list[Source], folder: Path, wanted: str) -> int:
    """Write each transcript's files into the folder as it comes; return how many failed."""
    from focusasr.output import FORMATS, output_stems, write

    stems = output_stems(sources, folder)
    failed = 0
    for stem, outcome in zip(stems, outcomes, strict=True):
        if outcome.transcript is None:
            failed += 1
        else:
            write(outcome.transcript, stem, FORMATS if wanted == "all" else [wanted])
    return failed


def make_recognizer(
    model: str | None, device: str, threads: int, config: DecodingConfig, local_files_only: bool = False
) -> Recognizer:
    """Load what transcribes; torch is imported here."""
    import torch

    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.device import choose_device
    from focusasr.transcribe import Recognizer

    if threads:
        torch.set_num_threads(threads)
    chosen, _ = choose_device(device)
    return Recognizer(load_checkpoint(find_checkpoint(model, local_files_only), chosen), chosen, config)
