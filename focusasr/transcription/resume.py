"""Cache of finished outputs and partial transcripts, for resuming interrupted runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.audio.source import Source
from focusasr.runtime.cache import JsonLinesCache, content_of, json_digest
from focusasr.runtime.files import append_line, read_lines
from focusasr.transcription.result import as_segments

if TYPE_CHECKING:
    from focusasr.audio.segmentation import AudioSegment
    from focusasr.transcription.result import Segment


JOURNAL = ".transcribed.jsonl"


class OutputCache:
    """The finished outputs below a folder, keyed by content: audio, and `made_with` (model and options).

    Only regular files are recognized. Other sources (a pipe, memory, a missing file) are never finished.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        self._folder = folder
        self._made_with = made_with
        self._journal = JsonLinesCache(folder, JOURNAL)
        self._seen: dict[Source, dict[str, Any] | None] = {}
        self._half_heard: dict[str, list[str]] = defaultdict(list)  # by source, of earlier runs; listed once
        for path in folder.glob(".*.heard"):
            self._half_heard[path.name.partition("-")[0]].append(path.name)

    def finished(self, source: Source, outputs: Sequence[Path]) -> bool:
        """Return whether all outputs exist, unchanged, from the same inputs; if so, delete the partial transcript."""
        if not all(output in self._journal and output.is_file() for output in outputs):
            return False  # before the audio is hashed, which may be long
        made_from = self._made_from(source)
        done = made_from is not None and all(self._journal.finished(output, made_from) for output in outputs)
        if done:  # the last run may have been killed before deleting it
            self._forget(source)
        return done

    def wrote(self, output: Path) -> bool:
        """Return whether an output exists that this cache has recorded, with any inputs."""
        return output in self._journal and output.is_file()

    def add(self, source: Source, outputs: Sequence[Path]) -> None:
        """Record finished outputs, and delete the partial transcript."""
        made_from = self._made_from(source)
        if made_from is None:
            return
        for output in outputs:
            self._journal.add(output, made_from, True)
        self._forget(source)

    def _forget(self, source: Source) -> None:
        for name in set(self._half_heard.pop(_half_heard(source, "").partition("-")[0], ())):
            (self._folder / name).unlink(missing_ok=True)

    def notes(self, source: Source) -> SegmentCache:
        """Return the cache of a source's decoded segments, with those of an interrupted run."""
        made_from = self._made_from(source)
        if made_from is None:
            return SegmentCache()
        name = _half_heard(source, json_digest([made_from, source.channel])[:16])
        self._half_heard[name.partition("-")[0]].append(name)
        return SegmentCache(self._folder / name)

    def _made_from(self, source: Source) -> dict[str, Any] | None:
        if source not in self._seen:
            content = content_of(source.path) if source.memory is None else ""
            self._seen[source] = {"sha256": content, **self._made_with} if content else None
        return self._seen[source]


def _half_heard(source: Source, made_from: str) -> str:
    return f".{json_digest(str(Path(source.path).absolute()))[:16]}-{made_from}.heard"


class SegmentCache:
    """Decoded results by position in the recording; without a path nothing is stored."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is not None:
            self._known.update(read_lines(path))

    def get(self, place: str) -> Any:
        """Return the result stored for a position, None if there is none."""
        return self._known.get(place)

    def note(self, place: str, answer: Any) -> None:
        """Store the result for a position; OSError if it cannot be written."""
        if self._path is not None:
            append_line(self._path, [place, answer])

    def piece(self, piece: AudioSegment) -> list[Segment] | None:
        """Return the stored segments of an audio segment, None if it has not been decoded yet."""
        known = self.get(_place(piece))
        return None if known is None else as_segments(known)

    def note_piece(self, piece: AudioSegment, segments: Iterable[Segment]) -> None:
        """Store the segments of an audio segment."""
        if self._path is not None:  # avoids the conversion in most runs
            self.note(_place(piece), [asdict(segment) for segment in segments])


SegmentCacheOf = Callable[["Source"], SegmentCache]


def _place(piece: AudioSegment) -> str:
    return f"{piece.start_seconds}+{len(piece.waveform)}"
