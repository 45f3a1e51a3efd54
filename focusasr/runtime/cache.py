"""Append-only cache of results as JSON lines, and fingerprints of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusasr.runtime.files import append_line, read_keyed

BLOCK_BYTES = 1 << 20


class JsonLinesCache:
    """Finished outputs below a folder, each with its origin and its result.

    An output is finished as long as its file has the recorded size and its origin is unchanged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name
        self._entries = read_keyed(self.path, "output", ("bytes", "made_from", "result"))

    def __contains__(self, output: Path) -> bool:
        """Return whether the cache has an entry for the file."""
        return self._key(output) in self._entries

    def outputs(self) -> list[Path]:
        """Return every file with an entry, present or not."""
        return [self.folder / key for key in self._entries]

    def origins(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield every file with an entry, and its origin."""
        for key, entry in self._entries.items():
            with contextlib.suppress(KeyError, TypeError):  # entries of another version
                yield self.folder / key, {"path": entry["made_from"]["source"]["path"], **entry["made_from"]}

    def finished(self, output: Path, made_from: dict[str, Any]) -> Any:
        """Return the result of a finished output; None if it is missing, changed or of another origin."""
        entry = self._entries.get(self._key(output))
        if entry is None or entry["made_from"] != made_from or not output.is_file():
            return None
        return entry["result"] if output.stat().st_size == entry["bytes"] else None

    def add(self, output: Path, made_from: dict[str, Any], result: Any) -> None:
        """Append a finished output."""
        entry = {"output": self._key(output), "bytes": output.stat().st_size, "made_from": made_from, "result": result}
        append_line(self.path, entry)

    def _key(self, output: Path) -> str:
        return os.path.relpath(output, self.folder).replace(os.sep, "/")


def file_state(path: Path) -> dict[str, Any]:
    """Return path, size and modification time of a file, to detect changes; OSError if it is missing."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks; OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def content_of(path: str) -> str:
    """Return the fingerprint of a file; empty for a pipe, which can be read only once, and for an unreadable file."""
    with contextlib.suppress(OSError, ValueError):
        return fingerprint(Path(path)) if os.path.isfile(path) else ""
    return ""


def json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
