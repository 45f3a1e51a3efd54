"""Files that are whole or absent, written aside and renamed; and small ones, read whole."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from focusasr.settings import InputError

LARGEST_TEXT = 32 * 2**20  # bytes of a piece of a checkpoint; Whisper's tokenizer.json has 4 million


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    Works for one file or one folder. A folder that already exists at `path` is replaced as a whole, by two renames:
    killed between them, a program leaves the old folder aside, and `restore` puts it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path, "part")
    try:
        yield aside
        if aside.is_dir():
            _replace_folder(aside, path)
        else:
            os.replace(aside, path)
    finally:
        _remove(aside)


def restore(path: Path) -> None:
    """Put back the folder at `path` where a writer was killed between its two renames; remove what it left aside.

    For the start of a program that alone writes to `path`: another writer's files under way would go too.
    """
    name = glob.escape(f".{path.name[:40]}.")
    retired = sorted(path.parent.glob(f"{name}*.old"), key=lambda folder: folder.stat().st_mtime_ns)
    if retired and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # a sister process was first
            os.replace(retired[-1], path)
    for suffix in ("part", "old"):
        for leftover in path.parent.glob(f"{name}*.{suffix}"):
            _remove(leftover)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name[:40]}.{uuid4().hex[:8]}.{suffix}")  # 40 characters are at most 160 bytes


def _replace_folder(aside: Path, path: Path) -> None:
    retired = _beside(path, "old")
    if path.exists():
        os.replace(path, retired)
    os.replace(aside, path)
    _remove(retired)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a text file; InputError where it is missing, not UTF-8 or far too large for a piece of a checkpoint."""
    try:
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise InputError(f"{path}: has {size} bytes; wanted: at most {LARGEST_TEXT}; copy the folder again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); copy the folder again") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError where it is none."""
    try:
        value = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # numbers may have too many digits, lists too many levels
        raise InputError(f"{path}: not JSON ({error}); copy the folder again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
