"""The command `transcribe`: recordings to text, on stdout or in files."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusasr.cli.options import RATE, with_settings
from focusasr.cli.outcomes import doubts_told, shared_work, tell_remarks, told
from focusasr.cli.segment_printer import SegmentPrinter
from focusasr.config import DecodingConfig, RecordingConfig
from focusasr.runtime.console import note, pluralize, progress_bar, warn
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.files import ensure_writable, real_path
from focusasr.runtime.process import Closed, on_interrupt_message
from focusasr.transcription.options import Options
from focusasr.transcription.recognizer import LoadedRecognizer, ModelChoice, load_recognizer
from focusasr.transcription.result import SegmentsFound, ignore
from focusasr.whisper_config import LongformConfig, OutputConfig, SearchConfig

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.runtime.devices import Processes
    from focusasr.transcription.result import Outcome, Transcript
    from focusasr.transcription.resume import OutputCache, SegmentCacheOf


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


@with_settings(OutputConfig, RecordingConfig, DecodingConfig, LongformConfig, SearchConfig)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="audio or video files, folders, globs, or - for standard input")],
    given: dict[type, dict[str, Any]],
    choice: ModelChoice,
    output_dir: FolderOption = None,
    output_format: FormatOption = None,
    rate: RateOption = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="keep outputs of the same audio, model and options, and continue a partly transcribed recording",
        ),
    ] = False,
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
    output, formats = options.output, parse_formats(output_format or ["all"])
    repeated: list[Source] = []
    barren: list[InputError] = []
    sources = [options.chosen(source) for source in find_sources(files, repeated.append, barren.append)]
    several = len(sources) + len(repeated) + len(barren) > 1
    subtitles = output_dir not in (None, Path("-")) or formats[0] in ("srt", "vtt")
    loaded = load_recognizer(choice, given, subtitles)
    tell_remarks(loaded, repeated, barren)
    if output_dir is None and loaded.as_whisper:
        output_dir = Path()
    if output_dir is None or str(output_dir) == "-":
        _check_printing(several, formats, skip_existing)
        _receive(loaded, sources, options, rate)
        deliver(loaded, sources, lambda outcomes: print_texts(outcomes, several, formats[0], output), len(barren))
        return
    again = known_outputs(loaded, given, output_dir) if skip_existing else None
    writing = Writing.planned(sources, output_dir, formats, again, loaded.processes)
    _receive(loaded, writing.sources, options, rate)
    notes = again.notes if again else None
    live = live_text(loaded, several, output)
    deliver(loaded, writing.sources, lambda outcomes: writing.write(outcomes, output), len(barren), notes, live)


def _receive(loaded: LoadedRecognizer, sources: list[Source], options: Options, rate: int | None) -> None:
    """Read standard input if it is a source; an error is reported when the source is transcribed."""
    from focusasr.cli.live_stdin import receive

    if not any(source.is_stdin for source in sources):
        return
    if loaded.processes.count > 1:
        raise UsageError("- (standard input): cannot be used with several processes. Use one process.")
    with suppress(InputError):
        receive(loaded.model, options, rate)


def live_text(loaded: LoadedRecognizer, several: bool, output: OutputConfig) -> SegmentsFound:
    """Return the printer of live segments: for Whisper models, in the main process."""
    if loaded.as_whisper and output.verbose and loaded.processes.main and not isinstance(sys.stdout, Closed):
        return SegmentPrinter(several, loaded.detects_language)
    return ignore


def deliver(
    loaded: LoadedRecognizer,
    sources: list[Source],
    give: Callable[[Iterator[Outcome]], int],
    barren: int = 0,
    notes: SegmentCacheOf | None = None,
    found: SegmentsFound = ignore,
) -> None:
    """Transcribe, and pass the outcomes to a function that prints or writes them; exit status 1 after failures.

    `barren` inputs, which match no file, count as failures. `found` gets segments when they are decoded.
    """
    from focusasr.audio.load import total_seconds

    processes = loaded.processes
    bar = progress_bar(len(sources), "transcribing", lambda: total_seconds(sources))
    with shared_work(processes), bar as tell:
        coming = told(loaded.shared(sources, tell, notes, found), tell, processes)
        outcomes = promised(coming, len(sources), notes is not None)
        if processes.main:
            failed = give(doubts_told(outcomes, loaded.is_whisper))
        else:
            failed = 0  # the main process reports
            deque(outcomes, maxlen=0)
    _leave_with(failed + barren, len(sources) + barren)


def _leave_with(failed: int, count: int) -> None:
    """Exit with status 1 after failures, and print their number."""
    if failed and count > 1:
        warn(f"focusasr: {failed} of {count} files failed")
    if failed:
        raise typer.Exit(1)


def _check_printing(several: bool, formats: list[str], skip_existing: bool) -> None:
    """Reject options that need --output-dir if nothing is written."""
    if len(formats) > 1:
        raise UsageError(f"--output-format {' and '.join(formats)} need --output-dir; only one can be printed")
    if several and formats[0] not in ("all", "txt"):
        raise UsageError(f"--output-format {formats[0]} of several files needs --output-dir")
    if skip_existing:
        raise UsageError("--skip-existing needs --output-dir; what is printed is not kept")


def promised(outcomes: Iterator[Outcome], total: int, skipping: bool) -> Iterator[Outcome]:
    """Yield the outcomes; the interrupt message then counts the texts that are written."""
    written = 0
    while True:
        then = "resumes, also within a recording" if skipping else "starts from the beginning"
        on_interrupt_message(f"{written} of {total} texts are written, each whole; the same command {then}")
        if (outcome := next(outcomes, None)) is None:
            return
        yield outcome
        written += outcome.transcript is not None


def print_texts(outcomes: Iterable[Outcome], several: bool, suffix: str, output: OutputConfig) -> int:
    """Print transcripts to stdout in order; return the number of failures."""
    from focusasr.transcription.writers import render

    failed = 0
    for outcome in outcomes:
        failed += outcome.error is not None
        if outcome.transcript is None:
            continue
        if several or suffix in ("txt", "all"):
            name = f"{outcome.source.name}\t" if several else ""
            for line in printed_lines(outcome.transcript):
                print(f"{name}{line}", flush=True)
        else:
            print(render(outcome.transcript, suffix, output).removesuffix("\n"), flush=True)
    return failed


def printed_lines(transcript: Transcript) -> list[str]:
    """Return a text in one line, or one line per segment for channels transcribed separately."""
    if any(segment.channel is not None for segment in transcript.segments):
        return [segment.shown.text.strip() for segment in transcript.segments]
    return [transcript.text.strip()]


def known_outputs(loaded: LoadedRecognizer, given: dict[type, dict[str, Any]], folder: Path) -> OutputCache:
    """Return the record of a folder's outputs by this model with these settings, if they change a transcript."""
    from focusasr.model.checkpoint_folder import fingerprint_of_model
    from focusasr.transcription.resume import OutputCache

    settings = Options.read(given).decided()
    decided = {name: value for name, value in settings.items() if name not in ("batch_size", "verbose")}
    return OutputCache(folder, {"model": fingerprint_of_model(loaded.path), **decided})


