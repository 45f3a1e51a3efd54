"""What is finished, so that it is not done again: one JSON line for each output, appended as it is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """The finished outputs below a folder: what each was made from, and what its making told.

    An output counts as finished while its file has the size that it had, and what it would be made from is the same.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / name
        self._entries: dict[str, dict[str, Any]] = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            try:
                entry = json.loads(line)
                self._entries[entry["output"]] = {key: entry[key] for key in ("bytes", "made_from", "result")}
            except (ValueError, KeyError, TypeError):  # blank, or cut off when the machine went down
                continue

    def __contains__(self, output: Path) -> bool:
        """Whether the file was ever made by us."""
        return self._key(output) in self._entries

    def finished(self, output: Path, made_from: dict[str, Any]) -> Any:
        """Return what was recorded with a finished output; None where it is to be made (again)."""
        entry = self._entries.get(self._key(output))
        if entry is None or entry["made_from"] != made_from or not output.is_file():
            return None
        return entry["result"] if output.stat().st_size == entry["bytes"] else None

    def add(self, output: Path, made_from: dict[str, Any], result: Any) -> None:
        """Append a finished output; it opens with a line break, since the line before it may have been cut off."""
        entry = {"output": self._key(output), "bytes": output.stat().st_size, "made_from": made_from, "result": result}
        with self.path.open("ab") as journal:
            journal.write(b"\n" + json.dumps(entry).encode())

    def _key(self, output: Path) -> str:
        return os.path.relpath(output, self.folder).replace(os.sep, "/")


def file_state(path: Path) -> dict[str, Any]:
    """Return what tells whether a file was changed: its path, size and time; OSError where it is not there."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
