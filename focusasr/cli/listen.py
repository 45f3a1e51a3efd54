"""The command `listen`: live transcription of a microphone, a pipe, or a file."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusasr.cli.options import RATE, with_settings
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig, RecordingConfig
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.files import ensure_writable, unwritable, write_errors
from focusasr.runtime.process import restore_interrupts
from focusasr.transcription.recognizer import ModelChoice
from focusasr.whisper_config import LongformConfig, OutputConfig, SearchConfig

if TYPE_CHECKING:
    import numpy as np

    from focusasr.transcription.live import LiveText, LiveTranscriber


INSTEAD = "choose another --output-dir"
NAME = "listen"  # stem of the files in --output-dir
REST = 50.0  # times the duration of a write, before the transcript is written again
WAIT_SECONDS = 0.1  # seconds between two checks for Ctrl-C


@with_settings(OutputConfig, RecordingConfig, DecodingConfig, LongformConfig, SearchConfig)
def listen(
    given: dict[type, dict[str, Any]],
    choice: ModelChoice,
    recording: Annotated[str | None, typer.Argument(help="the same as --from", show_default=False)] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="file to play in real time, or - for WAV or raw 16-bit PCM from a pipe"),
    ] = None,
    rate: Annotated[
        int, typer.Option(help="sampling rate of raw PCM, in Hz", parser=RATE, metavar="<int>")
    ] = SAMPLE_RATE_HZ,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="folder for the audio and its transcript")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON line for each partial and final text")
    ] = False,
) -> None:
    """Transcribe live speech from the microphone, a pipe, or a file played in real time.

    Final texts are printed, one line each, when a pause ends a segment. A terminal also shows partial texts. Ctrl-C
    ends the command after the last text. Segments end at short pauses, so texts can differ from those of transcribe.
    """
    from focusasr.api import Recognizer

    if recording is not None and source is not None:
        raise UsageError(f"{recording} and --from {source} cannot be combined. Give one of them.")
    source = recording if source is None else source
    if output_dir is not None:
        ensure_writable(output_dir, INSTEAD)
    tracks = RecordingConfig(**given.pop(RecordingConfig))
    if tracks.channels == "separate":
        raise UsageError("--channels separate: a live text is of one channel. Choose it with --channel.")
    options = {name: value for values in given.values() for name, value in values.items()}
    live = Recognizer(choice, options).live()
    coming = _incoming(source, rate, tracks)
    with ExitStack() as stack:
        keep = Keeping(output_dir, OutputConfig(**given[OutputConfig]), stack) if output_dir else None
        stop = stack.enter_context(_answering_signals())
        if source is None:
            warn("focusasr: listening; Ctrl-C ends it")
        errors = run(live, coming, stop, Output(Show(as_json), keep))
    for error in errors:
        raise error


def _incoming(source: str | None, rate: int, recording: RecordingConfig) -> Iterator[np.ndarray]:
    """Yield the audio of the microphone, of a pipe, or of a file in real time."""
    from focusasr.audio.source import Source
    from focusasr.cli.live_audio import microphone, pipe, played

    if source is None:
        return microphone()
    if source == "-":
        return pipe(rate, recording.channel)
    return played(Source(source, channel=recording.channel, track=recording.audio_track))


@contextmanager
def _answering_signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one ends the process immediately."""
    stop = threading.Event()
    restore_interrupts()

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


def run(live: LiveTranscriber, coming: Iterator[np.ndarray], stop: threading.Event, output: Output) -> list[Exception]:
    """Read samples in a thread and transcribe them here until their end; return the error of reading or writing.

    In any case the audio up to then is transcribed.
    """
    import numpy as np

    blocks: queue.SimpleQueue[np.ndarray | Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(coming, blocks, stop), daemon=True, name="focusasr audio").start()
    ended = False
    while not ended:
        items = list(_waiting(blocks, stop))
        ended = any(not isinstance(item, np.ndarray) for item in items)
        output.errors += [item for item in items if isinstance(item, Exception)]
        if taken := [item for item in items if isinstance(item, np.ndarray)]:
            samples = np.concatenate(taken)
            output.audio(samples)
            for text in live.feed(samples):
                output.text(text)
    for text in live.end():
        output.text(text)
    output.finish()
    return output.errors


