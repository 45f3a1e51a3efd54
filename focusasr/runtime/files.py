"""Atomic writes of files and folders, and reading of small text and JSON files."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import re
import shutil
import sys
import time
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError, explain
from focusasr.runtime.settings import parse_json

OPEN_FILE = re.compile(r"(?:/dev/std|/dev/fd/|/proc/self/fd/)(out|err|[0-9]{1,6})")
FULL = (errno.ENOSPC, errno.EDQUOT)  # full disk, exceeded quota
LITTLE_ROOM = 2**20  # bytes
LONG_AGO_SECONDS = 24 * 3600.0
_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<time>\d+)-[0-9a-f]{8}\.(?:part|old)", re.S)
_under_way: set[Path] = set()  # temporary paths of this process
STEM_BYTES = 180  # file systems allow 255 bytes for a name, with markers and suffix
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, controls, bytes that are not UTF-8

LARGEST_TEXT = 32 * 2**20  # bytes of a text file in a checkpoint; Whisper's tokenizer.json has 4 million


def unwritable(path: Path, error: Exception, instead: str) -> InputError | LibraryError:
    """Return the error for an unwritable path, with the remedy `instead`; LibraryError if a library failed."""
    if failure := explain(error):
        return failure
    if isinstance(error, PermissionError):
        place = next((one for one in _there(path) if not os.access(one, os.W_OK)), path.parent).absolute()
        return InputError(f"{place}: no permission to write {'there' if place.is_dir() else 'it'}; {instead}")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return InputError(f"{_there(path)[0]}: is a file, not a folder; {instead}")
    reason = getattr(error, "strerror", None) or str(error)
    if full := _is_full(path, error):
        reason = os.strerror(errno.ENOSPC)
    return InputError(f"{path}: cannot be written ({reason}); {'make room there, or ' * full}{instead}")


@contextmanager
def write_errors(path: Path, instead: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise the error of `unwritable` for an OSError in the block, or for one of other `kinds`."""
    reported: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except reported as error:
        raise unwritable(path, error, instead) from None


