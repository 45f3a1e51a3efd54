"""Finished outputs and partly transcribed recordings of earlier runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.audio.source import Source
from focusasr.runtime.cache import JsonLinesCache, fingerprint, json_digest
from focusasr.runtime.files import append_line, read_lines
from focusasr.transcription.result import as_segments

if TYPE_CHECKING:
    from focusasr.audio.segmentation import AudioSegment
    from focusasr.transcription.result import Segment


JOURNAL = ".transcribed.jsonl"


class OutputCache:
    """The finished outputs below a folder, by what they were made from: sound, and `made_with` (model and options).

    Only regular files can be recognized; anything else (a pipe, memory, a missing file) is never finished.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        self._folder = folder
        self._made_with = made_with
        self._journal = JsonLinesCache(folder, JOURNAL)
        self._seen: dict[Source, dict[str, Any] | None] = {}
        self._half_heard: dict[str, list[str]] = defaultdict(list)  # by source, of earlier runs; looked for once
        for path in folder.glob(".*.heard"):
            self._half_heard[path.name.partition("-")[0]].append(path.name)

    def finished(self, source: Source, outputs: Sequence[Path]) -> bool:
        """Return whether all outputs are there as they were written, made from the same; then forget what was heard."""
        if not all(output in self._journal and output.is_file() for output in outputs):
            return False  # nothing read yet: sound may be long
        made_from = self._made_from(source)
        done = made_from is not None and all(self._journal.finished(output, made_from) for output in outputs)
        if done:  # a run that was killed between noting and forgetting
            self._forget(source)
        return done

    def wrote(self, output: Path) -> bool:
        """Return whether an output is there that was noted once, of whatever sound it was."""
        return output in self._journal and output.is_file()

    def add(self, source: Source, outputs: Sequence[Path]) -> None:
        """Note finished outputs, and forget what was heard on the way to them."""
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
        """Return what was heard of a source by a run that broke off; it notes what is heard from now on."""
        made_from = self._made_from(source)
        if made_from is None:
            return SegmentCache()
        name = _half_heard(source, json_digest([made_from, source.channel])[:16])
        self._half_heard[name.partition("-")[0]].append(name)
        return SegmentCache(self._folder / name)

    def _made_from(self, source: Source) -> dict[str, Any] | None:
        if source not in self._seen:
            self._seen[source] = self._looked_at(Path(source.path)) if source.memory is None else None
        return self._seen[source]

    def _looked_at(self, path: Path) -> dict[str, Any] | None:
        try:
            return {"sha256": fingerprint(path), **self._made_with} if path.is_file() else None
        except OSError:
            return None  # reading it as sound will say why


def _half_heard(source: Source, made_from: str) -> str:
    return f".{json_digest(str(Path(source.path).absolute()))[:16]}-{made_from}.heard"


class SegmentCache:
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

    def piece(self, piece: AudioSegment) -> list[Segment] | None:
        """Return the segments that were noted for a piece, None where it was not decoded yet."""
        known = self.get(_place(piece))
        return None if known is None else as_segments(known)

    def note_piece(self, piece: AudioSegment, segments: Iterable[Segment]) -> None:
        """Note the segments of a piece."""
        if self._path is not None:  # most runs note nothing
            self.note(_place(piece), [asdict(segment) for segment in segments])


SegmentCacheOf = Callable[["Source"], SegmentCache]


def _place(piece: AudioSegment) -> str:
    return f"{piece.start_seconds}+{len(piece.waveform)}"
