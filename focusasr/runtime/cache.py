"""What was done already: an append-only store of JSON lines, and fingerprints of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusasr.runtime.files import append_line, read_lines

BLOCK_BYTES = 1 << 20


class JsonLinesCache:
    """The finished outputs below a folder: what each was made from, and what its making told.

    An output counts as finished while its file has the size that it had, and what it would be made from is the same.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name
        self._entries: dict[str, dict[str, Any]] = {}
        for entry in read_lines(self.path):
            with contextlib.suppress(KeyError, TypeError):  # another version's
                self._entries[entry["output"]] = {key: entry[key] for key in ("bytes", "made_from", "result")}

    def __contains__(self, output: Path) -> bool:
        """Whether the file was ever made by us."""
        return self._key(output) in self._entries

    def outputs(self) -> list[Path]:
        """Return every file that was ever made by us, there or not."""
        return [self.folder / key for key in self._entries]

    def origins(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield every file that was ever made by us, and what it was made from."""
        for key, entry in self._entries.items():
            with contextlib.suppress(KeyError, TypeError):  # another version's
                yield self.folder / key, {"path": entry["made_from"]["source"]["path"], **entry["made_from"]}

    def finished(self, output: Path, made_from: dict[str, Any]) -> Any:
        """Return what was recorded with a finished output; None where it is to be made (again)."""
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
    """Return what tells whether a file was changed: its path, size and time; OSError where it is not there."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