@dataclass(frozen=True)
class Writing:
    """Sources to transcribe, their output `stems` (paths without suffix), and the record of earlier outputs."""

    folder: Path
    sources: list[Source]
    stems: list[Path]
    formats: list[str]
    again: OutputCache | None

    @classmethod
    def planned(
        cls, sources: list[Source], folder: Path, wanted: list[str], again: OutputCache | None, processes: Processes
    ) -> Writing:
        """Return the remaining work, the same in every process."""
        from focusasr.transcription.writers import ANOTHER, FORMATS, output_paths, output_stems

        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; give --output-dir a folder")
        formats = list(FORMATS) if "all" in wanted else wanted
        pairs = list(zip(sources, output_stems(sources, folder), strict=True))
        given = {real_path(source.path) for source in sources}
        for path in (path for _, stem in pairs for path in output_paths(stem, formats)):
            if real_path(path) in given:
                raise UsageError(f"{path}: is one of the recordings, which a text would replace; choose another -o")
        left = [pair for pair in pairs if not (again and again.finished(pair[0], output_paths(pair[1], formats)))]
        processes.gather([])  # no process writes before all have checked
        if len(left) < len(pairs) and processes.main:
            warn(f"focusasr: {len(pairs) - len(left)} of {len(pairs)} files are written already")
        if left:
            ensure_writable(folder, ANOTHER)
        there = [path for _, stem in left for path in output_paths(stem, formats) if again and again.wrote(path)]
        if there and processes.main:
            anew = f"{pluralize(len(there), 'file')} rewritten, such as {there[0]}"
            warn(f"focusasr: {anew}: changed since, or of another sound, model or options")
        return cls(folder, [source for source, _ in left], [stem for _, stem in left], formats, again)

    def write(self, outcomes: Iterable[Outcome], output: OutputConfig) -> int:
        """Write the files of each transcript when it is complete; return the number of failures."""
        from focusasr.transcription.writers import write

        failed = written = 0
        for stem, outcome in zip(self.stems, outcomes, strict=True):
            failed += outcome.error is not None
            if outcome.transcript is None:
                continue
            paths = write(outcome.transcript, stem, self.formats, output)
            written += len(paths)
            if self.again and outcome.error is None:
                self.again.add(outcome.source, paths)
        note(f"focusasr: {pluralize(written, 'file')} written to {self.folder.absolute()}")
        return failed
