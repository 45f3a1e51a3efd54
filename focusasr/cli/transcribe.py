"""The command `transcribe`: recordings to text, on stdout or in files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusasr.cli.options import RATE, with_settings
from focusasr.cli.outcomes import shared_work, tell_remarks, told
from focusasr.cli.segment_printer import SegmentPrinter
from focusasr.config import DecodingConfig, RecordingConfig
from focusasr.runtime.console import note, pluralize, progress_bar, warn
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.process import Closed, on_interrupt_message
from focusasr.transcription.loaded_model import LoadedRecognizer, load_recognizer
from focusasr.transcription.options import Options
from focusasr.transcription.recognizer import ModelChoice
from focusasr.transcription.result import SegmentsFound, ignore
from focusasr.whisper_config import LongformConfig, OutputConfig, SearchConfig

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.transcription.result import Outcome, Transcript
    from focusasr.transcription.resume import OutputCache
    from focusasr.transcription.writers import OutputPlan


FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--output-format",
        "-f",
        help="formats to write, such as srt,json (default all), or the format to print",
        metavar="<txt|vtt|srt|tsv|json|all>",
    ),
]


FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        help="output folder, or - to print (default: . for Whisper models, printing for native ones)",
    ),
]
RateOption = Annotated[
    int | None,
    typer.Option(help="sampling rate of raw 16-bit mono PCM from standard input, in Hz", parser=RATE, metavar="<int>"),
]

SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="keep outputs of the same audio, model and options, and continue a partly transcribed recording",
    ),
]


@with_settings(OutputConfig, RecordingConfig, DecodingConfig, LongformConfig, SearchConfig)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="audio or video files, folders, globs, or - for standard input")],
    given: dict[type, dict[str, Any]],
    choice: ModelChoice,
    output_dir: FolderOption = None,
    output_format: FormatOption = None,
    rate: RateOption = None,
    skip_existing: SkipOption = False,
    fp16: Annotated[
        bool, typer.Option("--fp16/--no-fp16", help="Whisper's switch for float16; False means --compute-type float32")
    ] = True,
) -> None:
    """Transcribe audio and video files.

    Native models print to stdout: the text of one file, or PATH<TAB>TEXT lines for several, in the order given. With
    --output-dir they write files. Whisper models write files as whisper does, and print segments with their times. A
    file that cannot be read is reported on stderr, the others are transcribed, and the exit status is 1. A terminal
    shows the text so far of a live pipe; the transcript at its end is that of the whole recording.
    """
    from focusasr.audio.source import find_sources
    from focusasr.transcription.writers import parse_formats

    if rate is not None and "-" not in files:
        raise UsageError(f"--rate {rate}: only raw audio from standard input needs it. Give - as the file.")
    if not fp16:
        given[DecodingConfig].setdefault("compute_type", "float32")
    options = Options.read(given)
    formats = parse_formats(output_format or ["all"])
    repeated: list[Source] = []
    barren: list[InputError] = []
    sources = [options.chosen(source) for source in find_sources(files, repeated.append, barren.append)]
    several = len(sources) + len(repeated) + len(barren) > 1
    subtitles = output_dir not in (None, Path("-")) or formats[0] in ("srt", "vtt")
    loaded = load_recognizer(choice, given, subtitles)
    tell_remarks(loaded, repeated, barren)
    if output_dir is None and loaded.as_whisper:
        output_dir = Path()
    cache = plan = None
    if output_dir is None or str(output_dir) == "-":
        _check_printing(several, formats, skip_existing)
    else:
        cache = _known_outputs(loaded, options, output_dir) if skip_existing else None
        plan = _planned(sources, output_dir, formats, cache, loaded)
        sources = plan.sources
    _receive(loaded, sources, options, rate)
    live = _live_text(loaded, several, options.output) if plan else ignore

    def give(outcome: Outcome) -> None:
        if plan:
            plan.write(outcome, options.output)
        elif outcome.transcript:
            _print_text(outcome.source, outcome.transcript, several, formats[0], options.output)

    failed = _deliver(loaded, sources, give, cache, live) + len(barren)
    if plan and loaded.processes.main:
        note(f"focusasr: {pluralize(plan.written, 'file')} written to {plan.folder.absolute()}")
    if failed and len(sources) + len(barren) > 1:
        warn(f"focusasr: {failed} of {len(sources) + len(barren)} files failed")
    if failed:
        raise typer.Exit(1)


def _deliver(
    loaded: LoadedRecognizer,
    sources: list[Source],
    give: Callable[[Outcome], None],
    cache: OutputCache | None,
    live: SegmentsFound,
) -> int:
    """Transcribe, and give every transcript in the main process; return the number of failures that it reported."""
    from focusasr.audio.load import total_seconds

    failed = texts = 0
    then = "resumes, also within a recording" if cache else "starts from the beginning"
    safe = f"of {len(sources)} texts are written, each whole; the same command {then}"
    bar = progress_bar(len(sources), "transcribing", lambda: total_seconds(sources))
    with shared_work(loaded.processes), bar as tell:
        on_interrupt_message(f"{texts} {safe}")
        for outcome in told(loaded.shared(sources, tell, cache.notes if cache else None, live), tell, loaded):
            if outcome.transcript and loaded.processes.main:
                give(outcome)
                texts += 1
                on_interrupt_message(f"{texts} {safe}")
            failed += outcome.error is not None and loaded.processes.main
    return failed


def _check_printing(several: bool, formats: list[str], skip_existing: bool) -> None:
    """Reject options that need --output-dir if nothing is written."""
    if len(formats) > 1:
        raise UsageError(f"--output-format {' and '.join(formats)} need --output-dir; only one can be printed")
    if several and formats[0] not in ("all", "txt"):
        raise UsageError(f"--output-format {formats[0]} of several files needs --output-dir")
    if skip_existing:
        raise UsageError("--skip-existing needs --output-dir; what is printed is not kept")


def _known_outputs(loaded: LoadedRecognizer, options: Options, folder: Path) -> OutputCache:
    """Return the record of a folder's outputs by this model with these settings, if they change a transcript."""
    from focusasr.model.checkpoint_folder import fingerprint_of_model
    from focusasr.transcription.resume import OutputCache

    decided = {name: value for name, value in options.decided().items() if name not in ("batch_size", "verbose")}
    return OutputCache(folder, {"model": fingerprint_of_model(loaded.path), **decided})


