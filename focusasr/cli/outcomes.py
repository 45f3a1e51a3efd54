"""What `transcribe` and `evaluate` report of a stream of outcomes: progress, errors, doubts."""

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


LEAST_LOGPROB = -0.5  # of 384 dev recordings that the default model can read all lie above, of 177 that it cannot 3


@contextmanager
def shared_work(processes: Processes) -> Iterator[None]:
    """Say in one line when a sister process has ended, and leave the job of several in good order."""
    from focusasr.runtime.devices import close_process_group, translate_peer_errors

    with translate_peer_errors("see its own message, and start the job again"):
        yield
    close_process_group(processes)


def tell_remarks(loaded: LoadedRecognizer, repeated: Sequence[Source] = (), barren: Sequence[InputError] = ()) -> None:
    """Say on stderr what of the settings cannot be honored, and of the files is left out, once for all processes."""
    again = [f"each file is heard once; left out what is given again, such as {one.name}" for one in repeated[:1]]
    for remark in [*loaded.remarks, *again, *map(str, barren)] if loaded.processes.main else ():
        warn(f"focusasr: {remark}")


def told(outcomes: Iterable[Outcome], tell: Any, processes: Processes) -> Iterator[Outcome]:
    """Count each outcome on the progress bar, and name those that failed on stderr, once for all processes."""
    before = None
    for outcome in outcomes:
        tell(1, 0.0)
        if outcome.error not in (None, before) and processes.main:  # a library that fails, fails for all
            if debugging():
                warn(outcome.trace.rstrip())
            warn(f"focusasr: {outcome.error}")
            before = outcome.error
        yield outcome


def doubts_told(outcomes: Iterable[Outcome], is_whisper: bool) -> Iterator[Outcome]:
    """Say on stderr where a text is empty although there is speech, which would look like silence, or is in doubt.

    Doubtful texts are those of native models that know few words; the first one is named, the others are counted.
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
                known = "'focusasr info' tells what the model knows; or try another --model"
                warn(f"focusasr: {outcome.source.name}: {doubt}; {known}")
        yield outcome
    if doubtful > 1:
        warn(f"focusasr: {pluralize(doubtful - 1, 'other text')} {'is' if doubtful == 2 else 'are'} in doubt too")