def _read(coming: Iterator[np.ndarray], blocks: queue.SimpleQueue[Any], stop: threading.Event) -> None:
    try:
        for block in coming:
            blocks.put(block)
            if stop.is_set():
                break
        blocks.put(None)
    except Exception as error:
        blocks.put(error)


def _waiting(blocks: queue.SimpleQueue[Any], stop: threading.Event) -> Iterator[Any]:
    """Yield all available blocks, after a short wait for the first; None at the end."""
    try:
        yield blocks.get(timeout=WAIT_SECONDS)
        while True:
            yield blocks.get_nowait()
    except queue.Empty:
        if stop.is_set():
            yield None


class Show:
    """Prints texts to stdout: final ones as lines, partial ones in place on a terminal."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._terminal = as_json, sys.stdout.isatty()

    def __call__(self, text: LiveText) -> None:
        """Print one text."""
        if self._as_json:
            print(json.dumps(text.to_dict()), flush=True)
        elif self._terminal:
            line = text.text if text.final else text.text[-(shutil.get_terminal_size().columns - 1) :]
            print(f"\r\x1b[K{line}", end="\n" if text.final and text.text else "", flush=True)
        elif text.final and text.text:
            print(text.text, flush=True)


class Output:
    """Printed and stored results; printing continues if storing fails."""

    def __init__(self, show: Show, keep: Keeping | None) -> None:
        self._show, self._keep = show, keep
        self.errors: list[Exception] = []

    def audio(self, samples: np.ndarray) -> None:
        """Store samples (n,)."""
        self._try(lambda keep: keep.audio(samples))

    def text(self, text: LiveText) -> None:
        """Print a text, and store it if it is final."""
        self._show(text)
        if text.final:
            self._try(lambda keep: keep.text(text))

    def finish(self) -> None:
        """Store what is not stored yet."""
        self._try(lambda keep: keep.write())

    def _try(self, action: Callable[[Keeping], None]) -> None:
        if self._keep is None:
            return
        try:
            action(self._keep)
        except InputError as error:
            self._keep = None
            self.errors.append(error)
            warn(f"focusasr: {error}; the text is still printed, and no longer kept")


class Keeping:
    """The audio as FLAC and the transcript so far in every format, each file whole."""

    def __init__(self, folder: Path, output: OutputConfig, stack: ExitStack) -> None:
        import soundfile

        self._output = output
        self._texts: list[LiveText] = []
        self._rest_until = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = _free_stem(folder / f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}")
        with self._explained():
            self._sound = soundfile.SoundFile(f"{self._stem}.flac", "w", SAMPLE_RATE_HZ, 1, "PCM_16")
        stack.callback(self._sound.close)

    def _explained(self) -> AbstractContextManager[None]:
        import soundfile

        return write_errors(Path(f"{self._stem}.flac"), INSTEAD, soundfile.LibsndfileError)

    def audio(self, samples: np.ndarray) -> None:
        """Append samples (n,) to the file."""
        with self._explained():
            self._sound.write(samples)

    def text(self, text: LiveText) -> None:
        """Add a final text; the transcript is written now, unless a recent write took long."""
        self._texts.append(text)
        begin = time.monotonic()
        if begin >= self._rest_until:
            self.write()
            now = time.monotonic()
            self._rest_until = now + REST * (now - begin)

    def write(self) -> None:
        """Write the transcript of all final texts."""
        from focusasr.transcription.result import Transcript
        from focusasr.transcription.writers import FORMATS, write

        segments = [segment for one in self._texts for segment in one.segments]
        numbered = [replace(segment, id=index) for index, segment in enumerate(segments)]
        whole = " ".join(one.text for one in self._texts if one.text)
        language = next((one.language for one in self._texts if one.language), None)
        write(Transcript(whole, numbered, language), self._stem, FORMATS, self._output)


def _free_stem(stem: Path) -> Path:
    """Return the stem, with a number if another command has it; its FLAC file is made."""
    name, number = stem, 1
    while True:
        path = Path(f"{name}.flac")
        try:
            path.touch(exist_ok=False)
            return name
        except FileExistsError:
            number += 1
            name = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise unwritable(path, error, INSTEAD) from None