def _is_full(path: Path, error: Exception) -> bool:
    """Return whether a write failed because the disk is full; libraries report that in many ways or not at all."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return shutil.disk_usage(_there(path.absolute())[0]).free < LITTLE_ROOM


def is_stream(path: Path) -> bool:
    """Return whether a path is a device, a pipe or standard output by name, which no file may replace."""
    return OPEN_FILE.fullmatch(str(path)) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _stream(path: Path) -> BinaryIO:
    """Open a stream of `is_stream` for appending; a descriptor of this process keeps its position."""
    if named := OPEN_FILE.fullmatch(str(path)):
        sys.stdout.flush()
        return os.fdopen(os.dup({"out": 1, "err": 2}.get(named[1]) or int(named[1])), "wb")
    return path.open("ab")


def ensure_file_writable(path: Path, instead: str) -> None:
    """Raise InputError, as `ensure_writable`, if a file cannot be written at `path`."""
    if not is_stream(path):
        ensure_writable(path.parent, instead)


def ensure_writable(folder: Path, instead: str) -> None:
    """Raise the error of `unwritable` if a folder for results is not writable, before any work."""
    import tempfile

    with write_errors(folder, instead), tempfile.TemporaryFile(dir=_there(folder)[0]):  # removed at once
        pass


def _there(path: Path) -> list[Path]:
    """Return the existing paths among a path and its parents, the nearest first."""
    return [one for one in (path, *path.parents) if os.path.exists(one)]


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` after the block, or remove it on an error.

    It works for a file or a folder. An existing folder at `path` is replaced as a whole, by two renames: if the program
    is killed between them, the old folder keeps its temporary name, and `restore` puts it back. Incomplete files of
    killed programs in the same folder are removed, those of running programs kept. A device, a pipe or standard output
    by name is written to directly.
    """
    if is_stream(path):
        import tempfile

        with tempfile.TemporaryDirectory() as room:
            aside = Path(room) / path.name
            yield aside
            with _stream(path) as out:
                out.write(aside.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    aside = _beside(path, "part")
    _under_way.add(aside)
    try:
        yield aside
        _under_way.discard(aside)
        if aside.is_dir():
            _replace_folder(aside, path)
        else:
            os.replace(aside, path)
    finally:
        _under_way.discard(aside)
        _remove(aside)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name without a second copy, or copy it if the file system has no hard links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copy(source, path)


def discard_asides() -> None:
    """Remove the temporary files of this process, before it exits."""
    for aside in list(_under_way):
        with contextlib.suppress(OSError):
            _remove(aside)


def restore(path: Path) -> None:
    """Put back the folder at `path` if its writer was killed between its two renames; remove temporary files."""
    if not path.parent.is_dir():
        return
    own = [found for found in _asides(path.parent, "old") if found[1]["name"] == path.name[:40]]
    retired = [folder for folder, told in own if not _lives(told)]
    if retired and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # a peer process was first
            os.replace(max(retired, key=lambda folder: folder.stat().st_mtime_ns), path)
    _remove_abandoned(own)
    sweep(path.parent)


@functools.cache
def sweep(folder: Path) -> None:
    """Remove incomplete files of killed processes from a folder, once per process."""
    _remove_abandoned(_asides(folder, "part"))


Aside = tuple[Path, re.Match[str]]


def _asides(folder: Path, suffix: str) -> list[Aside]:
    return [(path, told) for path in folder.glob(f".*.{suffix}") if (told := _NAME.fullmatch(path.name))]


def _remove_abandoned(asides: list[Aside]) -> None:
    """Remove temporary files whose process has ended; on other machines, those older than a day."""
    for path, told in asides:
        lives = _lives(told)
        with contextlib.suppress(OSError):
            if lives is False or (lives is None and time.time() - path.stat().st_mtime > LONG_AGO_SECONDS):
                _remove(path)


def _lives(told: re.Match[str]) -> bool | None:
    """Return whether the process that owns a temporary name still runs; None if it is on another machine."""
    if told["host"] != _host():
        return None
    import psutil  # slow to import, and rarely needed

    try:
        process = psutil.Process(int(told["pid"]))
        later = process.create_time() - int(told["time"])  # the clock may have changed since
        heir = later > LONG_AGO_SECONDS  # another process with the same id
        return not heir and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _beside(path: Path, suffix: str) -> Path:
    """Return a temporary name with machine, process and time, and with up to 40 characters (160 bytes) of `path`'s."""
    return path.with_name(f".{path.name[:40]}.{_host()}-{os.getpid()}-{int(time.time())}-{uuid4().hex[:8]}.{suffix}")


@functools.cache
def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


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


def append_line(path: Path, value: Any) -> None:
    """Append one line of JSON in one write, so that lines of several processes do not mix.

    It starts with a line break, since the line before may be truncated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as lines:
        lines.write(b"\n" + json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace"))


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values that `append_line` wrote, without blank and truncated lines."""
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def read_keyed(path: Path, key: str = "key", names: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the last line of each key that `append_line` wrote; lines without these names are of another version."""
    entries = (entry for entry in read_lines(path) if isinstance(entry, dict))
    return {entry[key]: entry for entry in entries if isinstance(entry.get(key), str) and entry.keys() >= {*names}}


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write JSON Lines in UTF-8, atomically; a lone surrogate becomes its JSON escape."""
    with written_aside(path) as aside, aside.open("wb") as out:
        for value in values:
            out.write(json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in UTF-8; a lone surrogate becomes its JSON escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def free_name(name: str, taken: set[str]) -> str:
    """Return the name, or name-2, name-3 ...; names must differ even if case and composition are ignored."""
    free, count = name, 1
    while folded(free) in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(folded(free))
    return free


def folded(name: str) -> str:
    """Return the form that file systems compare if they ignore case and composition."""
    return unicodedata.normalize("NFC", name).casefold()


def printable(name: str) -> str:
    """Return a file name as text, with escapes for bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def fitting(stem: str) -> str:
    """Return a stem that any file system accepts: printable UTF-8 of at most STEM_BYTES bytes."""
    return UNFIT.sub("_", stem).encode()[:STEM_BYTES].decode(errors="ignore")


def read_text(path: Path) -> str:
    """Read a text file; InputError if it is missing, not UTF-8 or larger than LARGEST_TEXT."""
    try:
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise InputError(f"{path}: has {size} bytes; expected: at most {LARGEST_TEXT}; copy the folder again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); copy the folder again") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON object, or an array if `kind` is list; InputError if the file is something else."""
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the folder again") from None
    if not isinstance(value, kind):
        expected = "array" if kind is list else "object"
        raise InputError(f"{path}: expected a JSON {expected}, got {type(value).__name__}")
    return value


def real_path(path: str | Path) -> str:
    """Return a file's absolute path without `..` or links in its folders; the file itself may be a link."""
    folder, name = os.path.split(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))
    return os.path.join(_real_folder(folder), name)


@functools.lru_cache(maxsize=4096)  # a corpus has many files in few folders
def _real_folder(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a null byte in the name
        return folder
