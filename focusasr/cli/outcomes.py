"""Reports on transcription outcomes: progress, errors and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from focusasr.runtime.console import pluralize, warn
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError
from focusasr.runtime.process import debugging
from focusasr.transcription.recognizer import LoadedRecognizer

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.runtime.devices import Processes
    from focusasr.transcription.result import Outcome


LEAST_LOGPROB = -0.5  # above it: all 384 dev recordings in the default model's domain, 3 of 177 outside it


@contextmanager
def shared_work(processes: Processes) -> Iterator[None]:
    """Report a crashed peer process in one line, and close the process group."""
    from focusasr.runtime.devices import close_process_group, translate_peer_errors

    with translate_peer_errors("see its own message, and start the job again"):
        yield
    close_process_group(processes)


def tell_remarks(loaded: LoadedRecognizer, repeated: Sequence[Source] = (), barren: Sequence[InputError] = ()) -> None:
    """Print ignored settings and skipped files to stderr, once for all processes."""
    again = [f"each file is heard once; left out what is given again, such as {one.name}" for one in repeated[:1]]
    for remark in [*loaded.remarks, *again, *map(str, barren)] if loaded.processes.main else ():
        warn(f"focusasr: {remark}")


def told(outcomes: Iterable[Outcome], tell: Any, processes: Processes) -> Iterator[Outcome]:
    """Count each outcome on the progress bar, and print errors to stderr, once for all processes."""
    before = None
    for outcome in outcomes:
        tell(1, 0.0)
        if outcome.error not in (None, before) and processes.main:  # a missing library affects all files
            if debugging():
                warn(outcome.trace.rstrip())
            warn(f"focusasr: {outcome.error}")
            before = outcome.error
        yield outcome


def doubts_told(outcomes: Iterable[Outcome], is_whisper: bool) -> Iterator[Outcome]:
    """Warn of a text that is empty although there is speech, or that is unreliable.

    Unreliable texts are those of native models with a small vocabulary. The first one is named, the others are counted.
    """
    from focusasr.transcription.recognizer import has_speech

    doubtful, broken = 0, False
    for outcome in outcomes:
        heard = outcome.transcript
        if heard and not heard.text.strip() and outcome.error is None and not broken:
            try:
                if has_speech(outcome.source):
                    empty = "has speech, but the model finds no words in it; try another --model"
                    warn(f"focusasr: {outcome.source.name}: {empty}")
            except LibraryError as error:
                warn(f"focusasr: {error}")
                broken = True
        if heard and not is_whisper and heard.avg_logprob < LEAST_LOGPROB:
            doubtful += 1
            if doubtful == 1:
                doubt = f"this text is in doubt (mean log probability {heard.avg_logprob:.2f})"
                known = "'focusasr info' shows the model card; or try another --model"
                warn(f"focusasr: {outcome.source.name}: {doubt}; {known}")
        yield outcome
    if doubtful > 1:
        warn(f"focusasr: {pluralize(doubtful - 1, 'other text')} {'is' if doubtful == 2 else 'are'} in doubt too")
