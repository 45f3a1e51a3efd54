"""Reports on transcription outcomes: progress, errors and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from focusasr.runtime.console import pluralize, warn
from focusasr.runtime.errors import InputError
from focusasr.runtime.process import debugging
from focusasr.transcription.loaded_model import LoadedRecognizer

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.runtime.devices import Processes
    from focusasr.transcription.result import Outcome


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


def told(outcomes: Iterable[Outcome], tell: Any, loaded: LoadedRecognizer, doubts: bool = True) -> Iterator[Outcome]:
    """Count each outcome on the progress bar; print errors, and doubts of texts, to stderr, once for all processes.

    The first text in doubt is named, the others are counted.
    """
    doubtful, printed = 0, ""  # a missing library affects all files
    for outcome in outcomes:
        tell(1, 0.0)
        if outcome.error and outcome.error != printed and loaded.processes.main:
            if debugging():
                warn(outcome.trace.rstrip())
            warn(f"focusasr: {outcome.error}")
            printed = outcome.error
        if doubts and loaded.processes.main:
            if (problem := loaded.empty_although(outcome)) and problem != printed:
                warn(f"focusasr: {problem}")
                printed = problem
            if loaded.is_doubtful(outcome) and (doubtful := doubtful + 1) == 1:
                assert outcome.transcript is not None
                doubt = f"this text is in doubt (mean log probability {outcome.transcript.avg_logprob:.2f})"
                known = "'focusasr info' shows the model card; or try another --model"
                warn(f"focusasr: {outcome.source.name}: {doubt}; {known}")
        yield outcome
    if doubtful > 1:
        warn(f"focusasr: {pluralize(doubtful - 1, 'other text')} {'is' if doubtful == 2 else 'are'} in doubt too")
