"""What a run that was cut short had heard already: kept beside the output, reused, and forgotten when all is done."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.audio import STDIN, Source
from focusasr.files import append_line, read_lines
from focusasr.journal import fingerprint

if TYPE_CHECKING:
    from focusasr.transcribe import Outcome


class Recall:
    """Texts by the content of the sound and whatever else decides them: another file or option is another text.

    `decided_by` is JSON: the options and the checkpoint's digest. Lines are appended as they come; one that was cut
    off is heard again.
    """

    def __init__(self, path: Path, decided_by: dict[str, Any]) -> None:
        self.path = path
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        self._known: dict[str, dict[str, Any]] = {}
        for entry in read_lines(path):
            with contextlib.suppress(KeyError, TypeError):
                self._known[entry["key"]] = {name: entry[name] for name in ("text", "language", "audio_seconds")}

    def recognize(
        self, recognize: Callable[[Iterable[Source]], Iterator[Outcome]], sources: Sequence[Source]
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order; only what is not known goes through `recognize`."""
        keys = [self._key(source) for source in sources]
        unknown = [source for source, key in zip(sources, keys, strict=True) if key not in self._known]
        heard = recognize(unknown)
        for source, key in zip(sources, keys, strict=True):
            entry = self._known.get(key)
            yield _outcome(source, entry) if entry else self._kept(key, next(heard))

    def forget(self) -> None:
        """Remove what was kept: the output is written."""
        self.path.unlink(missing_ok=True)

    def _kept(self, key: str, outcome: Outcome) -> Outcome:
        if outcome.transcript is not None and outcome.error is None and key:
            entry = {"text": outcome.transcript.text, "language": outcome.transcript.language}
            line = {"key": key, **entry, "audio_seconds": outcome.audio_seconds}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, line)
        return outcome

    def _key(self, source: Source) -> str:
        """Return what decides a text; empty for what cannot be read, which is tried each time."""
        content = _content(source.path) if source.path != STDIN else ""
        whole = f"{self._decided_by} {content} {source.offset} {source.duration} {source.channel}"
        return hashlib.sha256(whole.encode()).hexdigest() if content else ""


@functools.lru_cache(maxsize=16)  # the parts of a long recording come one after the other
def _content(path: str) -> str:
    """Return the fingerprint of a file, empty where there is none: a pipe can be read only once."""
    with contextlib.suppress(OSError, ValueError):
        return fingerprint(Path(path)) if os.path.isfile(path) else ""
    return ""


def _outcome(source: Source, entry: dict[str, Any]) -> Outcome:
    from focusasr.output import Transcript
    from focusasr.transcribe import Outcome

    return Outcome(source, Transcript(entry["text"], [], entry["language"]), None, entry["audio_seconds"])
