"""Live output of Whisper models: file name, language and segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.transcription.result import Segment


class SegmentPrinter:
    """Prints segments to stdout with their times, in whisper's format.

    With `several` recordings each is named first. The language is printed if it was `detected`.
    """

    def __init__(self, several: bool, detected: bool) -> None:
        self._several, self._detected = several, detected
        self._begun: Source | None = None

    def __call__(self, source: Source, language: str | None, segments: Sequence[Segment]) -> None:
        """Print segments of a source, and its heading before the first ones."""
        from focusasr.text.whisper_tokenizer import language_name
        from focusasr.transcription.writers import clock

        if source != self._begun:
            self._begun = source
            if self._several:
                print(f"{source.name}:", flush=True)
            if self._detected and language is not None:
                print(f"Detected language: {language_name(language)}", flush=True)
        for segment in segments:
            if segment.text.strip():
                times = f"[{clock(segment.start)} --> {clock(segment.end)}]"
                print(f"{times} {segment.shown.text}", flush=True)