def _planned(
    sources: list[Source], folder: Path, formats: list[str], cache: OutputCache | None, loaded: LoadedRecognizer
) -> OutputPlan:
    """Return the remaining work, the same in every process, and print what is skipped and rewritten."""
    from focusasr.transcription.writers import OutputPlan

    plan = OutputPlan(sources, folder, formats, cache)
    loaded.processes.gather([])  # no process writes before all have checked
    if len(plan.sources) < len(sources) and loaded.processes.main:
        warn(f"focusasr: {len(sources) - len(plan.sources)} of {len(sources)} files are written already")
    plan.check_folder()
    if (there := plan.rewritten()) and loaded.processes.main:
        again = f"{pluralize(len(there), 'file')} rewritten, such as {there[0]}"
        warn(f"focusasr: {again}: changed since, or of another sound, model or options")
    return plan


def _receive(loaded: LoadedRecognizer, sources: list[Source], options: Options, rate: int | None) -> None:
    """Read standard input if it is a source; an error is reported when the source is transcribed."""
    from focusasr.cli.live_stdin import receive

    if not any(source.is_stdin for source in sources):
        return
    if loaded.processes.count > 1:
        raise UsageError("- (standard input): cannot be used with several processes. Use one process.")
    with suppress(InputError):
        receive(loaded.model, options, rate)


def _live_text(loaded: LoadedRecognizer, several: bool, output: OutputConfig) -> SegmentsFound:
    """Return the printer of live segments: for Whisper models, in the main process."""
    if loaded.as_whisper and output.verbose and loaded.processes.main and not isinstance(sys.stdout, Closed):
        return SegmentPrinter(several, loaded.detects_language)
    return ignore


def _print_text(source: Source, transcript: Transcript, several: bool, suffix: str, output: OutputConfig) -> None:
    """Print a text in one line, or one line per segment for channels transcribed separately; or another format."""
    from focusasr.transcription.writers import render

    if not several and suffix not in ("txt", "all"):
        print(render(transcript, suffix, output).removesuffix("\n"), flush=True)
        return
    lines = [transcript.text.strip()]
    if any(segment.channel is not None for segment in transcript.segments):
        lines = [segment.shown.text.strip() for segment in transcript.segments]
    for line in lines:
        print(f"{source.name}\t{line}" if several else line, flush=True)
