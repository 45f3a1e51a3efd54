"""Files that are whole or absent: written aside, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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
