"""What was heard of a recording so far, noted beside its outputs: a run that broke off goes on in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.files import append_line, read_lines

if TYPE_CHECKING:
    from focusasr.audio import Source
    from focusasr.output import Segment
    from focusasr.segments import Piece


class Heard:
    """Answers by the place in the recording that they belong to; without a path nothing is noted."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is not None:
            self._known.update(read_lines(path))

    def get(self, place: str) -> Any:
        """Return what was noted for a place, None where nothing was."""
        return self._known.get(place)

    def note(self, place: str, answer: Any) -> None:
        """Note what was heard at a place; OSError where it cannot be written."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, [place, answer])

    def piece(self, piece: Piece) -> list[Segment] | None:
        """Return the segments that were noted for a piece, None where it was not decoded yet."""
        known = self.get(_place(piece))
        return None if known is None else as_segments(known)

    def note_piece(self, piece: Piece, segments: Iterable[Segment]) -> None:
        """Note the segments of a piece."""
        if self._path is not None:  # most runs note nothing
            self.note(_place(piece), [asdict(segment) for segment in segments])


Notes = Callable[["Source"], Heard]


def as_segments(known: Iterable[dict[str, Any]]) -> list[Segment]:
    """Return segments from what `dataclasses.asdict` made of them."""
    from focusasr.output import Segment

    return [Segment(**segment) for segment in known]


def _place(piece: Piece) -> str:
    return f"{piece.start_seconds}+{len(piece.waveform)}"
