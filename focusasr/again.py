"""What need not be done again: outputs made from the same sound, model and options, and recordings half heard."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusasr.audio import Source
from focusasr.heard import Heard
from focusasr.journal import Journal, fingerprint

JOURNAL = ".transcribed.jsonl"
FOR_READERS = {"README.md", "metrics.json"}  # of a checkpoint's files: they change no text


def fingerprint_of_model(path: Path) -> str:
    """Return the SHA-256 over a checkpoint: its file, or the files of its folder by name, but for those for readers."""
    if path.is_file():
        return fingerprint(path)
    told_apart = (file for file in path.iterdir() if file.is_file() and file.name not in FOR_READERS)
    files = sorted(file for file in told_apart if file.name[0] != ".")
    return _digest([[file.name, fingerprint(file)] for file in files])


class Again:
    """The finished outputs below a folder, by what they were made from: sound, and `made_with` (model and options).

    Only regular files can be recognized; anything else (a pipe, a missing file) is never finished.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any]) -> None:
        self._folder = folder
        self._made_with = made_with
        self._journal = Journal(folder, JOURNAL)
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
        own = _half_heard(source, _digest(self._made_from(source))[:16])
        for name in {own, *self._half_heard.pop(own.partition("-")[0], ())}:
            (self._folder / name).unlink(missing_ok=True)

    def notes(self, source: Source) -> Heard:
        """Return what was heard of a source by a run that broke off; it notes what is heard from now on."""
        made_from = self._made_from(source)
        return Heard(self._folder / _half_heard(source, _digest(made_from)[:16]) if made_from else None)

    def _made_from(self, source: Source) -> dict[str, Any] | None:
        if source not in self._seen:
            self._seen[source] = self._looked_at(Path(source.path))
        return self._seen[source]

    def _looked_at(self, path: Path) -> dict[str, Any] | None:
        try:
            return {"sha256": fingerprint(path), **self._made_with} if path.is_file() else None
        except OSError:
            return None  # reading it as sound will say why


def _half_heard(source: Source, made_from: str) -> str:
    return f".{_digest(str(Path(source.path).absolute()))[:16]}-{made_from}.heard"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
