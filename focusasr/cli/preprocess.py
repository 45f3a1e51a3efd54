"""The command `preprocess`: corpora to 16 kHz files and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from focusasr.cli.options import with_settings
from focusasr.config import PreprocessConfig
from focusasr.runtime.console import file_bar, warn
from focusasr.runtime.files import ensure_writable
from focusasr.runtime.process import on_interrupt_message
from focusasr.runtime.settings import read_settings


@with_settings(PreprocessConfig)
def preprocess(
    inputs: Annotated[list[str], typer.Argument(help="folders, tables (CSV, TSV) or manifests of audio and text")],
    given: dict[type, dict[str, Any]],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="output folder for audio/ and manifest.jsonl")],
) -> None:
    """Convert audio and transcripts of any common corpus format to 16 kHz mono files and a manifest.

    Reads audio with a text, subtitles, labels, TextGrid or ELAN file of the same name; CSV, TSV, JSON, STM, parquet and
    arrow; LibriSpeech, LJSpeech, Common Voice, Kaldi, lhotse and manifests; and tar or zip archives of these. Unusable
    utterances are listed with their reason, suspicious ones are reported in report.html. A rerun resumes.
    """
    from focusasr.cli.html import write_preparation_page
    from focusasr.data import preprocess as room

    ensure_writable(output_dir, "choose another folder with --output-dir")
    config = read_settings(PreprocessConfig, given[PreprocessConfig])
    with file_bar("preprocessing") as tell:

        def told(done: int, total: int) -> None:
            on_interrupt_message(f"{done} of {total} utterances are done; the same command resumes")
            tell(done, total)

        report = room.preprocess(inputs, output_dir, config, told)
    page = report.manifest.with_name("report.html")
    write_preparation_page(page, report.facts, report.utterances, report.found)
    warn(report.summary())
    print(report.manifest)
    if report.failures > config.allow_rejects or not report.kept:
        raise typer.Exit(1)
