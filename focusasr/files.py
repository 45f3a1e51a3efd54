"""Files that are whole or absent: written aside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    Works for one file or one folder. A folder that already exists at `path` is replaced as a whole.
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
